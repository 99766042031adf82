"""Where the warnings of runs are told: at a row, or before all rows; and as notes under a table."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from advtrain.reporting.records import Note, Row, Run

WHOLE = (None, "", "model", "all")  # as the row of a warning that concerns all of a run


@dataclass(frozen=True)
class Footnote:
    """A warning under a table, which its `number` points to from a cell or a configuration.

    `about` names the configuration, seed, view and row that it concerns, as far as the table has
    several; it is empty where a warning concerns all of a table with one run.
    """

    number: int
    about: str
    message: str

    @property
    def text(self) -> str:
        return f"{self.about}: {self.message}" if self.about else self.message


class Footnotes:
    """Numbers warnings in the order in which they are asked for, the same warning once."""

    def __init__(self) -> None:
        self.numbers: dict[tuple[str, str], int] = {}

    def mark(self, notes: Iterable[tuple[Sequence[str], Note]]) -> tuple[int, ...]:
        """The numbers of warnings, each with the words that say what it is about."""
        keys = [(", ".join(word for word in words if word), note.message) for words, note in notes]
        return tuple(sorted({self.numbers.setdefault(key, len(self.numbers) + 1) for key in keys}))

    def listed(self) -> tuple[Footnote, ...]:
        return tuple(Footnote(number, *key) for key, number in self.numbers.items())


def general_notes(run: Run) -> list[Note]:
    """The warnings of a run that name none of its rows."""
    beside = [note for row in run.rows for note in row_notes(run, row)]
    return [note for note in run.notes if note not in beside]


def sentence(note: Note) -> str:
    """A warning with the row that it names, where it names one."""
    return note.message if note.row in WHOLE else f"{note.row}: {note.message}"


def row_notes(run: Run, row: Row) -> list[Note]:
    """The warnings to be told at a row: those naming its view too, else at the last of the name."""
    last = [known for known in run.rows if known.name == row.name][-1]
    exact = {f"{row.name}@{row.view}", f"{row.view}/{row.name}"}
    return [
        note
        for note in run.notes
        if note.row in exact
        or (note.row == row.name and (note.view == row.view or (not note.view and row is last)))
    ]

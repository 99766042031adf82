"""Where the warnings of runs are told: at a row, or before all rows; and as notes under a table."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from advtrain.reporting.records import Note, Row, Run

PAPER = "paper"
"""The check of notes about a paper's figures, which are no warnings."""
WHOLE = (None, "", "model", "all")  # as the row of a warning that concerns all of a run


@dataclass(frozen=True)
class Footnote:
    """A sentence under a table, which its `number` points to from cells or configurations.

    It is a warning about our numbers, or, with `remark`, what is to be said of a paper's. `abouts`
    name the configuration, seed, view and row of each thing that it concerns, as far as the table
    has several; one is empty where it concerns all of a table with one run.
    """

    number: int
    abouts: tuple[str, ...]
    message: str
    remark: bool = False

    @property
    def text(self) -> str:
        return self._told(self.abouts)

    def of(self, label: str) -> str:
        """The text as far as it is about the configuration `label`."""
        return self._told(
            [a for a in self.abouts if f"{a},".startswith(f"{label},")] or self.abouts
        )

    def _told(self, abouts: Sequence[str]) -> str:
        about = "; ".join(filter(None, abouts))
        return f"{about}: {self.message}" if about else self.message


class Footnotes:
    """Numbers sentences in the order in which they are asked for, the same sentence once."""

    def __init__(self) -> None:
        self.abouts: dict[tuple[str, bool], dict[str, None]] = {}

    def mark(self, notes: Iterable[tuple[Sequence[str], Note]]) -> tuple[int, ...]:
        """The numbers of notes, each with the words that say what it is about."""
        return tuple(sorted({self._number(words, note) for words, note in notes}))

    def listed(self) -> tuple[Footnote, ...]:
        return tuple(
            Footnote(number, tuple(abouts), *key)
            for number, (key, abouts) in enumerate(self.abouts.items(), start=1)
        )

    def _number(self, words: Sequence[str], note: Note) -> int:
        key = note.message, note.check == PAPER
        self.abouts.setdefault(key, {})[", ".join(word for word in words if word)] = None
        return list(self.abouts).index(key) + 1


def general_notes(run: Run) -> list[Note]:
    """The warnings of a run that name none of its rows."""
    beside = [note for row in run.rows for note in row_notes(run, row)]
    return [note for note in run.notes if note not in beside]


def paper_notes(run: Run, key: str) -> list[Note]:
    """What is to be said of the published figure `key` of a run, or of all its row."""
    return [Note(PAPER, key, words) for words in run.paper.remarks.get(key, ())]


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

"""The accuracy table of a set of runs, as values: a line per configuration, a column per measure.

Cells hold fractions; how they look is the business of `formats` and of the page.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from advtrain.reporting.folding import fold, labels
from advtrain.reporting.measures import TRAIN, Cell, measured, merged, shared
from advtrain.reporting.notes import (
    WHOLE,
    Footnote,
    Footnotes,
    general_notes,
    paper_notes,
    row_notes,
)
from advtrain.reporting.papers import (
    Figure,
    beside,
    incomparable,
    is_comparable,
    sources,
    told,
)
from advtrain.reporting.records import Row, Run
from advtrain.reporting.wording import described, radii, settings

EVERY_VIEW = "all views"
ALL = "table"
"""Key of the remarks that are about all rows of a paper's table."""


UNJUDGED = "not evaluated"  # the reason of a line without numbers whose training is done


@dataclass(frozen=True)
class Column:
    """`key` names it in table.csv; `detail` says how strong the attack was, where all agree."""

    key: str
    detail: str = ""
    n: int | None = None

    @property
    def is_radius(self) -> bool:
        return self.key.partition("_")[0] == "acr"


@dataclass(frozen=True)
class Line:
    """A configuration under one view. `error` says why there are no numbers.

    `marks`: the numbers of the table's footnotes about all of the configuration's values.
    """

    label: str
    view: str
    runs: tuple[Run, ...]
    cells: dict[str, Cell]
    published: dict[str, Figure]
    state: str = "done"
    error: str = ""
    marks: tuple[int, ...] = ()

    @property
    def seeds(self) -> int:
        return len(self.runs)


@dataclass(frozen=True)
class Table:
    """`remarks`: sentences about a paper's figures, of which those in `incomparable` say why none
    is compared; `sources`: where its figures are from.
    """

    columns: tuple[Column, ...]
    lines: tuple[Line, ...]
    notes: tuple[str, ...] = ()
    footnotes: tuple[Footnote, ...] = ()
    incomparable: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()

    def best(self, key: str) -> float | None:
        """The largest value of a column, to be marked; None where nothing is compared."""
        values = [line.cells[key].value for line in self.lines if key in line.cells]
        return max(values) if len(set(values)) > 1 else None

    def without(self, prefixes: tuple[str, ...]) -> "Table":
        """The same without columns whose keys begin so."""
        kept = tuple(each for each in self.columns if not each.key.startswith(prefixes))
        return replace(self, columns=kept)

    @property
    def n(self) -> int | None:
        """The number of examples behind every cell, if it is the same."""
        sizes = {c.n for line in self.lines for c in line.cells.values() if c.n is not None}
        return sizes.pop() if len(sizes) == 1 else None

    def size_shown(self, column: Column, cell: Cell) -> int | None:
        """n of a cell where neither the caption nor the heading of the column tells it."""
        return None if self.n is not None or column.n is not None else cell.n

    @property
    def has_views(self) -> bool:
        return any(line.view not in ("identity", "") for line in self.lines)

    @property
    def has_seeds(self) -> bool:
        return any(line.seeds > 1 for line in self.lines)

    @property
    def has_published(self) -> bool:
        known = {column.key for column in self.columns}
        return any(known & line.published.keys() for line in self.lines)

    @property
    def is_of_a_paper(self) -> bool:
        """Whether a run says what paper its figures stand beside, if only to say why not."""
        return any(run.paper.setting or run.published for line in self.lines for run in line.runs)

    def warned(self, marks: Iterable[int]) -> bool:
        """Whether one of these numbers is a warning's, and not that of a remark."""
        return any(note.number in set(marks) for note in self.footnotes if not note.remark)

    def about(self, line: Line) -> list[Footnote]:
        """The footnotes that a line, its cells, or the paper's figures beside them point to."""
        beside_ours = [figure.marks for figure in line.published.values()]
        marked = [line.marks, *(cell.marks for cell in line.cells.values()), *beside_ours]
        marks = {mark for each in marked for mark in each}
        return [note for note in self.footnotes if note.number in marks]

    @property
    def has_verdicts(self) -> bool:
        found = [figure for line in self.lines for figure in line.published.values()]
        return any(figure.difference is not None for figure in found)


def accuracy_table(runs: Sequence[Run]) -> Table:
    """The table of `runs`; configurations that differ only in the seed are one line."""
    groups = fold(runs)
    lines: list[Line] = []
    for group, label in zip(groups, labels(groups), strict=True) if groups else ():
        lines += _lines(group, label)
    keys = _columns(runs)
    columns = tuple(_column(key, runs, lines) for key in keys)
    marked, footnotes = _annotated(lines)
    named = [(line.label, run) for line in marked for run in line.runs]
    papers = {id(run): run for _, run in named}.values()
    return Table(
        columns=columns,
        lines=marked,
        notes=tuple(_repetitions(runs, groups)),
        footnotes=footnotes,
        incomparable=tuple(incomparable(named)),
        remarks=tuple(dict.fromkeys(w for run in papers for w in run.paper.remarks.get(ALL, ()))),
        sources=tuple(sources(papers)),
    )


def _annotated(lines: Sequence[Line]) -> tuple[tuple[Line, ...], tuple[Footnote, ...]]:
    """The lines with marks, and what the marks say: first what concerns whole runs."""
    footnotes = Footnotes()
    several = len({line.label for line in lines}) > 1
    views = any(line.view not in ("identity", "") for line in lines)

    def words(line: Line, run: Run, *more: str) -> list[str]:
        seed = f"seed {run.seed}" if line.seeds > 1 and run.seed is not None else ""
        return [line.label if several else "", seed, *more]

    general = {id(run): general_notes(run) for line in lines for run in line.runs}
    whole = [
        footnotes.mark(
            (words(line, run, "" if note.row in WHOLE else str(note.row)), note)
            for run in line.runs
            for note in general[id(run)]
            if note.message not in line.error
        )
        for line in lines
    ]
    marked = []
    for line, marks in zip(lines, whole, strict=True):
        cells = dict(line.cells)
        for run in line.runs:
            for row in run.rows:
                if row.view == line.view and row.name in cells:
                    about = words(line, run, line.view if views else "", row.name)
                    found = footnotes.mark((about, note) for note in row_notes(run, row))
                    cell = cells[row.name]
                    cells[row.name] = replace(cell, marks=tuple(sorted({*cell.marks, *found})))
        first = line.runs[0]
        said = footnotes.mark((words(line, first)[:1], note) for note in paper_notes(first, "row"))
        figures = {
            key: replace(
                figure,
                marks=footnotes.mark(
                    ([*words(line, first)[:1], title(key)], note)
                    for note in paper_notes(first, key)
                ),
            )
            for key, figure in line.published.items()
        }
        marks = tuple(sorted({*marks, *said}))
        marked.append(replace(line, cells=cells, marks=marks, published=figures))
    return tuple(marked), footnotes.listed()


def _lines(group: Sequence[Run], label: str) -> list[Line]:
    first = group[0]
    reason = "" if first.state == "done" else f"{first.state}: {first.error or 'no reason given'}"
    if first.state == "done" and not first.rows and first.certified is None:
        reason = UNJUDGED
    views = tuple(dict.fromkeys(view for run in group for view in run.views))
    common = [shared(run) for run in group]
    lines = []
    for view in views:
        parts = [
            measured(run, view) | (common[i] if len(views) == 1 else {})
            for i, run in enumerate(group)
        ]
        cells = merged(parts)
        published = _published(group, view, cells)
        lines.append(Line(label, view, tuple(group), cells, published, first.state, reason))
    if len(views) != 1:
        cells = merged(common)
        if cells or not views:
            view = EVERY_VIEW if views else ""
            lines.append(Line(label, view, tuple(group), cells, {}, first.state, reason))
    return lines


def _published(group: Sequence[Run], view: str, cells: dict[str, Cell]) -> dict[str, Figure]:
    """A paper's values for this line, beside ours where every run is at the paper's setting."""
    comparable = all(map(is_comparable, group))
    figures = {}
    for key, value in told(group[0], view).items():
        ours = cells.get(key)
        figures[key] = beside(
            value,
            None if ours is None else ours.value,
            None if ours is None else ours.reach,
            comparable=comparable,
        )
    return figures


def _columns(runs: Iterable[Run]) -> list[str]:
    """Attacks in the order of the evaluation, worst cases, certificates by radius."""
    attacks: list[str] = []
    others: dict[str, None] = {}
    for run in runs:
        place = 0
        for row in run.rows:
            if row.name not in attacks:
                attacks.insert(place, row.name)
            place = attacks.index(row.name) + 1
        others |= dict.fromkeys(shared(run))
    worst = [key for key in others if key.startswith("worst_")]
    certified = sorted(key for key in others if key.startswith("certified"))
    radii = sorted(key for key in others if key.partition("_")[0] == "acr")
    return [*(key for key in (TRAIN,) if key in others), *attacks, *worst, *certified, *radii]


def _column(key: str, runs: Sequence[Run], lines: Sequence[Line]) -> Column:
    measured: list[Row] = [row for run in runs for row in run.rows if row.name == key]
    details = {(described if len(runs) == 1 else settings)(row) for row in measured}
    detail = details.pop() if len(details) == 1 else ""
    if key.startswith("worst_"):
        norm = key.removeprefix("worst_")
        within = {radii(run, norm) for run in runs if norm in run.worst_case}
        detail = ", ".join(["per example", *(within if len(within) == 1 else [])]).strip(", ")
    sizes = {line.cells[key].n for line in lines if key in line.cells}
    return Column(key, detail, sizes.pop() if len(sizes) == 1 else None)


def _repetitions(runs: Sequence[Run], groups: Sequence[Sequence[Run]]) -> Iterable[str]:
    left_out = len(runs) - sum(len(group) for group in groups)
    if left_out:
        yield f"{left_out} run(s) repeat a configuration and a seed; the later one counts."


def title(key: str) -> str:
    """The heading of a column: `certified r=0.25` for certified_0.25."""
    if key.startswith("worst_"):
        return f"worst {key.removeprefix('worst_')}"
    first, *parts = key.split("_")
    if first == "certified" and parts:
        norm = [part for part in parts if part[:1].isalpha()]
        return " ".join([first, *norm, *(f"r={part}" for part in parts if part not in norm)])
    if key == TRAIN:
        return "training"
    return " ".join(["ACR", *parts]) if first == "acr" else key

"""The accuracy table of a set of runs, as values: a line per configuration, a column per measure.

Cells hold fractions; how they look is the business of `formats` and of the page.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, stdev

from advtrain.reporting.folding import fold, labels
from advtrain.reporting.notes import WHOLE, Footnote, Footnotes, general_notes, row_notes
from advtrain.reporting.records import Row, Run
from advtrain.reporting.wording import described, radii, settings

EVERY_VIEW = "all views"
TRAIN = "train_acc"
"""Column of the accuracy on what was trained on, in the epoch that is judged."""


@dataclass(frozen=True)
class Cell:
    """`value` is a fraction, or a radius in the column acr. One run has an interval, more a std.

    `marks`: the numbers of the table's footnotes about this value.
    """

    value: float
    n: int | None = None
    low: float | None = None
    high: float | None = None
    std: float | None = None
    seeds: int = 1
    marks: tuple[int, ...] = ()


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
    published: dict[str, float]
    state: str = "done"
    error: str = ""
    marks: tuple[int, ...] = ()

    @property
    def seeds(self) -> int:
        return len(self.runs)


@dataclass(frozen=True)
class Table:
    columns: tuple[Column, ...]
    lines: tuple[Line, ...]
    notes: tuple[str, ...] = ()
    footnotes: tuple[Footnote, ...] = ()

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


def accuracy_table(runs: Sequence[Run]) -> Table:
    """The table of `runs`; configurations that differ only in the seed are one line."""
    groups = fold(runs)
    lines: list[Line] = []
    for group, label in zip(groups, labels(groups), strict=True) if groups else ():
        lines += _lines(group, label)
    keys = _columns(runs)
    columns = tuple(_column(key, runs, lines) for key in keys)
    marked, footnotes = _annotated(lines)
    return Table(columns, marked, tuple(_repetitions(runs, groups)), footnotes)


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
        marked.append(replace(line, cells=cells, marks=marks))
    return tuple(marked), footnotes.listed()


def _lines(group: Sequence[Run], label: str) -> list[Line]:
    first = group[0]
    reason = "" if first.state == "done" else f"{first.state}: {first.error or 'no reason given'}"
    if first.state == "done" and not first.rows and first.certified is None:
        reason = "not evaluated"
    views = tuple(dict.fromkeys(view for run in group for view in run.views))
    shared = [_shared(run) for run in group]
    lines = []
    for view in views:
        parts = [
            _measured(run, view) | (shared[i] if len(views) == 1 else {})
            for i, run in enumerate(group)
        ]
        published = _published(first, view, len(views) == 1)
        lines.append(Line(label, view, tuple(group), _merge(parts), published, first.state, reason))
    if len(views) != 1:
        cells = _merge(shared)
        if cells or not views:
            view = EVERY_VIEW if views else ""
            lines.append(Line(label, view, tuple(group), cells, {}, first.state, reason))
    return lines


def _measured(run: Run, view: str) -> dict[str, Cell]:
    rows = [row for row in run.rows if row.view == view]
    cells = {row.name: Cell(row.accuracy, row.n, row.low, row.high) for row in rows}
    worst = run.worst_by_view.get(view, {})
    return cells | {f"worst_{norm}": Cell(value) for norm, value in worst.items()}


def _shared(run: Run) -> dict[str, Cell]:
    """What belongs to a run and not to a view of it: training, the worst case, the certificate.

    Accuracy in training only where a paper prints it, too.
    """
    trained = run.train_acc if TRAIN in run.published else None
    cells = {TRAIN: Cell(trained)} if trained is not None else {}
    cells |= {f"worst_{norm}": Cell(value) for norm, value in run.worst_case.items()}
    found = run.certified
    if found is not None:
        norm = "" if found.norm == "l2" else f"_{found.norm}"  # radii of norms are not compared
        if found.accuracy is not None:
            cells[f"certified{norm}"] = Cell(found.accuracy, found.examples)
        for radius, value in found.at_radius.items():
            cells[f"certified{norm}_{radius:.2f}"] = Cell(value, found.examples)
        if found.acr is not None:
            cells[f"acr{norm}"] = Cell(found.acr, found.examples)
    return cells


def _merge(parts: Sequence[dict[str, Cell]]) -> dict[str, Cell]:
    """Mean and sample standard deviation over seeds; one run keeps its own interval."""
    merged = {}
    for key in dict.fromkeys(key for part in parts for key in part):
        cells = [part[key] for part in parts if key in part]
        if len(cells) == 1:
            merged[key] = cells[0]
            continue
        values = [cell.value for cell in cells]
        sizes = {cell.n for cell in cells}
        n = sizes.pop() if len(sizes) == 1 else None
        merged[key] = Cell(fmean(values), n, std=stdev(values), seeds=len(cells))
    return merged


def _published(run: Run, view: str, only: bool) -> dict[str, float]:
    """A paper's values for this line: keyed by column, or by column@view where there are views."""
    here = {k.rpartition("@")[0]: v for k, v in run.published.items() if k.endswith(f"@{view}")}
    plain = {key: value for key, value in run.published.items() if "@" not in key}
    return (plain | here) if only or view == "identity" else here


def _columns(runs: Iterable[Run]) -> list[str]:
    """Attacks in the order of the evaluation, worst cases, certificates by radius."""
    attacks: list[str] = []
    shared: dict[str, None] = {}
    for run in runs:
        place = 0
        for row in run.rows:
            if row.name not in attacks:
                attacks.insert(place, row.name)
            place = attacks.index(row.name) + 1
        shared |= dict.fromkeys(_shared(run))
    worst = [key for key in shared if key.startswith("worst_")]
    certified = sorted(key for key in shared if key.startswith("certified"))
    radii = sorted(key for key in shared if key.partition("_")[0] == "acr")
    return [*(key for key in (TRAIN,) if key in shared), *attacks, *worst, *certified, *radii]


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

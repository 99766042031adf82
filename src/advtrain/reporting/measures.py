"""What a run measured, as cells of a table: by row, over all its views, and over several seeds."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from advtrain.reporting.papers import Reach, reach_of
from advtrain.reporting.records import Row, Run

TRAIN = "train_acc"
"""Column of the accuracy on what was trained on, in the epoch that is judged."""


@dataclass(frozen=True)
class Cell:
    """`value` is a fraction, or a radius in the column acr. One run has an interval, more a std.

    `reach`: the interval that a paper's value is held against, see `papers`. `marks`: the numbers
    of the table's footnotes about this value.
    """

    value: float
    n: int | None = None
    low: float | None = None
    high: float | None = None
    std: float | None = None
    seeds: int = 1
    reach: Reach | None = None
    marks: tuple[int, ...] = ()


def measured(run: Run, view: str) -> dict[str, Cell]:
    """The accuracies of a view by row, and its worst cases."""
    rows = [row for row in run.rows if row.view == view]
    cells = {row.name: _of_row(row) for row in rows}
    worst = run.worst_by_view.get(view, {})
    return cells | {f"worst_{norm}": Cell(value) for norm, value in worst.items()}


def _of_row(row: Row) -> Cell:
    low, high = row.low, row.high
    reach = None if low is None or high is None else (low, high)
    return Cell(row.accuracy, row.n, low, high, reach=reach)


def _counted(value: float, n: int | None) -> Cell:
    """A share of `n` examples whose interval nothing prints."""
    return Cell(value, n, reach=reach_of([value], n))


def shared(run: Run) -> dict[str, Cell]:
    """What belongs to a run and not to a view of it: training, the worst case, the certificate.

    Accuracy in training only where a paper prints it, too.
    """
    trained = run.train_acc if TRAIN in run.published else None
    cells = {TRAIN: _trained(trained, run)} if trained is not None else {}
    cells |= {f"worst_{norm}": Cell(value) for norm, value in run.worst_case.items()}
    found = run.certified
    if found is not None:
        norm = "" if found.norm == "l2" else f"_{found.norm}"  # radii of norms are not compared
        if found.accuracy is not None:
            cells[f"certified{norm}"] = _counted(found.accuracy, found.examples)
        for radius, value in found.at_radius.items():
            cells[f"certified{norm}_{radius:.2f}"] = _counted(value, found.examples)
        if found.acr is not None:
            cells[f"acr{norm}"] = Cell(found.acr, found.examples)
    return cells


def _trained(value: float, run: Run) -> Cell:
    """Its examples are not those of the table's caption, so n is not told."""
    return Cell(value, reach=reach_of([value], run.train_images))


def merged(parts: Sequence[dict[str, Cell]]) -> dict[str, Cell]:
    """Mean and sample standard deviation over seeds; one run keeps its own interval."""
    found = {}
    for key in dict.fromkeys(key for part in parts for key in part):
        cells = [part[key] for part in parts if key in part]
        if len(cells) == 1:
            found[key] = cells[0]
            continue
        values = [cell.value for cell in cells]
        sizes = {cell.n for cell in cells}
        n = sizes.pop() if len(sizes) == 1 else None
        reach = None if key.startswith("acr") else reach_of(values, n)
        found[key] = Cell(fmean(values), n, std=stdev(values), seeds=len(cells), reach=reach)
    return found

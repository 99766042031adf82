"""The figures of a set of runs: a configuration has one colour in all of them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from advtrain.reporting.plots import accuracy_limits, curve, epoch_axis
from advtrain.reporting.reading import read_metrics
from advtrain.reporting.style import COLOURS, MARKERS, figure, percent_axis, save
from advtrain.reporting.tables import EVERY_VIEW, Line, Table, title

MAX_LINES = len(COLOURS)


def accuracy_dots(table: Table, path: Path) -> Path | None:
    """A dot per configuration and attack, with its interval or standard deviation."""
    lines = [line for line in table.lines if line.cells and line.view != EVERY_VIEW][:MAX_LINES]
    columns = [c for c in table.columns if not c.key.startswith(("certified", "acr"))]
    columns = [c for c in columns if sum(c.key in line.cells for line in lines) > 1]
    if len(lines) < 2 or not columns:
        return None
    height = 1.3 + len(columns) * (0.14 + 0.11 * len(lines)) + 0.1 * len(lines)
    with figure(7.2, height) as (drawing, grid):
        axes = grid[0][0]
        width = 0.72 / len(lines)
        for i, line in enumerate(lines):
            shift = (i - (len(lines) - 1) / 2) * width
            view = f" ({line.view})" if line.view not in ("", "identity") else ""
            label: str | None = line.label + view
            for j, column in enumerate(columns):
                cell = line.cells.get(column.key)
                if cell is None:
                    continue
                low, high = cell.low, cell.high
                if cell.std is not None:
                    low, high = cell.value - cell.std, cell.value + cell.std
                if low is not None and high is not None:
                    axes.plot(
                        [low, high], [j + shift] * 2, color=COLOURS[i], linewidth=2.2, alpha=0.5
                    )
                look = {"color": COLOURS[i], "marker": MARKERS[i], "linestyle": "none"}
                axes.plot(cell.value, j + shift, label=label, **look)
                label = None
        axes.set_yticks(range(len(columns)), [title(c.key) for c in columns])
        axes.set_ylim(len(columns) - 0.5, -0.5)
        axes.set_xlim(0, 1.0)
        for edge in range(1, len(columns)):
            axes.axhline(edge - 0.5, color="#EEEEEE", linewidth=0.8)
        axes.grid(axis="y", visible=False)
        axes.tick_params(axis="y", length=0)
        percent_axis(axes.xaxis)
        axes.set_title("Accuracy by attack")
        drawing.legend(loc="outside lower left", ncols=2)
        _note(axes, "bars: exact 95 % interval of one run, or ± one standard deviation over seeds")
        return save(drawing, path)


def robust_curves(table: Table, path: Path) -> Path | None:
    """Accuracy under attack on validation data over the epochs, the first seed of each."""
    drawn = [(line, read_metrics(line.runs[0].directory)) for line in _first_views(table)]
    told = [(i, *pair) for i, pair in enumerate(drawn[:MAX_LINES])]
    told = [entry for entry in told if any("val_adv_acc" in epoch for epoch in entry[2])]
    if len(told) < 2:
        return None
    with figure(7.2, 3.6 + 0.1 * len(told)) as (drawing, grid):
        axes = grid[0][0]
        for i, line, metrics in told:
            curve(axes, metrics, "val_adv_acc", label=line.label, color=COLOURS[i])
        axes.set(title="Validation accuracy under attack", xlabel="epoch")
        accuracy_limits(axes)
        epoch_axis(axes)
        drawing.legend(loc="outside lower left", ncols=2)
        _note(axes, f"{axes.get_xlabel()}{_first_seeds([line for _, line, _ in told])}")
        return save(drawing, path)


def _first_views(table: Table) -> list[Line]:
    """A line per configuration with numbers, in the order, hence the colours, of the dots."""
    told = [line for line in table.lines if line.cells]
    return list({line.label: line for line in reversed(told)}.values())[::-1]


def _first_seeds(lines: Sequence[Line]) -> str:
    several = any(line.seeds > 1 for line in lines)
    return " (of several seeds the first is drawn)" if several else ""


def _note(axes: Any, text: str) -> None:
    """Grey words under the axis; a footnote would run into a legend outside the axes."""
    axes.set_xlabel(text, color="#666666", fontsize=8.5)

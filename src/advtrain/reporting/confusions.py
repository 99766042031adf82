"""Which classes attacks turn into which: confusion matrices, a panel for each attack of a run."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from advtrain.reporting.records import Row, Run
from advtrain.reporting.style import INK, figure, footnote, save
from advtrain.reporting.tables import title
from advtrain.reporting.wording import percent

MAX_PANELS = 8
ACROSS = 4
WRITTEN = 10  # classes up to which cells hold their numbers


def confusion_matrices(run: Run, path: Path) -> Path | None:
    """The rows of the first view, up to MAX_PANELS; None where no row tells its answers."""
    first = run.views[0] if run.views else None
    told = [row for row in run.rows if row.confusion and row.view == first][:MAX_PANELS]
    if not told:
        return None
    across = min(len(told), ACROSS)
    down = -(-len(told) // across)
    with figure(2.75 * across, 2.95 * down + 0.3, down, across) as (drawing, grid):
        panels = grid.ravel()
        for axes, row in zip(panels, told, strict=False):
            _panel(axes, row)
        for spare in panels[len(told) :]:
            spare.set_axis_off()
        footnote(drawing, "rows: the class; columns: the answer; in percent of the class")
        return save(drawing, path)


def _panel(axes: Any, row: Row) -> None:
    shares = shares_of(row.confusion)
    size = len(shares)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set_title(f"{title(row.name)}, {percent(row.accuracy, 1)} %")
    axes.set_xticks(range(size))
    axes.set_yticks(range(size))
    axes.tick_params(length=0, labelsize=7)
    axes.grid(visible=False)
    if size > WRITTEN:
        return
    for label, line in enumerate(shares):
        for answer, share in enumerate(line):
            if share >= 0.005:
                colour = "white" if share > 0.55 else INK
                look = {"ha": "center", "va": "center", "fontsize": 6, "color": colour}
                axes.text(answer, label, f"{100 * share:.0f}", **look)


def shares_of(confusion: Sequence[Sequence[int]]) -> list[list[float]]:
    """Counts as shares of their row; a class without examples has 0 throughout."""
    return [[count / max(sum(line), 1) for count in line] for line in confusion]

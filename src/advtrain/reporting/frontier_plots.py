"""The figure of a frontier: curves of standard and robust accuracy, dominated points hollow."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from advtrain.reporting.frontier import FIXED, Curve, Frontier
from advtrain.reporting.style import COLOURS, INK, MARKERS, figure, footnote, percent_axis, save

MAX_CURVES = len(COLOURS) - 1
MAX_DRAWN = 4


def frontier_curves(found: Sequence[Frontier], path: Path) -> Path | None:
    """Each frontier in axes of its own, beside the others; None where there is none."""
    drawn = found[:MAX_DRAWN]
    if not drawn:
        return None
    with figure(6.6 * len(drawn), 4.9, columns=len(drawn)) as (drawing, grid):
        for axes, frontier in zip(grid[0], drawn, strict=True):
            for place, curve in enumerate(frontier.curves[: MAX_CURVES + 1]):
                fixed = curve.label == FIXED
                _curve(axes, curve, 1 if fixed else place + (place > 0), dashed=fixed)
            axes.set(xlabel="standard accuracy", ylabel="robust accuracy", title=frontier.words)
            axes.margins(0.1)
            percent_axis(axes.xaxis)
            percent_axis(axes.yaxis)
            axes.legend(loc="lower left")
        footnote(drawing, "beside each point its lambda; hollow: another point is better in both")
        return save(drawing, path)


def _curve(axes: Any, curve: Curve, colour: int, *, dashed: bool) -> None:
    """Points joined by their lambda; bars are intervals of one run, or deviations over seeds."""
    look = {"color": COLOURS[colour], "marker": MARKERS[colour]}
    axes.plot(
        [point.standard.value for point in curve.points],
        [point.robust.value for point in curve.points],
        label=curve.label,
        linestyle="--" if dashed else "-",
        linewidth=1.3,
        **look,
    )
    for point in curve.points:
        x, y = point.at
        if point.dominated:
            axes.plot(x, y, linestyle="none", markerfacecolor="white", **look)
        shift = (-6, -10) if dashed else (6, 4)
        axes.annotate(
            f"{point.lam:g}",
            (x, y),
            xytext=shift,
            textcoords="offset points",
            ha="right" if dashed else "left",
            color=INK if not dashed else COLOURS[colour],
            fontsize=8,
        )

"""The figure of a frontier: curves of standard and robust accuracy, dominated points hollow."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from advtrain.reporting.frontier import FIXED, Curve, Frontier, Point
from advtrain.reporting.style import COLOURS, INK, MARKERS, figure, footnote, percent_axis, save

MAX_CURVES = len(COLOURS) - 1
MAX_DRAWN = 4


def frontier_curves(found: Sequence[Frontier], path: Path) -> Path | None:
    """Each frontier in axes of its own, beside the others; None where there is none."""
    drawn = found[:MAX_DRAWN]
    if not drawn:
        return None
    from matplotlib.ticker import MultipleLocator

    with figure(6.6 * len(drawn), 4.9, columns=len(drawn)) as (drawing, grid):
        for axes, frontier in zip(grid[0], drawn, strict=True):
            for place, curve in enumerate(frontier.curves[: MAX_CURVES + 1]):
                fixed = curve.label == FIXED
                _curve(axes, curve, 1 if fixed else place + (place > 0), dashed=fixed)
            axes.set(xlabel="standard accuracy", ylabel="robust accuracy", title=frontier.words)
            axes.margins(0.1)
            for axis in (axes.xaxis, axes.yaxis):
                axis.set_major_locator(MultipleLocator(_step(*axis.get_view_interval())))
                percent_axis(axis)
            axes.legend(loc="best")
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
    shift = (-6, -10) if dashed else (6, 4)
    for place, points in _at_places(curve).items():
        if points[0].dominated:
            axes.plot(*place, linestyle="none", markerfacecolor="white", **look)
        axes.annotate(
            ", ".join(f"{point.lam:g}" for point in points),
            place,
            xytext=shift,
            textcoords="offset points",
            ha="right" if dashed else "left",
            color=COLOURS[colour] if dashed else INK,
            fontsize=8,
        )


def _at_places(curve: Curve) -> dict[tuple[float, float], list[Point]]:
    """Points by where they are, for one label each."""
    places: dict[tuple[float, float], list[Point]] = {}
    for point in curve.points:
        places.setdefault(point.at, []).append(point)
    return places


def _step(low: float, high: float) -> float:
    """A whole number of percent between ticks, of which there are at most eight."""
    steps = (0.01, 0.02, 0.05, 0.1)
    return next((step for step in steps if (high - low) / step <= 8), 0.2)

"""Accuracy by the radius of the attack: a curve for each attack that a run has at several radii."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from advtrain.reporting.records import Row, Run
from advtrain.reporting.style import COLOURS, MARKERS, figure, footnote, percent_axis, save

LEAST = 3  # radii of a curve, that of the clean images included
MAX_CURVES = len(COLOURS)
MAX_NORMS = 3


@dataclass(frozen=True)
class Ascent:
    """The rows of one attack under one view, by radius; clean images are at 0."""

    label: str
    norm: str
    rows: tuple[Row, ...]


def ascents(named: Sequence[tuple[str, Run]]) -> list[Ascent]:
    """Those of all runs; where several runs or attacks have one, the labels say which."""
    found = [(label, *parts) for label, run in named for parts in _of(run)]
    several = len({(attack, view) for _, attack, view, _, _ in found}) > 1
    ascending = []
    for label, attack, view, norm, rows in found:
        told = [label] if len(named) > 1 else []
        told += [attack] if several or not told else []
        told += [view] if several and view != "identity" else []
        ascending.append(Ascent(", ".join(told), norm, rows))
    return ascending


def _of(run: Run) -> Iterator[tuple[str, str, str, tuple[Row, ...]]]:
    """Attack, view, norm and rows, as often as one attack has radii enough."""
    for view in run.views:
        seen = [row for row in run.rows if row.view == view]
        clean = [row for row in seen if row.name == "clean"][:1]
        groups: dict[tuple[str, str], dict[float, Row]] = {}
        for row in seen:
            if row.norm and row.eps is not None:
                known = groups.setdefault((row.attack or row.name, row.norm), {})
                weaker = row.eps in known and known[row.eps].accuracy <= row.accuracy
                known |= {} if weaker else {row.eps: row}
        for (attack, norm), by_eps in groups.items():
            rows = (*clean, *(by_eps[eps] for eps in sorted(by_eps)))
            if len(rows) >= LEAST and len(by_eps) > 1:
                yield attack, view, norm, rows


def radius_curves(named: Sequence[tuple[str, Run]], path: Path) -> Path | None:
    """Axes for each norm, whiskers of 95 %; None where nothing has radii enough."""
    found = ascents(named)
    norms = list(dict.fromkeys(ascent.norm for ascent in found))[:MAX_NORMS]
    if not norms:
        return None
    with figure(5.6 * len(norms), 3.7, columns=len(norms)) as (drawing, grid):
        for axes, norm in zip(grid[0], norms, strict=True):
            curves = [ascent for ascent in found if ascent.norm == norm][:MAX_CURVES]
            for place, ascent in enumerate(curves):
                at = [row.eps or 0.0 for row in ascent.rows]
                look = {"color": COLOURS[place], "marker": MARKERS[place], "label": ascent.label}
                axes.plot(at, [row.accuracy for row in ascent.rows], **look)
                for eps, row in zip(at, ascent.rows, strict=True):
                    if row.low is not None and row.high is not None:
                        axes.plot([eps, eps], [row.low, row.high], color=COLOURS[place], lw=1)
            axes.set(xlabel=f"eps in {norm}, pixels in [0, 1]", title="Accuracy by radius")
            axes.set_xlim(left=0)
            axes.set_ylim(0, 1.02)
            percent_axis(axes.yaxis)
            axes.legend()
        footnote(drawing, "at eps 0 without an attack; whiskers: exact 95 % interval")
        return save(drawing, path)

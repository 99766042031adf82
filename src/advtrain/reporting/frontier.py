"""Standard against robust accuracy: a network under several lambdas beside ones of a fixed lambda.

From records alone. A curve is a network under views `lambda=...` (Once-for-all; of a slimmable one
at one width, `lambda=...,width=...`), or all networks of the set that were trained at one lambda
each: `defense=mixed_at` at its share, `pgd_at` at 1, and `standard` at 0. Curves belong to one
frontier where data, threat and the compared attack agree.

A point is dominated where another of the frontier is as good in both accuracies and better in one.
The area of a curve is that of all pairs (standard, robust) that lie below one of its points, within
the unit square (the hypervolume, Zitzler and Thiele 1999, with the origin as the reference). What
one curve reaches and the other does not are two more areas; together they are the area between the
curves. Accuracies are taken as measured: differences within their intervals count, too.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from advtrain.reporting.measures import Cell
from advtrain.reporting.records import Run
from advtrain.reporting.tables import Line, Table, title
from advtrain.reporting.values import number, text
from advtrain.reporting.wording import fraction

PREFIX = "lambda="
FIXED = "one network per lambda"
TARGETS = {"PgdAt": 1.0, "Standard": 0.0}


@dataclass(frozen=True)
class Point:
    """A network at a lambda: `standard` and `robust` accuracy. `dominated`: in the frontier."""

    name: str
    lam: float
    standard: Cell
    robust: Cell
    dominated: bool = False

    @property
    def at(self) -> tuple[float, float]:
        return self.standard.value, self.robust.value


@dataclass(frozen=True)
class Curve:
    """Points by their lambda. `area`: of what lies below one of them."""

    label: str
    points: tuple[Point, ...]

    @property
    def area(self) -> float:
        return area(point.at for point in self.points)


@dataclass(frozen=True)
class Comparison:
    """A curve beside the one of fixed lambdas: the areas that it alone reaches, and that it misses.

    Their sum is the area between the curves, their difference that of the areas of the curves.
    """

    label: str
    beyond: float
    missed: float

    @property
    def between(self) -> float:
        return self.beyond + self.missed


@dataclass(frozen=True)
class Frontier:
    """Curves on the same data under the same attack, the one of fixed lambdas last.

    `words`: which these are.
    """

    attack: str
    words: str
    curves: tuple[Curve, ...]
    comparisons: tuple[Comparison, ...]


def frontiers(table: Table) -> tuple[Frontier, ...]:
    """One for each data set and threat that a network under several lambdas was measured on."""
    groups: dict[tuple[str, str, float | None], list[tuple[float, Line]]] = {}
    for line in table.lines:
        lam = of_line(line)
        if lam is not None and "clean" in line.cells:
            run = line.runs[0]
            groups.setdefault((run.dataset, run.norm, run.eps), []).append((lam, line))
    found = [_frontier(table, key, told) for key, told in groups.items()]
    return tuple(each for each in found if each is not None)


def of_line(line: Line) -> float | None:
    """The lambda of its view, or that its network was trained at; None if it has none."""
    if line.view.startswith(PREFIX):
        return number(_float(line.view.removeprefix(PREFIX).partition(",")[0]))
    return trained_at(line.runs[0]) if line.view == "identity" else None


def curve_label(line: Line) -> str:
    """That of the line, and the width where its view tells one."""
    width = line.view.partition(",")[2].replace("=", " ")
    return ", ".join(part for part in (line.label, width) if part)


def trained_at(run: Run) -> float | None:
    """The fixed lambda of a training, the weight of its adversarial term."""
    defense = run.config.get("defense")
    if not isinstance(defense, dict):
        return None
    name = text(defense.get("_target_")).rpartition(".")[2]
    return number(_float(defense.get("share"))) if name == "MixedAt" else TARGETS.get(name)


def _float(value: object) -> float | None:
    try:
        return float(str(value))
    except ValueError:
        return None


def _frontier(
    table: Table, key: tuple[str, str, float | None], told: Sequence[tuple[float, Line]]
) -> Frontier | None:
    attack = _strongest(table, key[1], [line for _, line in told])
    if attack is None:
        return None
    dialled: dict[str, list[Point]] = {}
    fixed: list[Point] = []
    for lam, line in told:
        one = line.view.startswith(PREFIX)
        name = line.view if one else line.label
        point = Point(name, lam, line.cells["clean"], line.cells[attack])
        (dialled.setdefault(curve_label(line), []) if one else fixed).append(point)
    if all(len(points) < 2 for points in dialled.values()):
        return None
    curves = [*dialled.items(), *([(FIXED, fixed)] if fixed else [])]
    everything = [point.at for _, points in curves for point in points]
    marked = tuple(
        Curve(
            label,
            tuple(
                replace(point, dominated=dominated(point.at, everything))
                for point in sorted(points, key=lambda point: point.lam)
            ),
        )
        for label, points in curves
    )
    against = [point.at for point in fixed]
    comparisons = [
        compared(label, [p.at for p in points], against) for label, points in dialled.items()
    ]
    dataset, norm, eps = key
    detail = next((c.detail for c in table.columns if c.key == attack and c.detail), "")
    words = ", ".join(word for word in (title(attack), detail or f"{norm} {fraction(eps)}") if word)
    return Frontier(attack, f"{dataset}: {words}", marked, tuple(comparisons if fixed else ()))


def _strongest(table: Table, norm: str, lines: Sequence[Line]) -> str | None:
    """The attack in `norm` under which all lines were measured that leaves the least."""
    norms = {row.name: row.norm for line in lines for run in line.runs for row in run.rows}
    attacks = [c.key for c in table.columns if norms.get(c.key) == norm]
    shared = [key for key in attacks if all(key in line.cells for line in lines)]
    return min(shared, key=lambda key: sum(line.cells[key].value for line in lines), default=None)


def dominated(point: tuple[float, float], others: Iterable[tuple[float, float]]) -> bool:
    """Whether one of `others` is as good in both and not the same."""
    return any(
        other != point and all(a >= b for a, b in zip(other, point, strict=True))
        for other in others
    )


def area(points: Iterable[tuple[float, float]]) -> float:
    """Of the union of the rectangles from the origin to each point."""
    total, height = 0.0, 0.0
    for x, y in sorted(points, reverse=True):  # from the right; a strip for each new height
        if y > height:
            total += x * (y - height)
            height = y
    return total


def compared(
    label: str, points: Sequence[tuple[float, float]], fixed: Sequence[tuple[float, float]]
) -> Comparison:
    """What the curve of `points` reaches beyond that of `fixed`, and what it misses of it."""
    union = area([*points, *fixed])
    return Comparison(label, union - area(fixed), union - area(points))

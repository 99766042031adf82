"""The frontier in words: cells of its table, sentences about areas, Markdown, LaTeX and CSV."""

import csv
import io
from collections.abc import Iterator, Sequence

from advtrain.reporting.frontier import Comparison, Curve, Frontier, Point
from advtrain.reporting.markup import LATEX, MARKDOWN, Markup, latex_table, pipes
from advtrain.reporting.measures import Cell
from advtrain.reporting.wording import percent

HEADING = "Standard against robust accuracy"
HEAD = ("curve", "lambda", "standard", "robust", "")
DOMINATED = "dominated"


def caption(frontier: Frontier) -> str:
    return (
        f"{HEADING} in percent, {frontier.words}; {DOMINATED}: another point here is as good in "
        "both and better in one."
    )


def sentences(frontier: Frontier) -> Iterator[str]:
    """The areas, in percent of the unit square."""
    areas = ", ".join(f"{curve.label} {percent(curve.area)}" for curve in frontier.curves)
    yield f"Area below each curve, in percent of the unit square: {areas}."
    for found in frontier.comparisons:
        yield (
            f"Area between {found.label} and the networks of a fixed lambda: "
            f"{percent(found.between)}, of which {percent(found.beyond)} beyond their frontier and "
            f"{percent(found.missed)} short of it."
        )


def cells(curve: Curve, point: Point) -> list[str]:
    marked = DOMINATED if point.dominated else ""
    both = [value_text(point.standard), value_text(point.robust)]
    return [curve.label, f"{point.lam:g}", *both, marked]


def value_text(cell: Cell) -> str:
    return percent(cell.value) + (f" ± {percent(cell.std)}" if cell.std is not None else "")


def markdown(found: Sequence[Frontier]) -> str:
    """A section for each frontier; empty without any."""
    parts = []
    for frontier in found:
        lines = ["", MARKDOWN.text(caption(frontier)), ""]
        lines += pipes(list(HEAD), _body(frontier, MARKDOWN))
        lines += [f"\n{MARKDOWN.text(sentence)}" for sentence in sentences(frontier)]
        parts.append("\n".join(lines) + "\n")
    return "".join(parts)


def latex(found: Sequence[Frontier]) -> str:
    """A booktabs table for each frontier."""
    return "".join(
        latex_table(
            LATEX.text(caption(frontier)),
            list(HEAD),
            _body(frontier, LATEX),
            [LATEX.text(sentence) for sentence in sentences(frontier)],
        )
        for frontier in found
    )


def _body(frontier: Frontier, markup: Markup) -> list[list[str]]:
    return [
        [markup.text(cell) for cell in cells(curve, point)]
        for curve in frontier.curves
        for point in curve.points
    ]


def comma_separated(found: Sequence[Frontier]) -> str:
    """For programs: fractions in full; the areas stand at each point of a curve."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    head = ["frontier", "attack", "curve", "point", "lambda", "standard", "robust", "dominated"]
    writer.writerow([*head, "area", "between", "beyond", "missed"])
    for frontier in found:
        against = {each.label: each for each in frontier.comparisons}
        for curve in frontier.curves:
            for point in curve.points:
                row: list[object] = [frontier.words, frontier.attack, curve.label, point.name]
                row += [point.lam, *point.at, int(point.dominated), curve.area]
                row += _areas(against.get(curve.label))
                writer.writerow([round(v, 8) if isinstance(v, float) else v for v in row])
    return out.getvalue()


def _areas(found: Comparison | None) -> list[float | None]:
    return [None] * 3 if found is None else [found.between, found.beyond, found.missed]

"""A paper's figures in words: beside a number of ours, under a table, and for programs."""

from collections.abc import Sequence

from advtrain.reporting.papers import Figure
from advtrain.reporting.wording import MINUS, percent, points

ENDINGS = ("_published", "_difference", "_verdict")
"""Of the columns of a CSV file that `values` fills."""


def verdict(figure: Figure | None) -> str:
    """`within` or `outside` the interval of ours; nothing where there is none, or no comparison."""
    if figure is None or figure.within is None:
        return ""
    return "within" if figure.within else "outside"


def difference(figure: Figure, *, radius: bool = False) -> str:
    """Ours less the paper's, `+1.20` in points or `-0.012` in units of a radius, or nothing."""
    if figure.difference is None:
        return ""
    if radius:
        return f"{figure.difference:+.3f}".replace("-", MINUS)
    return points(figure.difference)


def figure_text(figure: Figure, *, radius: bool = False, fractions: bool = False) -> str:
    """`53.08`, and where it is compared `53.08 (-0.18, within)`."""
    decimals = 3 if radius else 2
    shown = f"{figure.value:.{decimals}f}" if radius or fractions else percent(figure.value)
    told = ", ".join(filter(None, [difference(figure, radius=radius), verdict(figure)]))
    return f"{shown} ({told})" if told else shown


def values(figure: Figure | None) -> list[object]:
    """For programs: the published value, ours less that, and the verdict."""
    if figure is None:
        return [None] * len(ENDINGS)
    return [figure.value, figure.difference, verdict(figure) or None]


def caption_words(sources: Sequence[str], *, verdicts: bool) -> str:
    """What a caption says of the values beside ours."""
    words = f"beside it the value in {' and '.join(sources) or 'the paper'}"
    if verdicts:
        words += (
            ", in brackets ours less that, and whether it lies within the 95 % interval of ours "
            "(of several seeds: where one more run would lie)"
        )
    return words

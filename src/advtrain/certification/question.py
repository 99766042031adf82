"""What an adaptive certification asks: the radii of a list, or a radius to within a width."""

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from math import ceil, floor, inf, log, log1p

from advtrain.certification.log import Certificate, parse

MULTIPLES = 1000  # of a width: each costs a test of its own, some 0.03 seconds


def multiples(width: float, largest: float) -> list[float]:
    """The radii width, 2 width, ... up to `largest`: the one certified is less than `width` short.

    Short of what is clear from the draws, that is, and of `largest`. ValueError: there are none, or
    too many.
    """
    count = floor(largest / width)
    if not 1 <= count <= MULTIPLES:
        raise ValueError(
            f"width={width:g} is refused; give a number from {largest / MULTIPLES:.3g} to "
            f"{largest:.6f}, the largest radius that the n draws can certify."
        )
    return as_written(width * step for step in range(1, count + 1))


def as_written(radii: Iterable[float]) -> list[float]:
    """`radii` as certify.tsv tells them, cut to nine decimals: what is asked is what is read."""
    return [parse(Certificate(0, 0, 0, each, 0.0).line()).radius for each in radii]


def require_radii(
    radii: Sequence[float],
    n: int,
    alpha: float,
    *,
    largest: float,
    needed: Callable[[float], float],
) -> None:
    """Raise ValueError where `n` draws cannot say which of `radii` an image has.

    They must ascend, be at least 0 and at most `largest`, which n equal answers certify; `needed`
    is the rate that certifies a radius.
    """
    shown = f"radii={list(radii)}"
    if not radii:
        raise ValueError(f"{shown} asks nothing. Write radii=[0.25,0.5], or null for the radius.")
    ascending = all(a < b for a, b in pairwise(radii))
    if not ascending or not all(0 <= each < inf for each in radii):
        raise ValueError(
            f"{shown} is refused: radii are numbers from 0 on, ascending, each only once, such as "
            "radii=[0.25,0.5]."
        )
    if radii[-1] > largest:
        missing = 1 - needed(radii[-1])
        enough = (
            f"needs n={ceil(log(alpha) / log1p(-missing))}"
            if missing > 0
            else "no number of draws will do"
        )
        raise ValueError(
            f"{shown} goes too far: n={n} draws certify radii up to {largest:.6f} at "
            f"alpha={alpha:g}, and {radii[-1]:g} {enough}. Leave it out, or draw more."
        )

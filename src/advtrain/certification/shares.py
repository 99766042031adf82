"""Shares of examples that are certified, and what of them holds with high probability.

Each certificate may be false with probability alpha, so of a certified share a little may be due
to chance. Cohen et al. 2019 (https://arxiv.org/abs/1902.02918, appendix) take off what false
certificates can make up: their number is at most a binomial one, bounded by Bernstein's inequality.
"""

from collections.abc import Sequence
from math import fsum, log, sqrt

RHO = 0.001
"""With probability 1 - RHO over the noise, the share is at least the one of high probability."""


def certified_share(radii: Sequence[float], radius: float) -> float:
    """The fraction of examples whose certificate reaches `radius`; of wrong answers radii are -1.

    An example that is certified at radius 0 has the right answer and was not abstained on.
    """
    return sum(each >= radius for each in radii) / len(radii)


def average_radius(radii: Sequence[float]) -> float:
    """ACR: the mean over all examples of the radius, 0 where the answer is wrong (radius -1)."""
    return fsum(max(each, 0.0) for each in radii) / len(radii)


def high_probability(share: float, examples: int, alpha: float, rho: float = RHO) -> float:
    """share - alpha - sqrt(alpha (1 - alpha) ln(1/rho) / N) - ln(1/rho) / (3 N), at least 0.

    A lower bound of the share of these `examples` that are right everywhere within the radius.

    This is the formula of the authors' code, and what their figures show. Bernstein's inequality
    has 2 ln(1/rho) under the root. Without the 2, as here, rho = 0.001 holds for 500 examples
    (exact binomial tail: 0.0002 at alpha = 0.001), while for 10,000 the bound may fail with
    probability 0.0016 (0.003 at alpha = 0.01), and never with more than 0.005.

    Differs: the authors let it become negative.
    """
    chance = log(1 / rho)
    loss = alpha + sqrt(alpha * (1 - alpha) * chance / examples) + chance / (3 * examples)
    return max(0.0, share - loss)

"""The numbers of a certification: `certified` in results.json, from certificates alone.

Certified accuracy at radius r: the share of examples with the right class and a radius of at least
r, abstentions counting as wrong (Cohen et al. 2019). ACR, the average certified radius: the mean
over all examples of the radius where the class is right, else 0 (Zhai et al. 2020).
"""

from collections.abc import Sequence
from math import floor
from typing import TypedDict

from advtrain.certification.bounds import largest_radius
from advtrain.certification.log import Certificate
from advtrain.certification.shares import average_radius, certified_share, high_probability

STEP = 0.25  # of the default radii, as in the paper's tables


class Summary(TypedDict):
    """accuracy, accuracy_at_radius and abstain are fractions of `examples`.

    high_probability: what of accuracy_at_radius holds for all certificates together, see `shares`.
    """

    sigma: float
    n0: int
    n: int
    alpha: float
    examples: int
    accuracy: float
    acr: float
    accuracy_at_radius: dict[str, float]
    high_probability: dict[str, float]
    abstain: float


def summarise(
    certificates: Sequence[Certificate],
    *,
    sigma: float,
    n0: int,
    n: int,
    alpha: float,
    radii: Sequence[float] | None = None,
) -> Summary:
    """The summary of certificates that were all made with `sigma`, `n0`, `n` and `alpha`.

    Without `radii`, those of `default_radii` under Gaussian noise. accuracy is the one at radius 0.
    Each certificate holds with probability at least 1 - alpha, so up to a share alpha of them may
    be expected not to.

    ValueError: no certificates; the same image twice.
    """
    examples = len(certificates)
    if examples == 0:
        raise ValueError("there are no certificates to summarise. Certify at least one example.")
    if len({each.index for each in certificates}) < examples:
        raise ValueError("an image was certified twice; keep one certificate of each index.")
    reached = [each.radius if each.correct else -1.0 for each in certificates]
    if radii is None:
        radii = default_radii(largest_radius(sigma, n, alpha))
    shares = {name(radius): certified_share(reached, radius) for radius in radii}
    return Summary(
        sigma=sigma,
        n0=n0,
        n=n,
        alpha=alpha,
        examples=examples,
        accuracy=certified_share(reached, 0.0),
        acr=average_radius(reached),
        accuracy_at_radius=shares,
        high_probability={
            key: high_probability(share, examples, alpha) for key, share in shares.items()
        },
        abstain=sum(each.prediction == -1 for each in certificates) / examples,
    )


def default_radii(largest: float) -> list[float]:
    """Steps of 0.25 up to the `largest` radius that can be certified, and at least up to 0.5."""
    steps = max(2, floor(largest / STEP))
    return [STEP * step for step in range(1, steps + 1)]


def name(radius: float) -> str:
    """The key of a radius: two decimals, more where it has more (0.25, 0.50, 0.125)."""
    short = f"{radius:.2f}"
    return short if float(short) == radius else f"{radius:g}"

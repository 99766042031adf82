"""Where attacks set out from: `(x, threat, generator=None) -> x0`, shape of x.

An attack projects what it gets, so a start need not lie in the set. Published attacks disagree on
theirs: uniform (Madry et al. 2018), Gaussian of 0.001 (TRADES), corners of a cube (GAT, NuAT).
"""

from torch import Generator, Tensor

from advtrain import draws
from advtrain.draws import signs
from advtrain.ranges import Eps, NonNegative
from advtrain.types import Start, Threat


def clean(x: Tensor, threat: Threat, generator: Generator | None = None) -> Tensor:
    """The images themselves. Draws nothing."""
    return x


def uniform(x: Tensor, threat: Threat, generator: Generator | None = None) -> Tensor:
    """Uniform in the ball, clipped to the box."""
    return threat.sample(x, generator)


def normal(*, std: NonNegative) -> Start:
    """Gaussian noise of standard deviation `std` on each pixel."""

    def start(x: Tensor, threat: Threat, generator: Generator | None = None) -> Tensor:
        return draws.normal(x, generator, std=std).add_(x)

    return start


def bernoulli(*, size: Eps) -> Start:
    """Each pixel moves by `size`, up or down with equal chance."""

    def start(x: Tensor, threat: Threat, generator: Generator | None = None) -> Tensor:
        return signs(x, generator).mul_(size).add_(x)

    return start

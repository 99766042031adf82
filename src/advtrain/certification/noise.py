"""Kinds of noise for smoothing: how each is drawn, and what the rate of a class under it certifies.

A kind is drawn with standard deviation 1, and sigma scales it: sigma is the standard deviation of
each pixel's noise whatever the kind. Let p > 1/2 be a lower bound on the rate of a class around x.

Gaussian, l2 (Cohen et al. 2019, https://arxiv.org/abs/1902.02918, theorem 1): R = sigma Phi^-1(p).

Uniform on [-lambda, lambda]^d, l1 (Lee et al. 2019, https://arxiv.org/abs/1906.04948; Yang et al.
2020, https://arxiv.org/abs/2002.08118): R = 2 lambda (p - 1/2), below lambda. For the cubes of
noise around x and x + delta share a part prod_i (1 - |delta_i| / 2 lambda), no less than
1 - |delta|_1 / 2 lambda, of their volume, so no rate changes by more than |delta|_1 / 2 lambda.
lambda = sqrt(3) sigma, as in the code of Yang et al.

In linf a point within eps is within eps d^(1/2) in l2 and eps d in l1, so radii shrink by these
factors: to 1/28 and 1/784 on MNIST, 1/55 and 1/3072 on CIFAR. No certificate of this kind does
much better in many dimensions (Kumar et al. 2020, https://arxiv.org/abs/2002.03239).

This is exact arithmetic. Noise and sums are float32 numbers here as in the published code; a
network made for the purpose can tell x from a neighbour by the last bits of x + noise (Voracek and
Hein 2023, https://arxiv.org/abs/2207.07209).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import exp, log, sqrt
from statistics import NormalDist
from typing import TYPE_CHECKING, ClassVar, Protocol

import numpy as np
from numpy.typing import ArrayLike

from advtrain.certification.bounds import (
    COUNT,
    LEVEL,
    POSITIVE,
    Floats,
    largest_radius,
    radius,
)
from advtrain.ranges import require

if TYPE_CHECKING:  # reports read the names of noises, and need no torch
    from torch import Generator, Tensor


class Noise(Protocol):
    """What smoothing needs of a kind of noise. Radii and sigma are in pixel units of [0, 1].

    order: of the norm of its radii, 1 or 2.
    """

    name: ClassVar[str]
    order: ClassVar[int]

    def fill(self, out: "Tensor", stream: "Generator") -> None:
        """Overwrite `out` with independent draws of mean 0 and variance 1."""
        ...

    def radius(self, p_low: ArrayLike, sigma: float) -> Floats:
        """The radius within which a class of at least that rate stays on top; 0 up to 1/2."""
        ...

    def rate(self, radius: float, sigma: float) -> float:
        """The rate that certifies `radius`, which is not negative; above 1 where none does."""
        ...

    def largest(self, sigma: float, n: int, alpha: float) -> float:
        """The radius when all `n` draws agree; 0 where `n` is too small for any certificate."""
        ...


@dataclass(frozen=True)
class Gaussian:
    """N(0, sigma^2) on each pixel: l2 radii."""

    name: ClassVar[str] = "gaussian"
    order: ClassVar[int] = 2

    def fill(self, out: "Tensor", stream: "Generator") -> None:
        out.normal_(generator=stream)

    def radius(self, p_low: ArrayLike, sigma: float) -> Floats:
        return radius(p_low, sigma)

    def rate(self, radius: float, sigma: float) -> float:
        return NormalDist().cdf(radius / sigma)

    def largest(self, sigma: float, n: int, alpha: float) -> float:
        return largest_radius(sigma, n, alpha)


@dataclass(frozen=True)
class Uniform:
    """Uniform on [-lambda, lambda], lambda = sqrt(3) sigma, on each pixel: l1 radii."""

    name: ClassVar[str] = "uniform"
    order: ClassVar[int] = 1

    def fill(self, out: "Tensor", stream: "Generator") -> None:
        out.uniform_(-sqrt(3), sqrt(3), generator=stream)

    def radius(self, p_low: ArrayLike, sigma: float) -> Floats:
        p = np.asarray(p_low, dtype=np.float64)
        return 2 * sqrt(3) * sigma * np.maximum(p - 0.5, 0.0)

    def rate(self, radius: float, sigma: float) -> float:
        return 0.5 + radius / (2 * sqrt(3) * sigma)

    def largest(self, sigma: float, n: int, alpha: float) -> float:
        require("sigma", sigma, POSITIVE)
        require("n", n, COUNT)
        require("alpha", alpha, LEVEL)
        return float(self.radius(exp(log(alpha) / n), sigma))


GAUSSIAN = Gaussian()
KINDS: Mapping[str, Noise] = {kind.name: kind for kind in (GAUSSIAN, Uniform())}


def norm(noise: Noise) -> str:
    """The norm of the radii of `noise`: l1 or l2."""
    return f"l{noise.order}"


def linf(radius: float, noise: Noise, dimensions: int) -> float:
    """The linf radius that a radius of `noise` implies for images of that many numbers."""
    return float(radius * dimensions ** (-1 / noise.order))

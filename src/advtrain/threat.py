"""Sets of perturbations: balls of the l-infinity, l2 and l1 norm, cut with the box of pixels.

The norm lives here and nowhere else: attacks speak of projecting, of the steepest direction and
of sampling. Images have shape (N, C, H, W) or (N, D); N may be 0. Radii are in pixel units.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import inf, log2
from typing import ClassVar

import torch
from torch import Generator, Tensor

from advtrain import hyperplane
from advtrain.draws import exponential, normal, signs, uniform
from advtrain.ranges import Eps, NonNegative

PIXELS = 3 * 512 * 512  # of the largest image that the bounds on l2 and l1 radii allow for


@dataclass(frozen=True)
class Ball:
    """What the three sets share: a radius, a box, and lengths in a norm and in its dual.

    ValueError at construction if eps is absurd, that is outside [0, `largest`], or if the box is
    empty. An infinite `low` and `high` leave images unclipped.
    """

    norm: ClassVar[str]
    order: ClassVar[float]
    dual: ClassVar[float]
    largest: ClassVar[float]
    reason: ClassVar[str]

    eps: NonNegative
    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        name = type(self).__name__
        if not 0 <= self.eps <= self.largest:
            raise ValueError(
                f"{name}.eps is {self.eps}, outside [0, {self.largest:g}], {self.reason}"
            )
        if not self.low < self.high:
            raise ValueError(
                f"{name}.low is {self.low} and {name}.high is {self.high}; the box of pixels "
                "needs low < high. Leave both out for [0, 1]."
            )

    def around(self, x: Tensor) -> Callable[[Tensor], Tensor]:
        """`project` with centre and radius bound, so that a loop computes bounds once.

        Returns a new tensor, in the ball around `x` and in the box up to float rounding. The radius
        is a tensor inside: a compiled program serves all of them.
        """
        raise NotImplementedError

    def project(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """A point of the ball around `x` and of the box; points of both sets stay."""
        return self.around(x)(x_adv)

    def distance(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """The norm of `x_adv - x` per example, shape (N,), float32 or wider."""
        return _length(_wide(x_adv) - _wide(x), self.order).flatten()

    def reach(self, x: Tensor, w: Tensor, gap: Tensor) -> Tensor:
        """The nearest point to `x` in the box at which <w, .> has grown by `gap`, (N,).

        `w`, finite, has the shape of `x`. Exact up to rounding but for planes near a corner of the
        box; with no such point in the box, towards the corner that comes closest.
        """
        rows, normal = _wide(x).flatten(1), _wide(w).flatten(1)
        nearest = {inf: hyperplane.linf, 2: hyperplane.l2, 1: hyperplane.l1}[self.order]
        need = gap.to(rows.dtype).unsqueeze(1)
        z = nearest(rows, normal, need, low=self.low, high=self.high)
        return z.reshape(x.shape).to(x.dtype)

    def support(self, w: Tensor) -> Tensor:
        """max of <w, d> over the ball, per row of `w` (N, D): eps times the dual norm, (N,).

        The box plays no part, so this is exact only for images that are not clipped.
        """
        return self.eps * _length(w, self.dual).flatten()

    def _boxed(self, x: Tensor) -> Tensor:
        return x.clamp(self.low, self.high)


@dataclass(frozen=True)
class Linf(Ball):
    """Each pixel moves by at most eps, in [0, 1]."""

    norm: ClassVar[str] = "linf"
    order: ClassVar[float] = inf
    dual: ClassVar[float] = 1.0
    largest: ClassVar[float] = 1.0
    reason: ClassVar[str] = "the range of a pixel. Write 8/255, not 8."

    eps: Eps

    def around(self, x: Tensor) -> Callable[[Tensor], Tensor]:
        """The exact projection: ball and box are both boxes, and so is their intersection."""
        lower = (x - self.eps).clamp_(min=self.low)
        upper = (x + self.eps).clamp_(max=self.high)
        return lambda x_adv: x_adv.clamp(lower, upper)

    def steepest(self, gradient: Tensor) -> Tensor:
        """The sign. 0 where the gradient is 0 or NaN."""
        return gradient.sign()

    def sample(self, x: Tensor, generator: Generator | None = None) -> Tensor:
        """Uniform in the ball around `x`, then clipped to the box."""
        return self._boxed(uniform(x, -self.eps, self.eps, generator).add_(x))


@dataclass(frozen=True)
class L2(Ball):
    """The Euclidean length of the perturbation is at most eps.

    eps may exceed 1: up to 887, the diameter of the box of a 3x512x512 image.
    """

    norm: ClassVar[str] = "l2"
    order: ClassVar[float] = 2.0
    dual: ClassVar[float] = 2.0
    largest: ClassVar[float] = PIXELS**0.5
    reason: ClassVar[str] = "the diameter of the box of a 3x512x512 image. Write 128/255, not 128."

    eps: NonNegative

    def around(self, x: Tensor) -> Callable[[Tensor], Tensor]:
        """Shorten to eps, then clip to the box.

        Clipping towards a box that holds `x` shortens each component, so the result lies in both
        sets; it is not the nearest such point, which would take an iteration.
        """
        eps = _wide(x).new_full((), self.eps)

        def project(x_adv: Tensor) -> Tensor:
            delta = _wide(x_adv) - _wide(x)
            length = _length(delta, 2)
            factor = (length.clamp_min(_tiny(length)).reciprocal() * eps).clamp_max(1)
            return self._boxed(torch.addcmul(_wide(x), delta, factor).to(x.dtype))

        return project

    def steepest(self, gradient: Tensor) -> Tensor:
        """The gradient at unit length. Components that are not finite count as 0.

        The length is summed in float64: squares of the gradients of a confident network, 1e-20
        and less, are 0 in float32, and the attack would stand still without reason.
        """
        finite = _wide(gradient).nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
        length = _length(finite, 2, torch.float64).to(finite.dtype)
        return finite.div_(length.clamp_min(_tiny(length))).to(gradient.dtype)

    def sample(self, x: Tensor, generator: Generator | None = None) -> Tensor:
        """Uniform in the ball around `x`, then clipped to the box.

        A Gaussian direction, and a radius of eps u^(1/D) since volume grows as radius^D.
        """
        direction = self.steepest(normal(x, generator))
        radius = _uniform(x, generator).pow_(1 / _pixels(x)).mul_(self.eps)
        return self._boxed(x + direction * radius)


@dataclass(frozen=True)
class L1(Ball):
    """The pixels together move by at most eps; at most 786,432, the count of a 3x512x512 image."""

    norm: ClassVar[str] = "l1"
    order: ClassVar[float] = 1.0
    dual: ClassVar[float] = inf
    largest: ClassVar[float] = float(PIXELS)
    reason: ClassVar[str] = "the diameter of the box of a 3x512x512 image. Write 12, not 12 * 255."

    eps: NonNegative

    def around(self, x: Tensor) -> Callable[[Tensor], Tensor]:
        """The nearest point of ball and box together, as in l1-APGD (Croce and Hein 2021).

        All magnitudes shrink by the same theta, and none exceeds its room up to the face of the
        box; theta is such that they sum to eps. It is found by halving an interval, which costs
        less than the sort of the closed form.
        """
        centre = _wide(x).flatten(1)
        above, below = self.high - centre, centre - self.low
        eps = centre.new_full((), self.eps)

        def project(x_adv: Tensor) -> Tensor:
            delta = _wide(x_adv).flatten(1) - centre
            size, room = delta.abs(), above.where(delta > 0, below)
            shrunk = _shortened(size, room, eps).copysign_(delta)
            return self._boxed(shrunk.add_(centre).reshape(x.shape).to(x.dtype))

        return project

    def steepest(self, gradient: Tensor) -> Tensor:
        """All length on the pixel of largest gradient, the first of them at a tie."""
        flat = gradient.flatten(1).nan_to_num()
        largest = flat.abs().argmax(1, keepdim=True)
        sparse = torch.zeros_like(flat).scatter_(1, largest, flat.gather(1, largest).sign())
        return sparse.reshape(gradient.shape)

    def sample(self, x: Tensor, generator: Generator | None = None) -> Tensor:
        """Uniform in the ball around `x`, then clipped to the box.

        D of D + 1 exponentials over their sum are uniform in the simplex {d >= 0, sum d <= 1};
        random signs carry it to all orthants.
        """
        shape = (len(x), _pixels(x) + 1)
        weights = exponential(x.new_empty(shape), generator)
        weights = weights[:, 1:] * (self.eps / weights.sum(1, keepdim=True))
        return self._boxed(x + weights.mul_(signs(weights, generator)).reshape(x.shape))


def _wide(x: Tensor) -> Tensor:
    """`x` in float32 at least: lengths in half precision would lose the ball's edge."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _length(delta: Tensor, order: float, dtype: torch.dtype | None = None) -> Tensor:
    dimensions = tuple(range(1, delta.ndim))
    if order == 2:
        return torch.linalg.vector_norm(delta, 2, dim=dimensions, keepdim=True, dtype=dtype)
    size = delta.abs()  # a processor takes ten times as long over vector_norm
    return size.amax(dimensions, True) if order == inf else size.sum(dimensions, True)


def _shortened(size: Tensor, room: Tensor, total: Tensor) -> Tensor:
    """min(size - theta, room), at least 0, with the least theta >= 0 for which rows sum to `total`.

    size and room (N, D), not negative. Rows that sum to less keep theta = 0.
    """
    none = size.new_zeros(())

    def shrink(theta: Tensor | float) -> Tensor:
        return torch.clamp(size - theta, none, room)

    most = size.amax(1, keepdim=True)
    theta = most
    for i in range(1, _halvings(size.dtype)):
        lower = torch.sub(theta, most, alpha=0.5**i)
        theta = lower.where(shrink(lower).sum(1, keepdim=True) <= total, theta)
    fits = shrink(0.0).sum(1, keepdim=True) <= total
    return shrink(theta.masked_fill(fits, 0.0))


def _halvings(dtype: torch.dtype) -> int:
    """How often a number may be halved before it is rounding, and some more."""
    return 6 - round(log2(torch.finfo(dtype).eps))


def _tiny(length: Tensor) -> float:
    return torch.finfo(length.dtype).tiny


def _pixels(x: Tensor) -> int:
    return x.shape[1:].numel()


def _uniform(x: Tensor, generator: Generator | None) -> Tensor:
    """One draw of U[0, 1) per example, shaped to multiply `x`."""
    return uniform(x.new_empty((len(x), *[1] * (x.ndim - 1))), 0, 1, generator)

"""Schedules: pure functions of the moment, for rates, radii and weights of terms.

Time is counted in weight updates and read before the update, so the first one sees 0:
`step` = updates done, `epoch` = step / steps per epoch (fractional), `progress` = step / steps of
the run, in [0, 1). Replays are steps: an epoch of `dataset.replays=8` has eight times as many, and
`epoch` rises by 1 over all of them. `unit` says which of the three clocks a schedule reads.

Differs: Rice et al. 2020 read the clock one update later, so their last update before a drop
already has the lower rate; PyTorch's CyclicLR reads it as here.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import cos, pi
from typing import Literal

from advtrain.ranges import Decay, NonNegative, Positive, Probability
from advtrain.types import Moment, Schedule


@dataclass(frozen=True)
class Constant:
    """The same number at every moment."""

    value: NonNegative

    def __call__(self, now: Moment) -> float:
        return self.value


@dataclass(frozen=True)
class Piecewise:
    """Straight lines between (points[i], values[i]); flat before the first and after the last.

    Two equal points make a jump: from that point on, the second value holds. ValueError: no
    points, lengths that differ, or points that fall.
    """

    points: Sequence[float]
    values: Sequence[NonNegative]
    unit: Literal["step", "epoch", "progress"]

    def __post_init__(self) -> None:
        if not self.points or len(self.points) != len(self.values):
            raise ValueError(
                f"Piecewise has {len(self.points)} points and {len(self.values)} values; "
                "give one value for each point, and at least one."
            )
        _require_rising("Piecewise.points", self.points)

    def __call__(self, now: Moment) -> float:
        time: float = getattr(now, self.unit)
        after = bisect_right(self.points, time)
        if after in (0, len(self.points)):
            return self.values[0 if after == 0 else -1]
        (start, end), (low, high) = (x[after - 1 : after + 1] for x in (self.points, self.values))
        return low + (high - low) * (time - start) / (end - start)


@dataclass(frozen=True)
class Staircase:
    """`base`, multiplied by `factor` once for each of `drops` that has been reached."""

    base: NonNegative
    factor: Positive
    drops: Sequence[float]
    unit: Literal["step", "epoch", "progress"]

    def __post_init__(self) -> None:
        _require_rising("Staircase.drops", self.drops)

    def __call__(self, now: Moment) -> float:
        reached = bisect_right(self.drops, getattr(now, self.unit))
        return self.base * self.factor**reached


@dataclass(frozen=True)
class Cosine:
    """A line from 0 to `base` during the share `warmup` of the run, then half a cosine to `end`.

    (Loshchilov and Hutter 2017, https://arxiv.org/abs/1608.03983, eq. 5, without restarts.) With a
    warm-up the first update has rate 0.
    """

    base: NonNegative
    warmup: Decay
    end: NonNegative

    def __call__(self, now: Moment) -> float:
        if now.progress < self.warmup:
            return self.base * now.progress / self.warmup
        share = (now.progress - self.warmup) / (1 - self.warmup)
        return self.end + (self.base - self.end) * (1 + cos(pi * share)) / 2


@dataclass(frozen=True)
class Epochwise:
    """`schedule` as it is at the beginning of the epoch, through all of that epoch."""

    schedule: Schedule

    def __call__(self, now: Moment) -> float:
        if now.step == 0:
            return self.schedule(now)
        total, first = round(now.step / now.progress), now.step - now.batch  # steps
        start = replace(now, step=first, epoch=int(now.epoch), progress=first / total)
        return self.schedule(start)


def cyclic(
    *, base: NonNegative, peak: Probability, start: NonNegative, end: NonNegative
) -> Schedule:
    """A line from `start` to `base` at progress `peak`, then a line to `end` at the run's end."""
    return Piecewise((0.0, peak, 1.0), (start, base, end), "progress")


def _require_rising(key: str, points: Sequence[float]) -> None:
    if any(left > right for left, right in pairwise(points)):
        raise ValueError(f"{key} is {list(points)}; write the points in rising order.")

"""How a run of APGD moves, and when it changes the size of its steps.

`Halving` is the rule of Croce and Hein 2020 (https://arxiv.org/abs/2003.01690, algorithm 1) for
l-infinity and l2: steps with momentum, halved where the loss rises too rarely. `Sparse` is that of
Croce and Hein 2021 (https://arxiv.org/abs/2103.01208, l1-APGD): steps on few pixels, the fewer the
sparser the best perturbation is. A change of size may take a run back to its best point and the
gradient there; momentum then leads to it from the last point but one before the jump.

eta in the papers is `size`; rho is `RISING`, alpha `WEIGHT`, k / d `density`, f_max `peak`.

Differs, all but the last as in the authors' code: shares of the steps are rounded down; the first
condition holds at equality too; the second cannot hold in the first review; and there the first
loss is compared with 0 instead of the loss at the start. For l1 the authors also count pixels as
changed that only rounding has moved; we count those that moved by more than eps / 1e6.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Generic, NamedTuple, Self, TypeVar

import torch
from torch import Generator, Tensor

from advtrain.rows import per_image, select
from advtrain.types import Threat

WEIGHT = 0.75  # of the new step; the rest is momentum
RISING = 0.75  # share of steps on which the loss must rise
Project = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Memory:
    """Tensors with one row per example that a rule keeps for itself."""

    def __getitem__(self, rows: Tensor) -> Self:
        return type(self)(*(part[rows] for part in vars(self).values()))


M = TypeVar("M", bound=Memory)


class State(NamedTuple, Generic[M]):
    """Where each example is, one row each. x_adv is its best point, and no longer moves once that
    fools; `peak` (B,) and `best_gradient` are the loss and the gradient there."""

    x: Tensor
    y: Tensor
    target: Tensor
    point: Tensor
    gradient: Tensor
    size: Tensor
    x_adv: Tensor
    best_gradient: Tensor
    peak: Tensor
    fooled: Tensor
    memory: M


@dataclass(frozen=True)
class Momentum(Memory):
    """The point and the loss before, and what happened since the last review."""

    previous: Tensor
    value: Tensor
    rises: Tensor
    peak: Tensor
    halved: Tensor


@dataclass(frozen=True)
class Halving:
    """Steps of at most 2 eps, half as long wherever a review finds that they lead nowhere."""

    threat: Threat
    steps: int

    @property
    def first(self) -> float:
        return 2 * self.threat.eps

    @cached_property
    def reviews(self) -> dict[int, int]:
        """First after 22 % of the steps, then at intervals 3 % shorter each, at least 6 %."""
        window, least, less = (max(share * self.steps // 100, 1) for share in (22, 6, 3))
        done, windows = window, {}
        while done <= self.steps:
            windows[done] = window
            window = max(window - less, least)
            done += window
        return windows

    def noise(self, x: Tensor, generator: Generator | None) -> Tensor:
        """Uniform in a cube for l-infinity, Gaussian otherwise."""
        draws = torch.empty_like(x)
        if self.threat.norm == "linf":
            return draws.uniform_(-1, 1, generator=generator)
        return draws.normal_(generator=generator)

    def start(self, x: Tensor, noise: Tensor) -> Tensor:
        """The noise at length eps."""
        length = self.threat.distance(noise, torch.zeros_like(noise)).clamp_(min=1e-12)
        factor = per_image(self.threat.eps / length, x).to(x.dtype)
        return torch.addcmul(x, factor, noise)

    def begin(self, state: State[Momentum], *, warm: bool) -> Momentum:
        return Momentum(
            previous=state.point,
            value=torch.zeros_like(state.peak),
            rises=torch.zeros_like(state.y),
            peak=state.peak,
            halved=torch.ones_like(state.fooled),
        )

    def move(self, state: State[Momentum], project: Project, done: int) -> Tensor:
        direction = self.threat.steepest(state.gradient)
        ahead = project(torch.addcmul(state.point, state.size, direction))
        if not done:
            return ahead
        onward = torch.lerp(state.memory.previous, state.point, 2.0)  # x + (x - previous)
        return project(ahead.lerp_(onward, 1 - WEIGHT))

    def note(self, state: State[Momentum], value: Tensor) -> Momentum:
        memory = state.memory
        rises = memory.rises + (value > memory.value)
        return replace(memory, previous=state.point, value=value, rises=rises)

    def review(self, state: State[Momentum], done: int) -> State[Momentum]:
        """Conditions 1 and 2 of the paper, per example."""
        memory = state.memory
        rarely = memory.rises <= RISING * self.reviews[done]
        stuck = ~memory.halved & (state.peak <= memory.peak)
        halved = rarely | stuck
        anew = replace(memory, rises=torch.zeros_like(memory.rises), peak=state.peak, halved=halved)
        size = torch.where(per_image(halved, state.size), state.size / 2, state.size)
        return back(state, halved)._replace(size=size, memory=anew)


@dataclass(frozen=True)
class Sparsity(Memory):
    """The share of pixels that a step moves, and how many the best point had changed."""

    density: Tensor
    changed: Tensor


@dataclass(frozen=True)
class Sparse:
    """Steps of at most eps on the pixels of largest gradient, two thirds of the changed ones."""

    threat: Threat
    steps: int

    @property
    def first(self) -> float:
        return self.threat.eps

    @cached_property
    def reviews(self) -> dict[int, int]:
        """After each 4 % of the steps."""
        window = max(4 * self.steps // 100, 1)
        return dict.fromkeys(range(window, self.steps + 1, window), window)

    def noise(self, x: Tensor, generator: Generator | None) -> Tensor:
        return torch.empty_like(x).normal_(generator=generator)

    def start(self, x: Tensor, noise: Tensor) -> Tensor:
        return x + noise

    def begin(self, state: State[Sparsity], *, warm: bool) -> Sparsity:
        changed = self._changed(state)
        if warm:
            return Sparsity(_density(changed, state.x), changed)
        pixels = state.x[:1].numel()
        return Sparsity(torch.full_like(changed, 0.2), torch.full_like(changed, pixels))

    def move(self, state: State[Sparsity], project: Project, done: int) -> Tensor:
        gradient = state.gradient.flatten(1)
        strength, pixels = gradient.abs(), gradient.shape[1]
        weaker = ((1 - state.memory.density) * pixels).long().clamp_(0, pixels - 1)
        least = strength.sort(dim=1).values.gather(1, weaker.unsqueeze(1))
        signs = gradient.sign().mul_(strength >= least)
        share = state.size.flatten(1) / signs.count_nonzero(1).clamp_(min=1).unsqueeze(1)
        return project(state.point + signs.mul_(share).view_as(state.point))

    def note(self, state: State[Sparsity], value: Tensor) -> Sparsity:
        return state.memory

    def review(self, state: State[Sparsity], done: int) -> State[Sparsity]:
        """Full length again where the best point has grown sparser by 5 %, else a third less."""
        changed = self._changed(state)
        sparser = changed < 0.95 * state.memory.changed
        size = (state.size / 1.5).clamp_(min=self.first / 10)
        size = size.masked_fill(per_image(sparser, size), self.first)
        memory = Sparsity(_density(changed, state.x), changed)
        return back(state, sparser)._replace(size=size, memory=memory)

    def _changed(self, state: State[Sparsity]) -> Tensor:
        """How many pixels the best point has moved by more than rounding may, (B,)."""
        moved = (state.x_adv - state.x).abs() > 1e-6 * self.threat.eps
        return moved.flatten(1).sum(1).to(state.peak.dtype)


def back(state: State[M], rows: Tensor) -> State[M]:
    """`state` with those rows (B,) at their best point, and with the gradient there."""
    return state._replace(
        point=select(rows, state.x_adv, state.point),
        gradient=select(rows, state.best_gradient, state.gradient),
    )


def _density(changed: Tensor, x: Tensor) -> Tensor:
    return changed / x.shape[1:].numel() / 1.5


Rule = Halving | Sparse

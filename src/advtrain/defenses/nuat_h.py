"""Hybrid NuAT, NuAT-H: one step as in NuAT, two as in NuAT2 where training seems to go wrong.

Sriramanan et al. 2021 (https://openreview.net/forum?id=kuK2VARZGnI; loss and attacks as in nuat.py
and nuat2.py) say that it switches adaptively between the two, and show the cross-entropy of clean
images for it. Their rule, its thresholds and code are not published.

Ours: when a single-step method starts to hide its gradients, adversarial examples become easy and
clean cross-entropy falls all at once. It is averaged over windows of so many updates. While a
window's mean lies `deviations` standard deviations (of a batch's value within its window) below the
running mean of the windows before, the attack takes two steps, unless the weight is 0 and they
could change nothing. The running mean takes in all windows, with decay `memory`, so that after a
lasting fall, as at a drop of the rate, one step returns by itself, the later the deeper the fall.

`two_step` is logged as the share of batches attacked in two steps: its sum over epochs is the k of
the tables' "epochs + k", if that is what the authors count. The host reads a mean once per window,
and waits where the eigenvalues of the nuclear norm do.
"""

from dataclasses import dataclass, field
from math import sqrt
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from advtrain.attacks.objectives import cross_entropy
from advtrain.defenses.base import Defense, warmed
from advtrain.defenses.guided import (
    Guided,
    ascend,
    corner,
    guidance,
    guided_loss,
    require_signs,
)
from advtrain.defenses.nuat import nuclear
from advtrain.ranges import Count, Decay, NonNegative, Unit
from advtrain.types import Logs, Moment, Schedule, TrainingAttack


class Hybrid(NamedTuple):
    """What the loss needs, and whether the attack took two steps."""

    guided: Guided
    two_step: bool


@dataclass
class Falls:
    """Whether the latest window of a noisy series fell out of the range of those before.

    sums: of the values of this window and of their squares, (2,), on their device; seen: how
    many. level: running means of the value and of its variance, of the windows before.
    """

    sums: Tensor | None = None
    seen: int = 0
    level: tuple[float, float] | None = None
    falling: bool = False

    def see(self, value: Tensor, *, window: int, deviations: float, memory: float) -> None:
        """Take in one value, a scalar; at the end of a window, judge it."""
        terms = torch.stack([value, value.square()])
        self.sums = terms if self.sums is None else self.sums.to(terms.device) + terms
        self.seen += 1
        if self.seen < window:
            return
        mean, square = (self.sums / self.seen).tolist()
        variance = max(0.0, square - mean**2)
        self.sums, self.seen = None, 0
        if self.level is None:
            self.level = mean, variance
            return
        usual, usual_variance = self.level
        self.falling = mean < usual - deviations * sqrt(usual_variance)
        self.level = (
            memory * usual + (1 - memory) * mean,
            memory * usual_variance + (1 - memory) * variance,
        )


@dataclass
class NuatH(Defense):
    """`attack` is one step, taken once or twice. ValueError: the threat is not linf."""

    attack: TrainingAttack
    weight: Schedule
    noise: Unit
    reference: Literal["eval", "train"]
    alternate: bool
    window: Count
    deviations: NonNegative
    memory: Decay
    warmup: Unit = 0.0
    falls: Falls = field(init=False, default_factory=Falls, repr=False)

    def __post_init__(self) -> None:
        require_signs(self.attack, type(self).__name__)

    def craft(self, model: nn.Module, x: Tensor, y: Tensor, now: Moment) -> Hybrid:
        if "ce" in now.last:
            self.falls.see(
                now.last["ce"],
                window=self.window,
                deviations=self.deviations,
                memory=self.memory,
            )
        weight = self.weight(now)
        twice = self.falls.falling and weight > 0
        objective = cross_entropy
        if twice or not self.alternate or now.batch % 2:
            objective = guidance(model, x, distance=nuclear, weight=weight, mode=self.reference)
        attack = warmed(self.attack, self.warmup, now)
        stages = [(model, objective), (model, cross_entropy)][: 1 + twice]
        x_adv = ascend(attack, stages, x, y, corner(self.noise))
        return Hybrid(Guided(x, x_adv, y, weight), twice)

    def loss(self, model: nn.Module, parcel: Hybrid) -> tuple[Tensor, Logs]:
        loss, logs = guided_loss(model, parcel.guided, self.ce, nuclear, "nuclear")
        return loss, {**logs, "two_step": loss.new_full((), float(parcel.two_step))}

    def state_dict(self) -> dict[str, Any]:
        return dict(vars(self.falls))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.falls = Falls(**state)

"""NuAT with a two-step attack: NuAT2 and NuAT2-WA (Sriramanan et al. 2021,
https://openreview.net/forum?id=kuK2VARZGnI).

The loss is that of NuAT (nuat.py). From noise of +-eps/2 per pixel the first step ascends
CE + lambda ||F(x_adv) - F(x)||_* / B, the second cross-entropy alone; both are of eps along a sign,
each projected, in evaluation mode, in every batch.

NuAT2-WA (`attacker_decay: 0.99`): the first step is taken on an exponential average of the weights,
w <- decay w + (1 - decay) theta after every update, running statistics included, which begins at
the weights after the first; during the first epoch the trained network takes both. The average
that is reported is another, of decay 0.9998: average=ema average.ramp=false.

Differs: the slides of NuAT2-WA show one average, the code has the two. It also makes a clean pass
of the trained network that nothing reads. Both divide a short last batch's norm by 64 in the loss,
NuAT2-WA in the attack too; here it is the batch's own size.
"""

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from advtrain.attacks.objectives import cross_entropy
from advtrain.averages import Ema
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
from advtrain.ranges import Decay, Unit
from advtrain.types import Logs, Moment, Schedule, TrainingAttack


@dataclass
class Nuat2(Defense):
    """`attack` is one step, taken twice. ValueError: the threat is not linf."""

    attack: TrainingAttack
    weight: Schedule
    noise: Unit
    attacker_decay: Decay | None
    warmup: Unit = 0.0
    average: Ema | None = field(init=False, default=None, repr=False)
    saved: dict[str, Any] = field(init=False, default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        require_signs(self.attack, type(self).__name__)

    def craft(self, model: nn.Module, x: Tensor, y: Tensor, now: Moment) -> Guided:
        weight = self.weight(now)
        first = self.attacker(model, now)
        objective = guidance(first, x, distance=nuclear, weight=weight, mode="eval")
        attack = warmed(self.attack, self.warmup, now)
        stages = [(first, objective), (model, cross_entropy)]
        return Guided(x, ascend(attack, stages, x, y, corner(self.noise)), y, weight)

    def loss(self, model: nn.Module, parcel: Guided) -> tuple[Tensor, Logs]:
        return guided_loss(model, parcel, self.ce, nuclear, "nuclear")

    def attacker(self, model: nn.Module, now: Moment) -> nn.Module:
        """The network of the first step, after taking in the weights of the last update."""
        if self.attacker_decay is None:
            return model
        if self.average is None:
            self.average = Ema(
                model, 0, decay=self.attacker_decay, start=0, ramp=False, buffers="averaged"
            )
            if self.saved:
                self.average.load_state_dict(self.saved)
        if now.step:
            self.average.update(model)
        return self.average.model if now.epoch >= 1 else model

    def state_dict(self) -> dict[str, Any]:
        return self.saved if self.average is None else self.average.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The average itself is made of the network, which the next batch brings."""
        self.average, self.saved = None, state

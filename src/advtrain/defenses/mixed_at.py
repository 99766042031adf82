"""Training on clean and adversarial images together (Goodfellow et al. 2015, sec. 6,
https://arxiv.org/abs/1412.6572).

(1 - share) CE(f(x), y) + share CE(f(x_adv), y); share is 1 - alpha in the paper, lambda in Wang
et al. 2020 (OAT). Two passes, never one of 2 B images: batch norm would then mix both kinds.

Differs: OAT's release runs the adversarial pass first, here the clean one is; gradients are the
same, running statistics then hold 52.6 % adversarial images (at momentum 0.1) and not 47.4 %.
"""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from advtrain.defenses.base import Defense, Pair, accuracy, warmed
from advtrain.ranges import Unit
from advtrain.types import Logs, Moment, TrainingAttack


@dataclass
class MixedAt(Defense):
    """`share` is the weight of the adversarial term."""

    attack: TrainingAttack
    share: Unit
    craft_mode: Literal["eval", "train"]
    warmup: Unit = 0.0

    def craft(self, model: nn.Module, x: Tensor, y: Tensor, now: Moment) -> Pair:
        return Pair(x, warmed(self.attack, self.warmup, now)(model, x, y), y)

    def loss(self, model: nn.Module, parcel: Pair) -> tuple[Tensor, Logs]:
        clean, adv = model(parcel.x), model(parcel.x_adv)
        ce = self.ce(clean, parcel.y)
        ce_adv = self.ce(adv, parcel.y)
        loss = (1 - self.share) * ce + self.share * ce_adv
        return loss, {
            "ce": ce.detach(),
            "ce_adv": ce_adv.detach(),
            "acc": accuracy(clean, parcel.y),
            "acc_adv": accuracy(adv, parcel.y),
        }

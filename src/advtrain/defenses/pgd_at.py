"""Adversarial training (Madry et al. 2018, https://arxiv.org/abs/1706.06083, eq. 2.1).

min over weights of E max over ||d|| <= eps of CE(f(x + d), y), the maximum by any attack: with one
step it is FGSM, R-FGSM or Fast adversarial training, by configuration alone.

Differs: the attack sees the network in evaluation mode, so its passes leave the running statistics
alone; Rice et al. 2020 and Wong et al. 2020 attack in training mode (`craft_mode: train`). Madry's
MNIST code descends on the sum of the batch, here on its mean.
"""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from advtrain.defenses.base import Defense, Pair, accuracy, warmed
from advtrain.ranges import Unit
from advtrain.types import Logs, Moment, TrainingAttack


@dataclass
class PgdAt(Defense):
    """Cross-entropy on adversarial examples alone."""

    attack: TrainingAttack
    craft_mode: Literal["eval", "train"]
    warmup: Unit = 0.0

    def craft(self, model: nn.Module, x: Tensor, y: Tensor, now: Moment) -> Pair:
        return Pair(x, warmed(self.attack, self.warmup, now)(model, x, y), y)

    def loss(self, model: nn.Module, parcel: Pair) -> tuple[Tensor, Logs]:
        logits = model(parcel.x_adv)
        loss = self.ce(logits, parcel.y)
        return loss, {"acc": accuracy(logits, parcel.y)}

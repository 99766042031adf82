"""Adversarial logit pairing (Kannan et al. 2018, https://arxiv.org/abs/1803.06373).

(1 - share) CE(f(x), y) + share CE(f(x_adv), y) + weight * mean_i d(f(x_i), f(x_adv_i)), d being the
squared l2 distance of the logits: their sum over classes, or their mean. Both logits receive its
gradient. `weight` is lambda in the paper.

Engstrom et al. 2018 (https://arxiv.org/abs/1807.10272) found its robustness on ImageNet to vanish
under longer attacks, from 27.9 to 0.6 %: judge it by `eval=full`, and look at the radii there.

Differs: the authors' release averages the distance over classes (`reduction: mean`), so that
its weight is K times ours; passes clean and adversarial images as one batch, whose statistics batch
norm then shares, here each has its own pass; attacks towards random labels, which is part of what
Engstrom et al. blame, here away from the true one; and smooths labels by 0.1 (`label_smoothing`).
"""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from advtrain.defenses.base import Defense, Pair, accuracy, warmed
from advtrain.ranges import NonNegative, Unit
from advtrain.types import Logs, Moment, TrainingAttack


@dataclass
class Alp(Defense):
    """`share` is the weight of the adversarial cross-entropy; `reduction` that over classes."""

    attack: TrainingAttack
    share: Unit
    weight: NonNegative
    reduction: Literal["sum", "mean"]
    warmup: Unit = 0.0

    def craft(self, model: nn.Module, x: Tensor, y: Tensor, now: Moment) -> Pair:
        return Pair(x, warmed(self.attack, self.warmup, now)(model, x, y), y)

    def loss(self, model: nn.Module, parcel: Pair) -> tuple[Tensor, Logs]:
        clean, adv = model(parcel.x), model(parcel.x_adv)
        ce, ce_adv = self.ce(clean, parcel.y), self.ce(adv, parcel.y)
        apart = (clean - adv).square()
        pairing = (apart.sum(1) if self.reduction == "sum" else apart.mean(1)).mean()
        loss = (1 - self.share) * ce + self.share * ce_adv + self.weight * pairing
        return loss, {
            "ce": ce.detach(),
            "ce_adv": ce_adv.detach(),
            "pairing": pairing.detach(),
            "acc": accuracy(clean, parcel.y),
            "acc_adv": accuracy(adv, parcel.y),
        }

"""R-MGM, our reading: a regulariser against gradient masking (Vivek B. S. et al. 2019, "Regularizer
to mitigate gradient masking effect during single-step adversarial training", CVPR Workshops,
https://doi.org/10.1109/CVPRW.2019.00014).

CE(f(x_fgsm), y) + weight * mean_i |f(x_fgsm_i) - f(x_rfgsm_i)|_2^2. Where a network masks its
gradient, the step from the image itself goes astray and the step from beside it does not, so that
their logits part. No multi-step attack is used: 10 units a step.

From the abstract, which is all that is open: single-step training, and a term that grows with the
distance of the logits of the FGSM and the R-FGSM images of the same clean one. Ours, since
neither code nor the rest is: the squared l2 norm, cross-entropy on the FGSM images alone, half of
eps for R-FGSM's random step, the weight, and that it is constant.
"""

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor, nn

from advtrain.defenses.base import Defense, accuracy, warmed
from advtrain.ranges import NonNegative, Unit
from advtrain.types import Logs, Moment, TrainingAttack


class Steps(NamedTuple):
    """Two adversarial images of each example, (B, C, H, W) each, and labels (B,)."""

    straight: Tensor
    beside: Tensor
    y: Tensor


@dataclass
class RMgm(Defense):
    """`fgsm` makes the images trained on, `rfgsm` those whose logits must agree with theirs."""

    fgsm: TrainingAttack
    rfgsm: TrainingAttack
    weight: NonNegative
    warmup: Unit = 0.0

    def craft(self, model: nn.Module, x: Tensor, y: Tensor, now: Moment) -> Steps:
        straight, beside = (warmed(each, self.warmup, now) for each in (self.fgsm, self.rfgsm))
        return Steps(straight(model, x, y), beside(model, x, y), y)

    def loss(self, model: nn.Module, parcel: Steps) -> tuple[Tensor, Logs]:
        straight, beside = model(parcel.straight), model(parcel.beside)
        ce = self.ce(straight, parcel.y)
        distance = (straight - beside).square().sum(1).mean()
        return ce + self.weight * distance, {
            "ce": ce.detach(),
            "distance": distance.detach(),
            "acc": accuracy(straight, parcel.y),
        }

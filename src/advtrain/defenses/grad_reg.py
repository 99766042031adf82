"""Gradient regularisation (Ross and Doshi-Velez 2018, https://arxiv.org/abs/1711.09404).

CE(f(z), y) + weight * mean_i |grad ce_i|_p^2, each gradient that of an example's own loss with
respect to its own pixels in [0, 1]. The attack chooses z: the images themselves with attacks.clean,
else adversarial examples, held fixed. To first order an l-infinity ball of radius eps raises the
loss by eps |grad|_1 and an l2 ball by eps |grad|_2, so p = 1 goes with l-infinity and 2 with l2.

The gradient is differentiated in turn ("double backpropagation", Drucker and LeCun 1992,
https://doi.org/10.1109/72.165600): 6 passes where standard training has 3. Second derivatives of a
ReLU are 0 where they exist; the penalty then reaches the weights through the slopes alone.

In training mode batch norm ties the examples together, and each gradient also holds what a pixel
does to the losses of the others. That is accepted: with other statistics it would be the gradient
of another function than the loss.

Differs: Ross and Doshi-Velez have p = 2 and sum over the examples, here is their mean. Not the
gradient of the mean loss, as some write: that penalty falls with the square of the batch size.
Finlay and Oberman 2019 (https://arxiv.org/abs/1905.11468) halve the penalty in their code, and put
a finite difference along the gradient in place of the second derivative, which takes 7 passes.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from advtrain.defenses.base import Defense, Pair, accuracy, warmed
from advtrain.functional import cross_entropy
from advtrain.ranges import NonNegative, Unit
from advtrain.types import Logs, Moment, TrainingAttack


@dataclass
class GradReg(Defense):
    """`p`: the norm of the gradients. Logs the mean of its square as `gradient`."""

    attack: TrainingAttack
    weight: NonNegative
    p: Literal[1, 2]
    warmup: Unit = 0.0

    def craft(self, model: nn.Module, x: Tensor, y: Tensor, now: Moment) -> Pair:
        return Pair(x, warmed(self.attack, self.warmup, now)(model, x, y), y)

    def loss(self, model: nn.Module, parcel: Pair) -> tuple[Tensor, Logs]:
        z = parcel.x_adv.detach().requires_grad_()
        logits = model.forward(z)  # as it is: compiled by model.compile() it has one derivative
        losses = cross_entropy(logits, parcel.y, self.label_smoothing)
        (gradients,) = torch.autograd.grad(losses.sum(), z, create_graph=True)
        squares = gradients.flatten(1).abs().pow(self.p).sum(1).pow(2 / self.p)
        ce, penalty = losses.mean(), squares.mean()
        return ce + self.weight * penalty, {
            "ce": ce.detach(),
            "gradient": penalty.detach(),
            "acc": accuracy(logits, parcel.y),
        }

"""Exact robust training of linear models (Kolter and Madry 2019, chapter 2,
https://adversarial-ml-tutorial.org/linear_models/).

min over weights of E log(1 + sum_{j != y} exp(z_j - z_y + eps ||w_j - w_y||_q)), q dual to the
norm of the threat. With two classes that is E max over ||d|| <= eps of the logistic loss, the
maximum being at d = -y eps sign(theta) for l-infinity, with theta = w_1 - w_0: no attack, no
gap, and a convex problem. With more classes the maximum has no closed form; the loss is then an
upper bound of it, convex too, since each j moves by its own best d.

The images are not clipped: d may leave the box of pixels. On clipped images the loss is an upper
bound also with two classes.

Differs: the chapter has one logit theta x + theta_0, here z_1 - z_0 of two. A step of SGD moves
both rows, so the same path takes half the chapter's learning rate. Lecture notes that print the
clean margin without theta_0, or with x + d inside it, mean this loss.
"""

from dataclasses import dataclass, field

from torch import Tensor, nn

from advtrain import affine
from advtrain.defenses.base import Clean, Defense, accuracy
from advtrain.types import Logs, Moment, Threat


@dataclass
class LinearExact(Defense):
    """`acc_adv` is the exact robust accuracy, for any number of classes, without clipping.

    ValueError: the model is not one fully connected layer; or, at the first batch of a run, where
    its values are read on the host once: something else is before or behind that layer.
    `label_smoothing` acts on the logits of the worst case.
    """

    threat: Threat
    known: bool = field(init=False, default=False, repr=False)

    def requires(self, model: nn.Module) -> None:
        affine.layer(model)

    def craft(self, model: nn.Module, x: Tensor, y: Tensor, now: Moment) -> Clean:
        if not self.known:
            affine.require_raw(model, x)
            self.known = True
        return Clean(x, y)

    def loss(self, model: nn.Module, parcel: Clean) -> tuple[Tensor, Logs]:
        logits = model(parcel.x)
        worst = logits + self.rises(affine.layer(model).weight)[parcel.y]
        return self.ce(worst, parcel.y), {
            "acc": accuracy(logits, parcel.y),
            "acc_adv": accuracy(worst, parcel.y),
        }

    def rises(self, weight: Tensor) -> Tensor:
        """eps ||w_j - w_y||_q at [y, j], (K, K): how far z_j can gain on z_y. `weight` (K, D)."""
        apart = weight.unsqueeze(0) - weight.unsqueeze(1)
        return self.threat.support(apart.flatten(0, 1)).view(len(weight), len(weight))

"""Adversarial training of a stochastic network (LWTA, Panousis et al. 2021,
https://proceedings.mlr.press/v130/panousis21a.html): cross-entropy on adversarial images, every
pass with winners of its own.

What matters is the temperature at which the attack differentiates. At that of training, which is
the default here, gradients are useful, and the network has to become robust. `gradients: test` is
what the authors released: masks are steps there, gradients nearly 0, the attack hardly harms, and
training learns to keep it so. Robust accuracy measured through the same temperature is then high,
and 0 through any other. Batch norm uses its running statistics while crafting, in either case.

With `draws` above 1 the attack ascends the mean over so many draws (Athalye et al. 2018); each of
its steps then costs as many passes.

Differs: the authors start at the image plus normal noise of 0.001, here the attack starts as it is
told, uniformly by default.
"""

from copy import deepcopy
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from advtrain.attacks.objectives import cross_entropy, expected
from advtrain.defenses.base import Defense, Pair, accuracy, require_guided, warmed
from advtrain.models.lwta import layers, temperature
from advtrain.ranges import Count, Unit
from advtrain.types import Logs, Moment, TrainingAttack


@dataclass
class Lwta(Defense):
    """Cross-entropy on adversarial examples alone. ValueError: draws of an attack as FGSM."""

    attack: TrainingAttack
    gradients: Literal["train", "test"]
    draws: Count
    warmup: Unit = 0.0

    def __post_init__(self) -> None:
        if self.draws > 1:
            require_guided(self.attack, f"defense.draws={self.draws}")

    def requires(self, model: nn.Module) -> None:
        if not layers(model):
            raise ValueError(
                f"lwta trains networks with winner-takes-all layers, and {type(model).__name__} "
                "has none. Use model=lwta_cnn, lwta_mnist_cnn or lwta_wrn_34_1, or defense=pgd_at."
            )

    def attacked(self, model: nn.Module) -> nn.Module:
        """A copy that draws at the temperature of the attack, so that `best.pt` is chosen by it."""
        with temperature(model, self.gradients):
            return deepcopy(model)

    def craft(self, model: nn.Module, x: Tensor, y: Tensor, now: Moment) -> Pair:
        attack = warmed(self.attack, self.warmup, now)
        with temperature(model, self.gradients):
            if self.draws == 1:
                return Pair(x, attack(model, x, y), y)
            objective = expected(objective=cross_entropy, samples=self.draws)
            return Pair(x, attack(model, x, y, objective=objective), y)

    def loss(self, model: nn.Module, parcel: Pair) -> tuple[Tensor, Logs]:
        logits = model(parcel.x_adv)
        loss = self.ce(logits, parcel.y)
        return loss, {"acc": accuracy(logits, parcel.y)}

"""Once-for-all adversarial training (OAT, Wang et al. 2020, https://arxiv.org/abs/2010.11828).

mean over the batch of (1 - l) CE(f(x; l), y) + l CE(f(x_adv(l); l), y): one conditional network for
every trade-off l (lambda) between standard and robust accuracy. Each image draws its own lambda,
and its adversarial example is crafted at that lambda.

The first ceil(B / L) images get 0, the others one of the nonzero lambdas each, uniformly: the split
is a slice. Images of lambda 0 are not attacked, for their adversarial term has no weight. With dual
batch norm they take the one, and images with lambda > 0 the other, clean and adversarial alike. In
passes of a whole batch: one of clean images, and 1 - 1/L (at 128 images 106/128) of attack and
adversarial images; with K steps 3 + 0.83 (2 K + 3).

A slimmable network (OATS; `model.widths`) is trained at all its widths in each step: the same
lambdas, at each width an attack and the loss of its own, and the sum of these losses, as slimmable
networks are (Yu et al. 2019, https://arxiv.org/abs/1812.08928, algorithm 1).

Differs: the attack comes before the clean pass, theirs behind it, so that it sees running
statistics that are one batch newer; with the same order all numbers agree. A short last batch has
its own share of zeros, theirs is dropped. Their scripts keep the best checkpoint of each lambda;
here one serves all of them, see `judged_at`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from torch import Tensor, nn

from advtrain.conditions import (
    UNIT,
    Condition,
    Conditional,
    by_width,
    drawn,
    require_conditional,
    zeros_of_all,
)
from advtrain.defenses.base import Defense, accuracy, warmed
from advtrain.functional import cross_entropy
from advtrain.models.views import at
from advtrain.ranges import Unit, require
from advtrain.sharing import behind
from advtrain.types import Logs, Moment, TrainingAttack, View


class Conditioned(NamedTuple):
    """Images and labels, the adversarial examples of those behind the zeros, and the lambdas.

    A parcel has one for each network that is trained: several of a slimmable network, else one.
    """

    x: Tensor
    x_adv: Tensor
    y: Tensor
    condition: Condition


@dataclass
class Oat(Defense):
    """`zero_share`: of the images that get lambda 0, rounded up; null: 1 / L.

    `judged_at`: lambdas of which the mean of the accuracies on validation images chooses the best
    checkpoint; any in [0, 1]. The network brings the lambdas of the training. ValueError: lambdas
    outside [0, 1], or none.
    """

    attack: TrainingAttack
    judged_at: list[Unit]
    zero_share: Unit | None = None
    warmup: Unit = 0.0

    def __post_init__(self) -> None:
        if not self.judged_at:
            raise ValueError("judged_at is empty; give lambdas to judge by, as [0, 0.2, 1].")
        for lam in self.judged_at:
            require("a lambda of judged_at", lam, UNIT)

    def requires(self, model: nn.Module) -> None:
        require_conditional(model, "oat")

    @property
    def views(self) -> Mapping[str, View]:
        return {f"lambda={lam:g}": partial(at, lam=lam) for lam in self.judged_at}

    def craft(self, model: nn.Module, x: Tensor, y: Tensor, now: Moment) -> tuple[Conditioned, ...]:
        assert isinstance(model, Conditional)
        condition = drawn(model, len(x), self.zero_share)
        attack, zeros = warmed(self.attack, self.warmup, now), condition.zeros
        parcel = []
        for network in by_width(model).values():
            x_adv = x[zeros:]
            if zeros < len(x):
                classifier = partial(network, condition=condition.rest())
                with behind(zeros_of_all(model, len(x), self.zero_share)):
                    x_adv = attack(classifier, x_adv, y[zeros:])
            parcel.append(Conditioned(x, x_adv, y, condition))
        return tuple(parcel)

    def loss(self, model: nn.Module, parcel: tuple[Conditioned, ...]) -> tuple[Tensor, Logs]:
        assert isinstance(model, Conditional)
        losses, logs = [], Logs()
        for (name, network), part in zip(by_width(model).items(), parcel, strict=True):
            loss, told = self.weighed(network, part)
            losses.append(loss)
            logs |= {f"{key}{name}": value for key, value in told.items()}
        return sum(losses[1:], losses[0]), logs

    def weighed(self, network: Conditional, part: Conditioned) -> tuple[Tensor, Logs]:
        """The loss of one network: both terms of each image, weighed by its lambda."""
        x, x_adv, y, condition = part
        logits = network(x, condition)
        losses = cross_entropy(logits, y, self.label_smoothing)
        total = ((1 - condition.lambdas) * losses).sum()
        logs = {"ce": losses.detach().mean(), "acc": accuracy(logits, y)}
        if len(x_adv):
            rest, labels = condition.rest(), y[condition.zeros :]
            adv = network(x_adv, rest)
            adv_losses = cross_entropy(adv, labels, self.label_smoothing)
            total = total + (rest.lambdas * adv_losses).sum()
            logs |= {"ce_adv": adv_losses.detach().mean(), "acc_adv": accuracy(adv, labels)}
        return total / len(x), logs

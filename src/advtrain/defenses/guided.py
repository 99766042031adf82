"""What methods with guidance share (GAT, NuAT, NuAT2): where they start, what they ascend, and
their loss; and the single-step ones whole, but for the distance.

    L = CE(f(x), y) + weight * distance(f(x_adv), f(x))

and the attack ascends the same with f(x) held fixed: CE(f(x_adv), y) + weight * distance. `weight`
is lambda in the papers, a schedule read once per batch. Gradients of the loss flow into both
arguments of the distance. Two passes in training mode, adversarial then clean, as in the authors'
code. While the weight is 0, training is that on clean images: the adversarial pass only moves
running statistics.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Generator, Tensor, nn

from advtrain.attacks.objectives import Distance, away_from, cross_entropy
from advtrain.attacks.starts import bernoulli
from advtrain.defenses.base import Defense, accuracy, require_guided, warmed
from advtrain.modes import crafting
from advtrain.ranges import Unit
from advtrain.types import (
    Attack,
    Classifier,
    Logs,
    Moment,
    Objective,
    Rotation,
    Schedule,
    Start,
    Threat,
    TrainingAttack,
)


class Guided(NamedTuple):
    """Images, their adversarial examples, labels, and the weight of the distance at this moment."""

    x: Tensor
    x_adv: Tensor
    y: Tensor
    weight: float


@dataclass
class SingleStep(Defense):
    """One guided step of eps, in every second batch or in all; a method says what distance.

    `noise`: of the start, as a share of the radius. `reference`: the mode in which the attack's
    clean logits are taken. ValueError: the threat is not linf.
    """

    term: ClassVar[str]  # the name of the distance in the logs

    attack: TrainingAttack
    weight: Schedule
    noise: Unit
    reference: Literal["eval", "train"]
    alternate: bool
    warmup: Unit = 0.0

    @staticmethod
    def distance(adv: Tensor, clean: Tensor) -> Tensor:
        """How far logits (B, K) are apart: one number for the batch, or one per example."""
        raise NotImplementedError

    def __post_init__(self) -> None:
        require_signs(self.attack, type(self).__name__)

    def craft(self, model: nn.Module, x: Tensor, y: Tensor, now: Moment) -> Guided:
        weight = self.weight(now)
        objective = cross_entropy
        if not self.alternate or now.batch % 2:
            distance, mode = self.distance, self.reference
            objective = guidance(model, x, distance=distance, weight=weight, mode=mode)
        attack = warmed(self.attack, self.warmup, now)
        x_adv = ascend(attack, [(model, objective)], x, y, corner(self.noise))
        return Guided(x, x_adv, y, weight)

    def loss(self, model: nn.Module, parcel: Guided) -> tuple[Tensor, Logs]:
        return guided_loss(model, parcel, self.ce, self.distance, self.term)


def corner(noise: float) -> Start:
    """Each pixel moves by the share `noise` of the radius, up or down with equal chance."""

    def start(x: Tensor, threat: Threat, generator: Generator | None = None) -> Tensor:
        return bernoulli(size=noise * threat.eps)(x, threat, generator)

    return start


def guidance(
    model: nn.Module,
    x: Tensor,
    *,
    distance: Distance,
    weight: float,
    mode: Literal["eval", "train"],
) -> Objective:
    """Cross-entropy and `weight` times the distance from the logits of `x`, taken in `mode`.

    One forward pass, none where the weight is 0. In training mode it moves running statistics.
    """
    if weight == 0:
        return cross_entropy
    with crafting(model, mode), torch.no_grad():
        return away_from(model(x), distance=distance, weight=weight)


def ascend(
    attack: Attack,
    stages: Sequence[tuple[Classifier, Objective]],
    x: Tensor,
    y: Tensor,
    start: Start,
) -> Tensor:
    """The attack once per (model, objective), each time from where it ended before."""
    for model, objective in stages:
        x_adv = attack(model, x, y, objective=objective, start=start)
        start = _at(x_adv)
    return x_adv


def _at(point: Tensor) -> Start:
    return lambda x, threat, generator=None: point


def guided_loss(
    model: nn.Module,
    parcel: Guided,
    ce_of: Callable[[Tensor, Tensor], Tensor],
    distance: Distance,
    name: str,
) -> tuple[Tensor, Logs]:
    """Clean cross-entropy, plus the weighted distance, which is logged as `name`."""
    adv, clean = model(parcel.x_adv), model(parcel.x)
    ce = ce_of(clean, parcel.y)
    apart = distance(adv, clean).mean()
    loss = ce + parcel.weight * apart if parcel.weight else ce
    return loss, {
        "ce": ce.detach(),
        name: apart.detach(),
        "acc": accuracy(clean, parcel.y),
        "acc_adv": accuracy(adv, parcel.y),
    }


def require_signs(attack: TrainingAttack, defense: str) -> None:
    """Raise ValueError unless `attack` can be guided and searches an l-infinity ball."""
    require_guided(attack, defense)
    for each in attack.members() if isinstance(attack, Rotation) else (attack,):
        keywords: dict[str, Any] = getattr(each, "keywords", {})
        norm = keywords["threat"].norm if "threat" in keywords else "linf"
        if norm != "linf":
            raise ValueError(
                f"{defense} starts from corners of a cube and steps by signs, and the threat is "
                f"{norm}. Use threat=linf, or defense=trades or pgd_at for {norm}."
            )

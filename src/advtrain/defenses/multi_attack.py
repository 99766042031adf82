"""Adversarial training against several attacks, by one of four rules.

cyclic, random: one attack per batch, in turn or by lot (attacks/multi.py). max, avg: Tramer and
Boneh 2019 (https://arxiv.org/abs/1904.13000): each image as the attack left it that raises its loss
most, or as each of the attacks left it, all with equal weight. The loss is cross-entropy on those
images alone, so it is the mean over the attacks for avg.

The losses that max compares are taken in the mode of crafting, without gradient, as in the
authors' code; they cost a forward pass per attack. avg passes its A * B images as one batch, as
they do, so that batch norm sees all attacks together; its memory is A times that of one attack.
With attacks that cost c_1 .. c_A (2 a step), a batch costs 3 + their mean for cyclic and random,
3 + their sum + A for max, 3 A + their sum for avg.

Differs: the authors keep the number of images per update by smaller batches or a smaller rate,
here batch_size and rate are as configured. Their code also alternates, by the count of all batches
so far; cyclic restarts at each epoch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from advtrain.attacks.multi import Cycle, Lot, require_some
from advtrain.defenses.base import Defense, accuracy, warmed
from advtrain.functional import cross_entropy
from advtrain.ranges import Natural, Unit
from advtrain.types import Attack, Logs, Moment

Attacks = Mapping[str, Attack]


class Crafted(NamedTuple):
    """Adversarial images and their labels: B of them, or for avg A * B, attack by attack."""

    x_adv: Tensor
    y: Tensor


def in_turn(attacks: Attacks, seed: int, now: Moment) -> Sequence[Attack]:
    return (Cycle(attacks).at(now),)


def by_lot(attacks: Attacks, seed: int, now: Moment) -> Sequence[Attack]:
    return (Lot(attacks, seed).at(now),)


def each_of_them(attacks: Attacks, seed: int, now: Moment) -> Sequence[Attack]:
    return tuple(attacks.values())


def everything(model: nn.Module, candidates: Sequence[Tensor], y: Tensor) -> Crafted:
    """All images, attack by attack."""
    return Crafted(torch.cat(list(candidates)), y.repeat(len(candidates)))


def hardest(model: nn.Module, candidates: Sequence[Tensor], y: Tensor) -> Crafted:
    """Of each example the image of highest loss; of equal ones the first."""
    with torch.no_grad():
        losses = torch.stack([cross_entropy(model(images), y) for images in candidates])
    rows = torch.arange(len(y), device=y.device)
    return Crafted(torch.stack(list(candidates))[losses.argmax(0), rows], y)


RULES = {
    "cyclic": (in_turn, everything),
    "random": (by_lot, everything),
    "max": (each_of_them, hardest),
    "avg": (each_of_them, everything),
}
"""Which attacks a batch calls for, and which of their images are trained on."""


@dataclass
class MultiAttack(Defense):
    """`attacks` by name, in the order of their turns; each has a threat of its own.

    `seed` is that of the lots that `random` draws. ValueError: no attacks.
    """

    attacks: Mapping[str, Attack]
    rule: Literal["cyclic", "random", "max", "avg"]
    seed: Natural
    craft_mode: Literal["eval", "train"]
    warmup: Unit = 0.0

    def __post_init__(self) -> None:
        require_some(self.attacks)

    def craft(self, model: nn.Module, x: Tensor, y: Tensor, now: Moment) -> Crafted:
        called, kept = RULES[self.rule]
        attacks = called(self.attacks, self.seed, now)
        return kept(model, [warmed(each, self.warmup, now)(model, x, y) for each in attacks], y)

    def loss(self, model: nn.Module, parcel: Crafted) -> tuple[Tensor, Logs]:
        logits = model(parcel.x_adv)
        loss = self.ce(logits, parcel.y)
        return loss, {"acc": accuracy(logits, parcel.y)}

"""Triplet loss adversarial training (Mao et al. 2019, https://arxiv.org/abs/1909.00900).

CE(f(x_adv), y) + clean_weight CE(f(x), y) + weight (T(x_adv, x, n) + T(x_adv, x2, n)), where x2 is
another image of the class of x and n one of another class, both clean, and with h their features

    T(a, p, n) = mean max(0, D(a, p) - D(a, n) + margin) + norm_weight mean (h_a^2 + h_p^2 + h_n^2),
    D(u, v) = 1 - |cos(h_u, h_v)|,

the second mean over the elements of the features too. All three of a triplet learn. weight is
lambda_1, norm_weight lambda_2 in the paper. Features are what the head of the network sees.

Which images are x2 and n is settled while crafting, in evaluation mode: x2 is drawn from the same
class of the batch, n is the image of another class most like x_adv, by its cosine. An image alone
in its class has no second triplet, a batch of one class has none at all; means are over those that
exist. A step costs 8 units beside its attack: 2 forward passes to choose by, 6 to train.

Differs: the authors choose n among 10 B other images, drawn and embedded for that alone, and draw
x2 from the whole set: 10 forward and 2 training passes more, where the batch now serves. They blur
x, not x2 nor n, by uniform noise of 8/255 rounded to bytes; `noise` reaches all clean images of the
batch, which are x2 and n of others, and is not rounded. They fine-tune a network of adversarial
training. Features of norm below 1e-6 have cosine 0 with any and no gradient of it here, where
theirs grows beyond bounds.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from advtrain.defenses.base import Defense, accuracy, warmed
from advtrain.draws import uniform
from advtrain.models.network import Network
from advtrain.ranges import NonNegative, Unit
from advtrain.types import Logs, Moment, TrainingAttack


class Triplets(NamedTuple):
    """Images, adversarial ones, labels; and for each the rows of its partners in the batch.

    `alike` and `unlike`: rows of x2 and n, (B,). `paired`, `opposed`: 1 where they exist, else 0.
    """

    x: Tensor
    x_adv: Tensor
    y: Tensor
    alike: Tensor
    unlike: Tensor
    paired: Tensor
    opposed: Tensor


@dataclass
class Tla(Defense):
    """`noise` in pixels of [0, 1]. ValueError, before training: a network without features."""

    attack: TrainingAttack
    weight: NonNegative
    margin: NonNegative
    norm_weight: NonNegative
    clean_weight: NonNegative
    noise: Unit
    warmup: Unit = 0.0

    def requires(self, model: nn.Module) -> None:
        features, head = getattr(model, "features", None), getattr(model, "head", None)
        if isinstance(features, nn.Module) or not callable(features) or not callable(head):
            raise ValueError(
                f"Tla compares features of images, and {type(model).__name__} has no method "
                "`features` with a `head` from there to the logits. Use one of our models, or give "
                "yours both."
            )

    def craft(self, model: Network, x: Tensor, y: Tensor, now: Moment) -> Triplets:
        self.requires(model)
        x_adv = warmed(self.attack, self.warmup, now)(model, x, y)
        if self.noise:
            x = uniform(x, -self.noise, self.noise).add_(x).clamp_(0, 1)
        with torch.no_grad():
            similar = directions(model.features(x_adv)) @ directions(model.features(x)).T
        same = y.unsqueeze(1) == y
        other = same & ~torch.eye(len(y), dtype=torch.bool, device=y.device)
        return Triplets(
            x,
            x_adv,
            y,
            alike=uniform(similar, 0, 1).masked_fill(~other, -1.0).argmax(1),
            unlike=similar.masked_fill(same, -torch.inf).argmax(1),
            paired=other.any(1).to(similar.dtype),
            opposed=(~same).any(1).to(similar.dtype),
        )

    def loss(self, model: Network, parcel: Triplets) -> tuple[Tensor, Logs]:
        features, anchor = model.features(parcel.x), model.features(parcel.x_adv)
        clean, adv = model.head(features), model.head(anchor)
        ce, ce_adv = self.ce(clean, parcel.y), self.ce(adv, parcel.y)
        negative = features[parcel.unlike]
        own = self.triplet(anchor, features, negative, parcel.opposed)
        shared = self.triplet(
            anchor, features[parcel.alike], negative, parcel.opposed * parcel.paired
        )
        loss = ce_adv + self.clean_weight * ce + self.weight * (own + shared)
        return loss, {
            "ce": ce.detach(),
            "ce_adv": ce_adv.detach(),
            "triplet": (own + shared).detach(),
            "acc": accuracy(clean, parcel.y),
            "acc_adv": accuracy(adv, parcel.y),
        }

    def triplet(self, anchor: Tensor, positive: Tensor, negative: Tensor, exist: Tensor) -> Tensor:
        """T of features (B, F), its means over the rows where `exist` (B,) is 1; 0 without any."""
        gap = distance(anchor, positive) - distance(anchor, negative) + self.margin
        sizes = (anchor.square() + positive.square() + negative.square()).mean(1)
        rows = gap.clamp(min=0) + self.norm_weight * sizes
        return (exist * rows).sum() / exist.sum().clamp(min=1)


def distance(u: Tensor, v: Tensor) -> Tensor:
    """1 - |cos| of the rows, (B,)."""
    return 1 - (directions(u) * directions(v)).sum(1).abs()


def directions(features: Tensor) -> Tensor:
    """Rows (B, F) at unit length; 0 where there is next to nothing."""
    norm = features.norm(dim=1, keepdim=True)
    return torch.where(norm > 1e-6, features / norm.clamp(min=1e-6), 0.0)

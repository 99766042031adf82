"""Training for randomized smoothing: on copies of the images with Gaussian noise of scale sigma.

Cohen et al. 2019 (https://arxiv.org/abs/1902.02918): cross-entropy on one copy. With an attack,
SmoothAdv (Salman et al. 2019, https://arxiv.org/abs/1906.04584, algorithm 1): the images are first
moved to where the smoothed classifier is wrong, by ascent of -log((1/m) sum_j p_y(x + d + noise_j))
with the noise held fixed, and the copies trained on carry that same noise. With another `term`,
consistency regularisation (consistency.py) or MACER (macer.py); each goes with an attack, too.

Noise is in pixel units of [0, 1], added before the network's own normalisation, and not clipped, as
at certification. The m copies of a batch pass together, so batch norm sees all of them. With m
copies and T steps of attack an update costs 3 m + 2 m T passes.

Differs: Salman et al. and Jeong and Shin cut a batch into m parts and make an update with the m
copies of each part, to see as many noisy images per epoch as without copies; here an update is of
all images, m times each. Salman et al. bound the mean probability by 1e-20 where we take its
logarithm exactly, clip to the box before they shorten to the radius, and step at random where the
gradient is 0; their radius grows by epochs, ours by steps.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor, nn

from advtrain.attacks import starts
from advtrain.attacks.noise import Noise
from advtrain.attacks.objectives import cross_entropy
from advtrain.defenses.base import Defense, require_guided, warmed
from advtrain.defenses.copies import Smooth, Term, of_copies, share_right
from advtrain.draws import normal
from advtrain.ranges import Count, Positive, Range, Unit, require
from advtrain.types import Attack, Logs, Moment, TrainingAttack


class Noisy(NamedTuple):
    """Copies with noise (m, B, C, H, W), labels (B,), and the share of the run that is over."""

    copies: Tensor
    y: Tensor
    progress: float


@dataclass
class Smoothing(Defense):
    """`draws`: copies of each image, m. `attack` sets out from the images; null: none.

    The best epoch is that of highest accuracy on noisy validation images, one draw for each.
    ValueError: sigma not positive; fewer draws than the term needs; an attack that takes no
    objective or no start, as FGSM.
    """

    sigma: Positive
    draws: Count
    attack: TrainingAttack | None
    term: Term
    warmup: Unit = 0.0

    judged_by = "val_noise_acc"

    def __post_init__(self) -> None:
        name = type(self).__name__
        require(f"{name}.sigma", self.sigma, Range(0, open_low=True))
        require(f"{name}.draws", self.draws, Range(1))
        if self.draws < self.term.least:
            raise ValueError(
                f"{name}.draws is {self.draws}, and {type(self.term).__name__} compares noisy "
                f"copies of an image: use draws of {self.term.least} or more."
            )
        if self.attack is not None:
            require_guided(self.attack, name)

    def checks(self) -> Mapping[str, Attack]:
        return {self.judged_by: Noise(self.sigma)}

    def craft(self, model: nn.Module, x: Tensor, y: Tensor, now: Moment) -> Noisy:
        noise = normal(x.new_empty((self.draws, *x.shape)), std=self.sigma, dim=1)
        if self.attack is not None:
            attack = warmed(self.attack, self.warmup, now)
            smooth = Smooth(model, noise)
            x = attack(smooth, x, y, objective=cross_entropy, start=starts.clean)
        return Noisy(noise.add_(x), y, now.progress)

    def loss(self, model: nn.Module, parcel: Noisy) -> tuple[Tensor, Logs]:
        logits = of_copies(model, parcel.copies)
        loss, logs = self.term(
            logits, parcel.y, sigma=self.sigma, progress=parcel.progress, ce=self.ce
        )
        return loss, {**logs, "acc": share_right(logits, parcel.y)}

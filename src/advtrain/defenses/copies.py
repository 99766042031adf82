"""Noisy copies of a batch: what is minimised on them, a term, and the smoothed classifier of them.

Logits of m copies of B images are (m, B, K) everywhere here.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from advtrain.defenses.base import accuracy
from advtrain.functional import log_mean, log_probabilities
from advtrain.types import Classifier, Logs

CrossEntropy = Callable[[Tensor, Tensor], Tensor]
"""Logits (N, K) and labels (N,) to their mean loss."""


class Term(Protocol):
    """What training by noise minimises. `least`: the fewest copies of an image that it needs."""

    @property
    def least(self) -> int: ...

    def __call__(
        self, logits: Tensor, y: Tensor, *, sigma: float, progress: float, ce: CrossEntropy
    ) -> tuple[Tensor, Logs]:
        """Logits (m, B, K) and labels (B,) to a scalar, and what to report beside `acc`.

        `progress`: the share of the run that is over. `ce`: with the method's label smoothing.
        """


@dataclass(frozen=True)
class Plain:
    """Cross-entropy, the mean over all copies (Cohen et al. 2019)."""

    least = 1

    def __call__(
        self, logits: Tensor, y: Tensor, *, sigma: float, progress: float, ce: CrossEntropy
    ) -> tuple[Tensor, Logs]:
        return mean_over_copies(logits, y, ce), {}


@dataclass(frozen=True)
class Smooth:
    """The smoothed classifier of `model` for noise that is given, (m, B, C, H, W).

    Logits are log((1/m) sum_j softmax(f(x + noise_j))), so that their cross-entropy is -log of the
    mean probability (Salman et al. 2019, https://arxiv.org/abs/1906.04584, eq. 10).
    """

    model: Classifier
    noise: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        return log_mean(log_probabilities(of_copies(self.model, x + self.noise)))


def of_copies(model: Classifier, copies: Tensor) -> Tensor:
    """The logits (m, B, K) of images (m, B, ...), in one pass."""
    return model(copies.flatten(0, 1)).unflatten(0, copies.shape[:2])


def mean_over_copies(logits: Tensor, y: Tensor, ce: CrossEntropy) -> Tensor:
    return ce(logits.flatten(0, 1), y.repeat(len(logits)))


def share_right(logits: Tensor, y: Tensor) -> Tensor:
    """The share of all copies that are classified correctly."""
    return accuracy(logits.flatten(0, 1), y.repeat(len(logits)))

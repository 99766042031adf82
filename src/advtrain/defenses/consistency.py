"""Consistency regularisation of smoothed classifiers (Jeong and Shin 2020,
https://arxiv.org/abs/2006.04062, eq. 9), a term of defenses/smoothing.py.

With F_j the probabilities of the copies of an image and F their mean, the mean over the batch of

    mean_j CE(F_j, y) + weight * mean_j KL(F || F_j) + entropy * H(F),

weight and entropy being lambda and eta in the paper. Nothing is detached.

Differs: the authors' code bounds F by 1e-20 within its logarithm; here that is exact.
"""

from dataclasses import dataclass

from torch import Tensor

from advtrain.defenses.copies import CrossEntropy, mean_over_copies
from advtrain.functional import log_mean, log_probabilities
from advtrain.ranges import NonNegative
from advtrain.types import Logs


@dataclass(frozen=True)
class Consistency:
    """Copies of an image are pulled towards their mean, and the mean towards one class."""

    weight: NonNegative
    entropy: NonNegative

    least = 2

    def __call__(
        self, logits: Tensor, y: Tensor, *, sigma: float, progress: float, ce: CrossEntropy
    ) -> tuple[Tensor, Logs]:
        log_p = log_probabilities(logits)
        log_f = log_mean(log_p)
        f = log_f.exp()
        plain = mean_over_copies(logits, y, ce)
        kl = (f * (log_f - log_p.mean(0))).sum(-1).mean()
        entropy = -(f * log_f).sum(-1).mean()
        loss = plain + self.weight * kl + self.entropy * entropy
        return loss, {"ce": plain.detach(), "kl": kl.detach(), "entropy": entropy.detach()}

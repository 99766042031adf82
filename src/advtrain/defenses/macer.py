"""MACER (Zhai et al. 2020, https://openreview.net/forum?id=rJx1Na4Fwr, eq. 11 to 13), a term of
defenses/smoothing.py: training that makes the certified radius larger, without an attack.

    -log((1/m) sum_j p_y(x + noise_j)) + weight * sigma / 2 * max(gamma - xi, 0),
    xi = Phi^-1(q_1) - Phi^-1(q_2),     q = (1/m) sum_j softmax(beta z(x + noise_j)),

q_1 being the largest entry of q and q_2 the second; sigma xi / 2 is the radius that probabilities q
certify. The hinge counts where q_1 is that of the label, xi is finite and at most gamma, and is 0
elsewhere; both parts are means over the whole batch. weight is lambda in the paper.

xi is taken in float32, as in the authors' code: whether it is finite decides what is learned from.
There Phi^-1 is infinite from 1 - 3e-8 on and below 3e-8, and xi 10.7 at most, above gamma.

Differs: the authors add 1e-10 to the mean probability within the logarithm, here that is exact.
`label_smoothing`, of the first part, is ours.
"""

from dataclasses import dataclass
from math import sqrt

import torch
from torch import Tensor

from advtrain.defenses.copies import CrossEntropy
from advtrain.functional import log_mean, log_probabilities
from advtrain.ranges import NonNegative, Positive, Unit
from advtrain.types import Logs


@dataclass(frozen=True)
class Macer:
    """`beta`: inverse temperature of the radius. `after`: the share of the run from which on the
    radius counts.
    """

    weight: NonNegative
    beta: Positive
    gamma: Positive
    after: Unit = 0.0

    least = 2

    def __call__(
        self, logits: Tensor, y: Tensor, *, sigma: float, progress: float, ce: CrossEntropy
    ) -> tuple[Tensor, Logs]:
        soft = ce(log_mean(log_probabilities(logits)), y)
        hinge = sigma / 2 * shortfall(self.beta * logits, y, self.gamma).mean()
        loss = soft + self.weight * hinge if progress >= self.after else soft
        return loss, {"ce": soft.detach(), "hinge": hinge.detach()}


def shortfall(logits: Tensor, y: Tensor, gamma: float) -> Tensor:
    """gamma - xi per image where it counts, 0 elsewhere: logits (m, B, K) to (B,)."""
    wide = torch.promote_types(logits.dtype, torch.float32)
    q, named = logits.softmax(-1, dtype=wide).mean(0).topk(2)
    with torch.no_grad():
        xi = margin(q)
        counts = (named[:, 0] == y) & torch.isfinite(xi) & (xi <= gamma)
    harmless = torch.where(counts[:, None], q, 0.5)  # at 0 and 1 the slope is infinite
    return (gamma - margin(harmless)).where(counts, 0.0)


def margin(q: Tensor) -> Tensor:
    """Phi^-1(q_1) - Phi^-1(q_2): probabilities (B, 2) to (B,)."""
    quantiles = sqrt(2) * torch.erfinv(2 * q - 1)
    return quantiles[:, 0] - quantiles[:, 1]

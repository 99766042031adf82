"""MART (Wang et al. 2020, https://openreview.net/forum?id=rklOg6EFwS, eq. 11).

With p the probabilities of the clean and q those of the adversarial images, the mean over the batch

    BCE(q, y) + beta KL(p || q) (1 - p_y),        BCE(q, y) = -log q_y - log(1 - max_{k != y} q_k),

beta being lambda in the paper. Nothing is detached: p, and the weight 1 - p_y, learn too. The
attack ascends plain cross-entropy. Clean images pass first, then the adversarial ones, so that at
momentum 0.1 running statistics settle at 47.4 % clean and 52.6 % adversarial.

Constants are those of the authors' code: 1.0001 and 1.0000001 for the two ones, and 1e-12 added to
what log sees, so that the boost is at most -log 1e-4 = 9.2 nats and log q at least -27.6. They
exist in float32, not below it, to which logits of half precision are therefore taken. log q_y and
log p come from log-softmax, which is the same function; log(q + 1e-12) within the divergence is
not one, and is computed as written.

Differs: the authors take log of p as a probability, whose gradient is NaN where p underflows to 0
(logits 104 apart in float32); here it is 0 there. They project in l-infinity alone, and let the
noise leave the box before the first step. `label_smoothing`, of -log q_y alone, is ours.
"""

from dataclasses import dataclass

from torch import Tensor, nn

from advtrain.attacks.objectives import cross_entropy
from advtrain.defenses.base import Defense, Pair, accuracy, require_guided, warmed
from advtrain.functional import log_probabilities
from advtrain.ranges import NonNegative, Unit
from advtrain.types import Logs, Moment, Start, TrainingAttack

TINY = 1e-12


@dataclass
class Mart(Defense):
    """ValueError: the attack takes no start, as FGSM."""

    attack: TrainingAttack
    start: Start
    beta: NonNegative
    warmup: Unit = 0.0

    def __post_init__(self) -> None:
        require_guided(self.attack, type(self).__name__)

    def craft(self, model: nn.Module, x: Tensor, y: Tensor, now: Moment) -> Pair:
        attack = warmed(self.attack, self.warmup, now)
        return Pair(x, attack(model, x, y, objective=cross_entropy, start=self.start), y)

    def loss(self, model: nn.Module, parcel: Pair) -> tuple[Tensor, Logs]:
        clean, adv = model(parcel.x), model(parcel.x_adv)
        log_p, q = log_probabilities(clean), log_probabilities(adv).exp()
        boosted = self.ce(adv, parcel.y) + boost(q, parcel.y).mean()
        weighted = (hesitation(log_p, parcel.y) * divergence(log_p, q)).mean()
        return boosted + self.beta * weighted, {
            "bce": boosted.detach(),
            "weighted_kl": weighted.detach(),
            "acc": accuracy(clean, parcel.y),
            "acc_adv": accuracy(adv, parcel.y),
        }


def boost(q: Tensor, y: Tensor) -> Tensor:
    """-log(1 - q_k) of the likeliest wrong class k: probabilities (B, K) to (B,)."""
    runner_up = q.scatter(1, y.unsqueeze(1), -1.0).max(1).values
    return -(1.0001 - runner_up + TINY).log()


def divergence(log_p: Tensor, q: Tensor) -> Tensor:
    """KL(p || q), (B,), with q kept away from 0."""
    return (log_p.exp() * (log_p - (q + TINY).log())).sum(1)


def hesitation(log_p: Tensor, y: Tensor) -> Tensor:
    """1 - p_y, (B,): how much of its trust the network denies the label."""
    return 1.0000001 - log_p.gather(1, y.unsqueeze(1)).squeeze(1).exp()

"""TRADES (Zhang et al. 2019, https://arxiv.org/abs/1901.08573, algorithm 1).

CE(f(x), y) + beta KL(p(x) || p(x_adv)), beta being 1/lambda in the paper; the attack ascends the
same divergence. It is flat at x, so the attack starts from noise around x. Gradients flow into both
arguments of the divergence.

Two passes in training mode, clean then adversarial, so that at momentum 0.1 running statistics
settle at 47.4 % clean and 52.6 % adversarial.

Differs: the authors run the clean images once more for the divergence. Without dropout those logits
are the same and so are the gradients, but clean images get 66.8 % of the running statistics; with
dropout their two terms see different masks, here one. They also compute p(x) anew, with a graph, at
each step of the attack, and let the noise leave the box before the first step.
"""

from dataclasses import dataclass

from torch import Tensor, nn

from advtrain.attacks.objectives import kl_to_clean
from advtrain.defenses.base import Defense, Pair, accuracy, require_guided, warmed
from advtrain.functional import kl
from advtrain.ranges import NonNegative, Unit
from advtrain.types import Logs, Moment, Start, TrainingAttack


@dataclass
class Trades(Defense):
    """ValueError: the attack takes no objective, as FGSM."""

    attack: TrainingAttack
    start: Start
    beta: NonNegative
    warmup: Unit = 0.0

    def __post_init__(self) -> None:
        require_guided(self.attack, type(self).__name__)

    def craft(self, model: nn.Module, x: Tensor, y: Tensor, now: Moment) -> Pair:
        attack = warmed(self.attack, self.warmup, now)
        return Pair(x, attack(model, x, y, objective=kl_to_clean, start=self.start), y)

    def loss(self, model: nn.Module, parcel: Pair) -> tuple[Tensor, Logs]:
        clean, adv = model(parcel.x), model(parcel.x_adv)
        ce = self.ce(clean, parcel.y)
        divergence = kl(clean, adv).mean()
        return ce + self.beta * divergence, {
            "ce": ce.detach(),
            "kl": divergence.detach(),
            "acc": accuracy(clean, parcel.y),
            "acc_adv": accuracy(adv, parcel.y),
        }

"""Which of many points an attack returns: per example the first that fools, else the best gain.

A point that fools is never given up for one of higher gain: a fooled example may have a
cross-entropy of log 2 and one that stands nearly log K. Logits that are not finite fool nobody.

In low precision a point that just fools may not do so in float32, where it is judged. There the
point of the largest margin is kept, whoever came first.
"""

from math import inf

import torch
from torch import Tensor

from advtrain import functional
from advtrain.attacks.guard import modules_of
from advtrain.attacks.survivors import precise
from advtrain.precision import is_low
from advtrain.rows import per_image
from advtrain.types import Classifier


class Watched:
    """A classifier that remembers the logits of its last call."""

    def __init__(self, model: Classifier) -> None:
        self.model = model
        self.logits = torch.empty(0)

    def __call__(self, x: Tensor) -> Tensor:
        logits = self.model(x)
        self.logits = logits.detach()
        return logits


class Best:
    """The choice so far, `x`; the clean images before any offer. No host synchronisation."""

    def __init__(self, model: Classifier, x: Tensor, y: Tensor, *, targeted: bool) -> None:
        self.model = model
        self.rounding = any(is_low(module) for module in modules_of(model))
        self.x = x
        self.y = y
        self.targeted = targeted
        self.gain = torch.full(y.shape, -inf, device=x.device)
        self.fooled = torch.zeros_like(y, dtype=torch.bool)

    def offer(self, x_adv: Tensor, gain: Tensor, logits: Tensor) -> None:
        """Take `x_adv` (B, ...) where it is better; `gain` (B,) and `logits` (B, K) are its own."""
        if self.rounding:
            margin = functional.margin(logits, self.y)
            gain = (-margin if self.targeted else margin).where(logits.isfinite().all(1), -inf)
        fooled = self._fools(logits, self.y) & (not self.rounding)
        better = ~self.fooled & (fooled | (gain > self.gain))
        self.x = torch.where(per_image(better, x_adv), x_adv, self.x)
        self.gain = torch.where(better, gain, self.gain)
        self.fooled |= fooled

    def certain(self) -> Tensor:
        """Whether the choice fools the model in float32, (B,); in low precision it is asked."""
        if not self.rounding:
            return self.fooled
        fooled, hits = self.fooled.clone(), (self.gain > 0).nonzero().squeeze(1)
        if len(hits):
            fooled[hits] = self._fools(precise(self.model, self.x[hits]), self.y[hits])
        return fooled

    def _fools(self, logits: Tensor, y: Tensor) -> Tensor:
        hit = (logits.argmax(1) == y) == self.targeted
        return hit & torch.isfinite(logits).all(1)

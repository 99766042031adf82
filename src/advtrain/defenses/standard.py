"""Standard training: cross-entropy on clean images. The row that every defense is compared with."""

from dataclasses import dataclass

from torch import Tensor, nn

from advtrain.defenses.base import Clean, Defense, accuracy
from advtrain.types import Logs, Moment


@dataclass
class Standard(Defense):
    """No attack; one forward and one backward pass per step."""

    judged_by = "val_acc"  # adversarial accuracy is noise around 0 here

    def craft(self, model: nn.Module, x: Tensor, y: Tensor, now: Moment) -> Clean:
        return Clean(x, y)

    def loss(self, model: nn.Module, parcel: Clean) -> tuple[Tensor, Logs]:
        logits = model(parcel.x)
        loss = self.ce(logits, parcel.y)
        return loss, {"acc": accuracy(logits, parcel.y)}

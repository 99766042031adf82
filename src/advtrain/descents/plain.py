"""The plain descent: one gradient, one step of the optimizer."""

from dataclasses import dataclass

from torch import Tensor, nn
from torch.optim import Optimizer

from advtrain.exchange import sum_gradients
from advtrain.ranges import Positive
from advtrain.types import Evaluate, Logs, Moment


@dataclass(frozen=True)
class Plain:
    """`clip_norm`: the largest l2 norm of the whole gradient; null leaves it as it is.

    Runs `backward`, so that leaves of the parcel get their gradients too. Clipping logs
    `grad_norm`, the norm before it.
    """

    clip_norm: Positive | None

    def __call__(
        self, model: nn.Module, optimizer: Optimizer, evaluate: Evaluate, now: Moment
    ) -> tuple[Tensor, Logs]:
        optimizer.zero_grad()
        loss, logs = evaluate()
        loss.backward()
        sum_gradients(model.parameters())
        if self.clip_norm is not None:
            norm = nn.utils.clip_grad_norm_(model.parameters(), self.clip_norm)
            logs = {**logs, "grad_norm": norm.detach()}
        optimizer.step()
        return loss.detach(), logs

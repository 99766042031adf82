"""Free adversarial training (Shafahi et al. 2019, https://arxiv.org/abs/1904.12843, algorithm 1).

The backward pass of an update also gives the gradient of the loss with respect to the perturbation
delta; delta <- the ball's nearest point to delta + step_size * direction, before the next update.
Each batch comes `dataset.replays` times (m in the paper) from the loader: to the trainer they are m
steps, and schedules count steps. E epochs of Free-m make E * m passes over the data, so the paper
divides its epochs by m.

delta is never reset: row i meets the i-th image of batch after batch, a short batch uses and moves
its first rows. With an l2 threat the direction is the gradient at unit length, which the paper
leaves open.

Differs: `box: graph` is the authors' code for CIFAR-10 and ImageNet: delta is confined to the ball
alone and the box acts on x + delta within the graph, so a pixel that leaves the box sends delta no
gradient. Where images are black or white that holds it still for good, as most of digits and MNIST.
`box: image`, in the code of Wong et al. 2020, cuts delta to the box of the image at hand after each
update, and shows the network x + delta.
"""

from dataclasses import dataclass, field, replace
from math import inf
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from advtrain.attacks.pgd import step
from advtrain.defenses.base import Defense, accuracy
from advtrain.exchange import interleaved, of_all
from advtrain.ranges import Positive
from advtrain.threat import Ball
from advtrain.types import Logs, Moment, Threat
from advtrain.world import share


class Warm(NamedTuple):
    """Images, the perturbation that they start from (a leaf that wants a gradient), labels."""

    x: Tensor
    delta: Tensor
    y: Tensor


@dataclass
class Free(Defense):
    """`step_size` in pixels of [0, 1]; the paper's is eps."""

    threat: Threat
    step_size: Positive
    box: Literal["graph", "image"] = "graph"
    delta: Tensor | None = field(init=False, default=None, repr=False)
    shown: Warm | None = field(init=False, default=None, repr=False)

    def craft(self, model: nn.Module, x: Tensor, y: Tensor, now: Moment) -> Warm:
        self.ascend()
        delta = x[:0] if self.delta is None else self.delta.to(x.device)
        unseen = torch.zeros_like(x[len(delta) :])
        self.delta = torch.cat([delta, unseen]) if len(unseen) else delta
        self.shown = Warm(x, self.delta[: len(x)].clone().requires_grad_(), y)
        return self.shown

    def loss(self, model: nn.Module, parcel: Warm) -> tuple[Tensor, Logs]:
        z = parcel.x + parcel.delta
        logits = model(boxed(z) if self.box == "graph" else z)
        loss = self.ce(logits, parcel.y)
        return loss, {"acc": accuracy(logits, parcel.y)}

    def ascend(self) -> None:
        """Spend the gradient that the last backward pass left on the perturbation, if any."""
        gradient = None if self.shown is None else self.shown.delta.grad
        if self.delta is not None and self.shown is not None and gradient is not None:
            x = self.shown.x
            moved = step(self.shown.delta.detach(), self.threat.steepest(gradient), self.step_size)
            moved = self._ball().project(moved, torch.zeros_like(moved))
            self.delta[: len(x)] = moved if self.box == "graph" else (x + moved).clamp(0, 1) - x
        self.shown = None

    def _ball(self) -> Ball:
        """The threat without the box, which acts on x + delta in the loss."""
        assert isinstance(self.threat, Ball)
        return replace(self.threat, low=-inf, high=inf)

    def state_dict(self) -> dict[str, Any]:
        """The perturbation after its pending ascent: spent now or at the next batch, the same."""
        self.ascend()
        return {"delta": None if self.delta is None else interleaved(of_all(self.delta.cpu))}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        delta, self.shown = state["delta"], None
        self.delta = None if delta is None else delta[share(len(delta))].clone()


def boxed(z: Tensor) -> Tensor:
    """`z` cut to [0, 1]; pixels inside, those at 0 and 1 included, pass gradients on.

    Tensor.clamp does so at its ends in some versions of PyTorch only, and black pixels start there.
    """
    cut: Tensor = _Boxed.apply(z)
    return cut


class _Boxed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor) -> Tensor:
        ctx.save_for_backward(z)
        return z.clamp(0, 1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (z,) = ctx.saved_tensors
        just = torch.finfo(z.dtype)  # hardtanh passes nothing on at its ends: they lie beyond ours
        return torch.ops.aten.hardtanh_backward(gradient, z, -just.tiny, 1 + just.eps)

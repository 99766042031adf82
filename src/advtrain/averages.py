"""Averages of weights along the run: which network is judged.

An average is made from the network and the number of updates of the run. It counts updates itself;
`start` is a share of the run. Averaged networks are in evaluation mode, want no gradients, and stay
in the precision of the weights that they average (fp32: at decay 0.9998 a bf16 update vanishes).
"""

from collections.abc import Iterable
from copy import deepcopy
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from advtrain.conditions import Conditional, by_width, in_turn
from advtrain.ranges import Count, Decay, Unit

Batches = Iterable[tuple[Tensor, Tensor]]


class Last:
    """No averaging: the trained network itself is judged."""

    def __init__(self, model: nn.Module, steps: int) -> None:
        self.model = model

    def update(self, model: nn.Module) -> None:
        """Nothing: `.model` is the network that is trained."""

    def prepare(self, batches: Batches) -> None:
        """Nothing to prepare."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to load."""


class Ema:
    """Exponential moving average: avg <- tau avg + (1 - tau) weights, after every update.

    The first max(1, start * steps) updates are copied, so the average begins at real weights, not
    at the initialisation. tau is `decay`, and with `ramp` min(decay, (1 + t) / (10 + t)) at the
    t-th averaged update, t = 0, 1, ... (Gowal et al. 2020, https://arxiv.org/abs/2010.03593, who
    copy during the first 2.5 % of the run and take the buffers over). `buffers: averaged` treats
    running statistics like weights, as NuAT's release does; `copied` takes the newest. Whole
    numbers, such as counts of batches, are always copied.
    """

    def __init__(
        self,
        model: nn.Module,
        steps: int,
        *,
        decay: Decay,
        start: Unit,
        ramp: bool,
        buffers: Literal["averaged", "copied"],
    ) -> None:
        self.model = _frozen_copy(model)
        self.decay, self.ramp, self.buffers = decay, ramp, buffers
        self.copied = max(1, round(start * steps))
        self.count = 0

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take in the weights after one optimizer step: one fused pass, no host round trip."""
        tau = self._decay_at(self.count - self.copied)
        self.count += 1
        mine, theirs = _weights(self.model), _weights(model)
        if self.buffers == "averaged":
            mine, theirs = mine + _statistics(self.model), theirs + _statistics(model)
        torch._foreach_lerp_(mine, theirs, 1 - tau)
        _copy_buffers(model, self.model, floating=self.buffers == "copied")

    def _decay_at(self, t: int) -> float:
        if t < 0:
            return 0.0
        return min(self.decay, (1 + t) / (10 + t)) if self.ramp else self.decay

    def prepare(self, batches: Batches) -> None:
        """Nothing to prepare: statistics follow the updates."""

    def state_dict(self) -> dict[str, Any]:
        return {"model": self.model.state_dict(), "count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.count = state["count"]


class Swa:
    """Arithmetic mean of the weights (Izmailov et al. 2018, https://arxiv.org/abs/1803.05407).

    The mean is over every `every`-th update once `start * steps` updates are done; until the first,
    `.model` is the trained network. Running statistics are those of the newest weights until
    `prepare` estimates them anew at the mean.
    """

    def __init__(self, model: nn.Module, steps: int, *, start: Unit, every: Count) -> None:
        self.trained, self.mean = model, _frozen_copy(model)
        self.before, self.every = round(start * steps), every
        self.count = self.taken = 0
        self.stale = False

    @property
    def model(self) -> nn.Module:
        return self.mean if self.taken else self.trained

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Count one optimizer step, and take in its weights if it is its turn."""
        due = self.count >= self.before and (self.count - self.before) % self.every == 0
        self.count += 1
        if due:
            self.taken += 1
            torch._foreach_lerp_(_weights(self.mean), _weights(model), 1 / self.taken)
            _copy_buffers(model, self.mean, floating=True)
            self.stale = True

    def prepare(self, batches: Batches) -> None:
        """Before an evaluation: estimate running statistics at the mean, if it has moved since."""
        if self.stale:
            recalibrate(self.mean, batches)
            self.stale = False

    def state_dict(self) -> dict[str, Any]:
        progress = {"count": self.count, "taken": self.taken, "stale": self.stale}
        return {"model": self.mean.state_dict(), **progress}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.mean.load_state_dict(state["model"])
        self.count, self.taken, self.stale = state["count"], state["taken"], state["stale"]


@torch.no_grad()
def recalibrate(model: nn.Module, batches: Batches) -> None:
    """Set the running statistics of batch norms to the mean over `batches`, in one pass.

    Weights and mode stay. The images are taken as they come: clean ones, where the statistics of
    adversarial training are partly of adversarial images. A conditional network sees each batch
    with the lambdas of its training, and a slimmable one at all its widths.
    """
    update_bn(batches, InTurn(model) if isinstance(model, Conditional) else model)


class InTurn(nn.Module):
    """A conditional network that sees a batch with the lambdas of its training in turn."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.training = network.training

    def forward(self, x: Tensor) -> Tensor:
        assert isinstance(self.network, Conditional)
        condition = in_turn(self.network, len(x))
        for each in by_width(self.network).values():
            logits = each(x, condition)
        return logits


def _frozen_copy(model: nn.Module) -> nn.Module:
    return deepcopy(model).eval().requires_grad_(False)


def _weights(model: nn.Module) -> list[Tensor]:
    return [parameter.detach() for parameter in model.parameters()]


def _statistics(model: nn.Module) -> list[Tensor]:
    return [buffer for buffer in model.buffers() if buffer.is_floating_point()]


def _copy_buffers(source: nn.Module, target: nn.Module, *, floating: bool) -> None:
    pairs = [
        (mine, theirs)
        for mine, theirs in zip(target.buffers(), source.buffers(), strict=True)
        if floating or not mine.is_floating_point()
    ]
    if pairs:
        mine, theirs = map(list, zip(*pairs, strict=True))
        torch._foreach_copy_(mine, theirs)

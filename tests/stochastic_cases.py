"""Networks that draw at random and about which everything is known."""

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn


class Coin(nn.Module):
    """Names class 0 with probability p in each draw, else class 1, both as surely."""

    stochastic = True

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        first = torch.rand(len(x), device=x.device) < self.p
        return torch.stack([first, ~first], dim=1).float() * 5 + 0 * x.flatten(1)[:, :2]


class Weather(nn.Module):
    """Noise that a whole batch shares, as of random layers or sizes; says nothing of rows."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, :2] + torch.randn(1, 2)


class Relaxed(nn.Module):
    """A relaxed sample of softmax(h), times 10: nearly one-hot at the temperature 0.01 of a test.

    So one draw names k with probability softmax(h)_k, the mean over draws is softmax(h), and the
    gradient of a draw is 0 almost everywhere.
    """

    stochastic = True
    tau: float | None = None
    quiet = False

    def forward(self, h: Tensor) -> Tensor:
        if self.quiet:
            return 10 * h.softmax(1)
        tau = self.tau or (0.67 if self.training else 0.01)
        noise = -torch.empty_like(h).exponential_().log()
        return 10 * ((h + noise) / tau).softmax(1)


class Scores(nn.Sequential):
    """Of digits (N, 1, 8, 8) by least squares; what they are is drawn by `last`."""

    def __init__(self, scale: float = 12.0, last: nn.Module | None = None) -> None:
        super().__init__(nn.Flatten(), nn.Linear(64, 10), last or Relaxed())
        data = load_digits()
        x = torch.tensor(data.images / 16.0, dtype=torch.float32).flatten(1)
        wanted = torch.eye(10)[torch.tensor(data.target)] - 0.1
        solution = torch.linalg.lstsq(x.T @ x + torch.eye(64), x.T @ wanted).solution
        with torch.no_grad():
            self[1].weight.copy_(scale * solution.T)
            self[1].bias.zero_()


class Jitter(nn.Module):
    """Noise on scores; says nothing of it."""

    def forward(self, h: Tensor) -> Tensor:
        return h + torch.randn_like(h)


class Jittered(Scores):
    """The same scores with noise from code that knows of no contexts."""

    def __init__(self) -> None:
        super().__init__(last=Jitter())


class Plain(Scores):
    """The same scores without draws."""

    def __init__(self) -> None:
        super().__init__(last=nn.Identity())


@contextmanager
def _set(model: nn.Module, name: str, value: object) -> Iterator[None]:
    parts = [part for part in model.modules() if isinstance(part, Relaxed)]
    before = [getattr(part, name) for part in parts]
    for part in parts:
        setattr(part, name, value)
    try:
        yield
    finally:
        for part, old in zip(parts, before, strict=True):
            setattr(part, name, old)


SWITCHES = SimpleNamespace(
    temperature=lambda model, tau: _set(model, "tau", 0.67 if tau == "train" else tau),
    noise_free=lambda model: _set(model, "quiet", True),
)
"""The contexts that stochastic layers bring, for `Relaxed`."""

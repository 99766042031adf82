"""Networks that only seem robust, each for a reason of its own, and honest ones beside them.

Most put something before, behind or into a network that was trained without attacks, and what is
true of that network stays true: within eps = 0.15 on digits hardly an image is safe.
"""

from collections.abc import Callable, Iterator
from functools import cache, partial
from math import cos, pi

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

from advtrain.attacks import starts
from advtrain.attacks.pgd import fgsm, pgd
from advtrain.averages import Last
from advtrain.defenses.pgd_at import PgdAt
from advtrain.defenses.standard import Standard
from advtrain.defenses.trades import Trades
from advtrain.descents.plain import Plain
from advtrain.threat import Linf
from advtrain.training import Method, TrainState, train_step
from advtrain.types import Defense, Moment

EPS = Linf(0.15)
HUGE = Linf(0.45)
ATTACK = partial(pgd, threat=EPS, steps=5, step_size=EPS.eps / 2)
HONEST: dict[str, Defense] = {
    "standard": Standard(),
    "pgd_at": PgdAt(ATTACK, "eval"),
    "trades": Trades(ATTACK, starts.normal(std=0.001), 6.0),
}


class Before(nn.Module):
    """A network with `change` applied to its images."""

    def __init__(self, change: Callable[[Tensor], Tensor], inner: nn.Module) -> None:
        super().__init__()
        self.change = change
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(self.change(x))


class After(nn.Module):
    """A network with `change` applied to its logits."""

    def __init__(self, inner: nn.Module, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.inner = inner
        self.change = change

    def forward(self, x: Tensor) -> Tensor:
        return self.change(self.inner(x))


def quantised(inner: nn.Module, levels: int = 8) -> nn.Module:
    """Pixels rounded to `levels`, as in bit-depth reduction."""
    return Before(lambda x: (x * levels).round() / levels, inner)


def compressed(inner: nn.Module, step: float = 0.25) -> nn.Module:
    """The cosine transform of each block of 8 by 8 pixels, rounded, as JPEG does."""
    basis = torch.tensor([[cos(pi * (2 * j + 1) * i / 16) for j in range(8)] for i in range(8)])
    basis = basis * torch.tensor([0.125**0.5] + 7 * [0.5]).unsqueeze(1)

    def change(x: Tensor) -> Tensor:
        blocks = x.unflatten(2, (-1, 8)).unflatten(4, (-1, 8)).transpose(3, 4)
        rounded = (basis @ blocks @ basis.T / step).round() * step
        return (basis.T @ rounded @ basis).transpose(3, 4).flatten(4).flatten(2, 3)

    return Before(change, inner)


def converted(inner: nn.Module) -> nn.Module:
    """Images that leave torch on their way, as through an image library."""
    return Before(lambda x: torch.from_numpy(x.detach().numpy().round(1)), inner)


def noisy(inner: nn.Module, std: float) -> nn.Module:
    """Gaussian noise on the images in every forward pass."""
    return Before(lambda x: x + std * torch.randn_like(x), inner)


def confident(inner: nn.Module, factor: float = 1000.0) -> nn.Module:
    """Logits so far apart that cross-entropy has no gradient in float32."""
    return After(inner, lambda logits: factor * logits)


def probabilistic(inner: nn.Module) -> nn.Module:
    """Probabilities in place of logits."""
    return After(inner, lambda logits: logits.softmax(1))


def two_faced(inner: nn.Module) -> nn.Module:
    """Other logits where gradients are on."""
    return After(inner, lambda logits: logits.roll(1, 1) if torch.is_grad_enabled() else logits)


def purified(inner: nn.Module, steps: int = 3, size: float = 0.05) -> nn.Module:
    """Steps towards whatever class the network believes in, before it answers."""

    def change(x: Tensor) -> Tensor:
        for _ in range(steps):
            with torch.enable_grad():
                leaf = x.detach().requires_grad_()
                logits = inner(leaf)
                (gradient,) = torch.autograd.grad(F.cross_entropy(logits, logits.argmax(1)), leaf)
            x = (x - size * gradient.sign()).clamp(0, 1)
        return x

    return Before(change, inner)


def purified_by_func(inner: nn.Module, size: float = 0.05) -> nn.Module:
    """One such step by torch.func, which autograd's own hooks do not see."""

    def loss(x: Tensor) -> Tensor:
        logits = inner(x)
        return F.cross_entropy(logits, logits.detach().argmax(1))

    return Before(lambda x: (x - size * torch.func.grad(loss)(x).sign()).clamp(0, 1), inner)


class Winner(nn.Module):
    """Stochastic local winner-takes-all: one of each pair of channels passes, by Gumbel noise.

    At temperature 0.01, that of evaluation, the mask is a step almost everywhere (Panousis et al.
    2021).
    """

    def forward(self, x: Tensor) -> Tensor:
        pairs = x.unflatten(1, (-1, 2))
        noise = -torch.empty_like(pairs).exponential_().log()
        temperature = 0.67 if self.training else 0.01
        return (pairs * ((pairs + noise) / temperature).softmax(2)).flatten(1, 2)


class Largest(nn.Module):
    """k-winners-take-all: a tenth of the activations of an image passes (Xiao et al. 2020)."""

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)
        least = flat.topk(flat.shape[1] // 10, dim=1).values[:, -1:]
        return (flat * (flat >= least)).view_as(x)


class Stubborn(nn.Dropout):
    """Dropout that stays in training mode, as of a network with a `train` of its own."""

    def train(self, mode: bool = True) -> "Stubborn":
        return super().train(True)


class Counting(nn.Module):
    """An identity that counts its calls in a buffer."""

    calls: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x


def cnn(activation: type[nn.Module] = nn.ReLU, *, batch_norm: bool = False) -> nn.Sequential:
    """For digits; batch norm keeps no running statistics, so it couples the batch for ever."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for inputs, outputs, stride in ((1, 8, 1), (8, 16, 2)):
        layers.append(nn.Conv2d(inputs, outputs, 3, stride, 1))
        if batch_norm:
            layers.append(nn.BatchNorm2d(outputs, track_running_stats=False))
        layers.append(activation())
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(256, 10))


def strided() -> nn.Sequential:
    """For digits at twice their size; wide enough to learn a single step by heart."""
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(1, 8, 4, 2, 1), nn.ReLU(), nn.Conv2d(8, 16, 4, 2, 1), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(256, 64), nn.ReLU(), nn.Linear(64, 10)),
    )


def enlarged(x: Tensor) -> Tensor:
    """Each pixel as two by two."""
    return x.repeat_interleave(2, 2).repeat_interleave(2, 3)


def trained(
    model: nn.Module, defense: Defense, x: Tensor, y: Tensor, *, epochs: int, lr: float, size: int
) -> nn.Module:
    """`model` after `epochs` of `defense` on x, y in batches of `size`; in evaluation mode."""
    for _ in training(model, defense, x, y, epochs=epochs, lr=lr, size=size):
        pass
    return model


def training(
    model: nn.Module, defense: Defense, x: Tensor, y: Tensor, *, epochs: int, lr: float, size: int
) -> Iterator[None]:
    """Yields after each epoch, with `model` in evaluation mode."""
    state = TrainState(model, torch.optim.Adam(model.parameters(), lr), Last(model, 10), defense)
    method = Method(Plain(None), {}, {}, seed=0)
    total = epochs * -(-len(x) // size)
    draws = torch.Generator().manual_seed(0)
    for _ in range(epochs):
        model.train()
        for at in torch.randperm(len(x), generator=draws).split(size):
            now = Moment(state.step, 0.0, state.step / total)
            train_step(state, x[at], y[at], now, method)
        model.zero_grad()
        model.eval()
        yield


@cache
def collapsed() -> nn.Module:
    """FGSM training at a radius where it learns to defeat FGSM and nothing else, until it has."""
    (x, y), model = to_train_on(), strided()
    x, defense = enlarged(x), PgdAt(partial(fgsm, threat=HUGE), "eval", warmup=0.15)
    shown = x[:200], y[:200]
    for _ in training(model, defense, x, y, epochs=50, lr=1e-2, size=64):
        one = fgsm(model, *shown, threat=HUGE)
        many = pgd(model, *shown, threat=HUGE, steps=10, step_size=HUGE.eps / 4)
        right, single, several = (hits(model, at, shown[1]) for at in (shown[0], one, many))
        if single > 0.8 * right and several < 0.02 * right:
            return model
    raise AssertionError("single-step training did not collapse")


@cache
def honest(name: str) -> nn.Module:
    """A network trained by HONEST[name]."""
    x, y = to_train_on()
    return trained(cnn(), HONEST[name], x[:1000], y[:1000], epochs=6, lr=4e-3, size=64)


@cache
def digits() -> tuple[Tensor, Tensor]:
    """All digits, (1797, 1, 8, 8) and their labels, in one random order."""
    data = load_digits()
    order = torch.randperm(len(data.target), generator=torch.Generator().manual_seed(0))
    x = torch.tensor(data.images / 16.0, dtype=torch.float32).unsqueeze(1)
    return x[order], torch.tensor(data.target, dtype=torch.int64)[order]


def to_train_on() -> tuple[Tensor, Tensor]:
    x, y = digits()
    return x[400:], y[400:]


def held_out() -> tuple[Tensor, Tensor]:
    """128 digits that no network here has trained on."""
    x, y = digits()
    return x[:128], y[:128]


def hits(model: nn.Module, x: Tensor, y: Tensor) -> int:
    """How many of the images are right."""
    with torch.no_grad():
        return int((model(x).argmax(1) == y).sum())

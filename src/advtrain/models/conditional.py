"""Networks that are told a lambda beside the image: Once-for-all (Wang et al. 2020,
https://arxiv.org/abs/2010.11828, sec. 3).

A plain network is built, and each batch norm is exchanged for `ConditionalNorm`: two batch norms of
which the rows with lambda 0 take one and all others the other (dual batch norm), then FiLM (Perez
et al. 2018, https://arxiv.org/abs/1709.07871), a scale and a shift of each channel that a small
network makes of the code of lambda. So no block is written twice. A pass puts its condition on the
`Dial` that all norms of the network share.

The split is by lambda, not by what is clean: an image with lambda > 0 goes through the second norm
with and without its perturbation.

Codes of lambda, by its place j among the L lambdas of the training: row j of a matrix of size d,
which is a buffer of the network. Differs: the authors keep a random matrix in a file of its own,
and know no lambda outside the list; here the code of any other lies on the line between those of
its neighbours, which is our extension. Below the least nonzero lambda that line ends at the code of
0, but the second norm is used, as for every lambda > 0.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import pi
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from advtrain.conditions import UNIT, Condition
from advtrain.models.network import Network
from advtrain.ranges import require

Encoding = Literal["none", "onehot", "dct", "rand"]
SLOPE = 0.01  # of the leaky ReLUs
LACKING = (
    "{name} is conditional: beside the images it wants a lambda, 0 for standard to 1 for robust "
    "accuracy. Look at it through view=at(lambda), as eval=oat does for several "
    "(advtrain.models.views.at in Python), and train it by defense=oat."
)


class Film(nn.Module):
    """scale * x + shift, both (C,) of a code (d,): leaky(W2 leaky(W1 code + b1) + b2), halved.

    `offset` is added to the scale. At 0, the authors' form, scales begin near 0.02, and train since
    a batch norm follows sooner or later; at 1 the layer begins near the identity.
    """

    def __init__(self, inputs: int, channels: int, offset: float) -> None:
        super().__init__()
        self.offset = offset
        self.mlp = nn.Sequential(
            nn.Linear(inputs, 2 * channels),
            nn.LeakyReLU(SLOPE),
            nn.Linear(2 * channels, 2 * channels),
        )

    def forward(self, x: Tensor, codes: Tensor) -> Tensor:
        """x (B, C, H, W); codes (B, d), or (1, d) for all rows alike."""
        scale, shift = F.leaky_relu(self.mlp(codes), SLOPE)[..., None, None].chunk(2, 1)
        return torch.addcmul(shift, scale + self.offset if self.offset else scale, x)


class DualNorm(nn.Module):
    """Two batch norms: `standard` for the first `zeros` rows, `robust` for all others.

    A norm that gets no row keeps its statistics.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.num_features = channels
        self.standard = nn.BatchNorm2d(channels)
        self.robust = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor, zeros: int) -> Tensor:
        if zeros == 0:
            return self.robust(x)
        if zeros == len(x):
            return self.standard(x)
        return torch.cat([self.standard(x[:zeros]), self.robust(x[zeros:])])


class SingleNorm(nn.BatchNorm2d):
    """One batch norm for all rows."""

    def forward(self, x: Tensor, zeros: int) -> Tensor:  # type: ignore[override]
        return super().forward(x)


@dataclass(eq=False)
class Dial:
    """The condition of the pass that is going on: codes (B, d) or (1, d), and leading zeros."""

    codes: Tensor | None = None
    zeros: int = 0


class ConditionalNorm(nn.Module):
    """A batch norm, single or dual, and FiLM behind it unless `film` is None; reads the dial."""

    def __init__(self, norm: nn.Module, film: Film | None, dial: Dial) -> None:
        super().__init__()
        self.norm = norm
        self.film = film
        self.dial = dial

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x, self.dial.zeros)
        if self.film is None:
            return x
        assert self.dial.codes is not None
        return self.film(x, self.dial.codes)


class ConditionalNetwork(Network):
    """`network(x, condition)`: logits (B, K). `plain` gives its parts, and is not to be used after.

    Raises ValueError for lambdas that are not distinct and within [0, 1], and for a list that is
    longer than the codes. Which batch norms go without FiLM, `bare` tells by their names in the
    body. Values of a condition are not checked, for that would wait for the device.
    """

    values: Tensor
    codes: Tensor

    def __init__(
        self,
        plain: Network,
        *,
        lambdas: Sequence[float],
        encoding: Encoding,
        code_size: int,
        dual: bool,
        film_offset: float,
        bare: Callable[[str], bool],
    ) -> None:
        super().__init__(plain.normalise, plain.body, plain.head, accepts=plain.accepts)
        self.lambdas = ascending(lambdas)
        self.register_buffer("values", torch.tensor(self.lambdas))
        self.register_buffer("codes", matrix(encoding, len(lambdas), code_size))
        self.scalar = encoding == "none"
        self.dial = Dial()
        inputs = 1 if self.scalar else code_size
        for name, norm in list(self.body.named_modules()):
            if isinstance(norm, nn.BatchNorm2d):
                channels = norm.num_features
                film = None if bare(name) else Film(inputs, channels, film_offset)
                inner = DualNorm(channels) if dual else SingleNorm(channels)
                self.body.set_submodule(name, ConditionalNorm(inner, film, self.dial))

    def features(self, x: Tensor, condition: Condition | None = None) -> Tensor:
        """What the head sees, (B, F)."""
        if condition is None:
            raise ValueError(LACKING.format(name=type(self).__name__))
        self.dial.codes, self.dial.zeros = self.encode(condition.lambdas), condition.zeros
        try:
            return super().features(x)
        finally:
            self.dial.codes = None

    def forward(self, x: Tensor, condition: Condition | None = None) -> Tensor:
        """Logits, (B, K). ValueError: no condition."""
        return self.head(self.features(x, condition))

    def encode(self, lambdas: Tensor) -> Tensor:
        """Codes (B, d) of lambdas (B,): lambda itself, or the line through the rows of `codes`."""
        if self.scalar:
            return lambdas.unsqueeze(1)
        return _between(lambdas, self.values) @ self.codes


def _between(lambdas: Tensor, values: Tensor) -> Tensor:
    """Weights (B, L) of the two values next to each lambda; 1 for one that is a value itself."""
    if len(values) == 1:
        return torch.ones_like(lambdas).unsqueeze(1)
    within = lambdas.clamp(values[0], values[-1]).unsqueeze(1)
    shares = ((within - values[:-1]) / values.diff()).clamp(0, 1)  # of each gap, passed so far
    ends = torch.ones_like(within), torch.zeros_like(within)
    return torch.cat([ends[0], shares], 1) - torch.cat([shares, ends[1]], 1)


def ascending(lambdas: Sequence[float]) -> tuple[float, ...]:
    """The lambdas of a training in order. ValueError: outside [0, 1], repeated, or none."""
    for lam in lambdas:
        require("a lambda of model.lambdas", lam, UNIT)
    if not lambdas or len(set(lambdas)) < len(lambdas):
        raise ValueError(
            f"model.lambdas is {list(lambdas)}; give distinct numbers, at least one: "
            "[0, 0.1, 0.2, 0.3, 0.4, 1]."
        )
    return tuple(sorted(float(lam) for lam in lambdas))


def matrix(encoding: Encoding, rows: int, size: int) -> Tensor:
    """The first `rows` rows (L, d) of the matrix of size d that holds the codes.

    onehot: the identity; dct: 2 cos(pi j (2 n + 1) / (2 d)), row j and column n, as SciPy computes
    it; rand: an orthogonal matrix, drawn by the global generator. Of none there are no codes.
    """
    if encoding == "none":
        return torch.empty(rows, 0)
    if rows > size:
        raise ValueError(
            f"model.lambdas has {rows} entries, and model.code_size is {size}: each needs a code "
            f"of its own. Use model.code_size={rows} or more, or model.encoding=none."
        )
    if encoding == "onehot":
        return torch.eye(size)[:rows]
    if encoding == "dct":
        n = 2 * torch.arange(size, dtype=torch.float64) + 1
        j = torch.arange(rows, dtype=torch.float64).unsqueeze(1)
        return (2 * torch.cos(pi * j * n / (2 * size))).float()
    if encoding == "rand":
        return torch.linalg.qr(torch.randn(size, size))[0][:rows].contiguous()
    raise ValueError(f"model.encoding is {encoding!r}; allowed are none, onehot, dct and rand.")

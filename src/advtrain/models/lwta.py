"""Stochastic local winner-takes-all activations (Panousis et al. 2021,
https://proceedings.mlr.press/v130/panousis21a.html), in place of ReLU.

Consecutive channels h_1 .. h_U of a layer form a block and compete, in each pixel anew. A relaxed
draw (Maddison et al. 2017, https://arxiv.org/abs/1611.00712) of the winner weighs them:

    mask = softmax((h + G) / tau),  G independent Gumbel noise,  output = mask * h.

As tau falls to 0 the winner passes, negative or not, with probability softmax(h), and the others
give 0. Noise is drawn in training and in evaluation, so predictions are random; the two differ in
tau: 0.67 and 0.01 in the paper. At 0.01 the mask is a step almost everywhere, and its gradient is
nearly 0 but for rare spikes of up to 25: attacks through it fail without the network being robust.
Attack through `temperature(model, "train")` or `noise_free(model)` as well.

With two competitors the mask is (s, 1 - s), s = sigmoid((h_1 - h_2 + L) / tau), where L is the
difference of two Gumbels: logistic, so one number per block and no exponentials of single units.
Its uniform numbers have 16 bits, a quarter of the time of 24 on a processor: the distribution of L
is followed within 2^-17, and L ends at +-11.8.

Differs: the authors multiply in place, which changes what else reads the same tensor. Their Gumbel
noise is -log(-log(u + 1e-8) + 1e-8), which ends at 18.4 and -2.9. Their divergence takes the mask
that was drawn for the probabilities, and no loss adds it; here it is that of softmax(h), see
`penalties.lwta_kl`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from math import log
from threading import local
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from advtrain.ranges import Count, Positive, Range, require

Phase = Literal["train", "test"]
EXPECTED = "expected"  # in place of a temperature: no noise, the mask softmax(h)


class Lwta(nn.Module):
    """Blocks of `competitors` channels, in tensors (B, channels) or (B, channels, ...).

    One competitor wins against nobody: the identity. `inplace`: where no gradient is wanted the
    output takes the place of the input, which nobody else may read; a twentieth of the time of a
    network. ValueError: a number that does not divide the channels, or a temperature that is not
    positive.
    """

    divergences: list[Tensor] | None = None
    forced: float | str | None = None  # by the contexts below; None: the temperature of the mode

    def __init__(
        self,
        channels: int,
        *,
        competitors: Count,
        train_temperature: Positive,
        test_temperature: Positive,
        inplace: bool = False,
    ) -> None:
        super().__init__()
        require("model.competitors", competitors, Range(1))
        require("model.train_temperature", train_temperature, Range(0, open_low=True))
        require("model.test_temperature", test_temperature, Range(0, open_low=True))
        if channels % competitors:
            raise ValueError(
                f"model.competitors is {competitors}, which does not divide the {channels} "
                f"channels of a layer into blocks. Choose a divisor of {channels}, as 2."
            )
        self.channels, self.competitors = channels, competitors
        self.train_temperature, self.test_temperature = train_temperature, test_temperature
        self.inplace = inplace

    @property
    def stochastic(self) -> bool:
        """Whether two passes differ."""
        return self.competitors > 1 and self.forced != EXPECTED

    def forward(self, h: Tensor) -> Tensor:
        if h.shape[1] != self.channels:
            raise ValueError(f"{self} got {tuple(h.shape)}; it takes (B, {self.channels}, ...).")
        blocks = h.view(len(h), self.channels // self.competitors, self.competitors, *h.shape[2:])
        if self.divergences is not None and torch.is_grad_enabled():
            self.divergences.append(divergence(blocks))
        if self.competitors == 1:
            return h
        if self.forced == EXPECTED:
            return (blocks * blocks.softmax(2)).flatten(1, 2)
        if self.competitors == 2:
            return duel(blocks, self.tau, inplace=self.inplace).flatten(1, 2)
        return contest(blocks, self.tau).flatten(1, 2)

    @property
    def tau(self) -> float:
        """The temperature of draws now."""
        if isinstance(self.forced, float):
            return self.forced
        return self.train_temperature if self.training else self.test_temperature

    def extra_repr(self) -> str:
        return f"{self.channels}, competitors={self.competitors}"


def layers(model: nn.Module) -> list[Lwta]:
    """The winner-takes-all layers of `model`."""
    return [layer for layer in model.modules() if isinstance(layer, Lwta)]


@contextmanager
def temperature(model: nn.Module, tau: float | Phase) -> Iterator[None]:
    """Inside, `model` draws at `tau`, whatever its mode; "train" and "test" are each layer's own.

    Of nested contexts the inner one counts. A copy made inside draws so for good.
    """
    if not isinstance(tau, str):
        require("tau", tau, Range(0, open_low=True))
    elif tau not in ("train", "test"):
        raise ValueError(f"tau is {tau!r}; allowed are numbers above 0, train and test.")
    with _forced(model, {layer: _chosen(layer, tau) for layer in layers(model)}):
        yield


@contextmanager
def noise_free(model: nn.Module) -> Iterator[None]:
    """Inside, `model` is deterministic: each mask is its expectation at tau = 0, softmax(h)."""
    with _forced(model, dict.fromkeys(layers(model), EXPECTED)):
        yield


def _chosen(layer: Lwta, tau: float | Phase) -> float:
    if isinstance(tau, str):
        return float(layer.train_temperature if tau == "train" else layer.test_temperature)
    return float(tau)


@contextmanager
def _forced(model: nn.Module, wanted: dict[Lwta, Any]) -> Iterator[None]:
    before = {layer: layer.forced for layer in wanted}
    try:
        for layer, forced in wanted.items():
            layer.forced = forced
        yield
    finally:
        for layer, forced in before.items():
            layer.forced = forced


def divergence(blocks: Tensor) -> Tensor:
    """KL(softmax(h) || uniform) of blocks (B, N, U, ...), mean over positions: (B, N), in nats.

    0 where competitors are equal, log U where one is certain to win.
    """
    q = blocks.float().log_softmax(2)
    found = (q.exp() * q).sum(2) + log(blocks.shape[2])
    return found.flatten(2).mean(2) if found.ndim > 2 else found


def contest(blocks: Tensor, tau: float) -> Tensor:
    """A relaxed draw in each block of (B, N, U, ...), any U."""
    smallest = torch.finfo(torch.float32).tiny  # an exponential of 0 would be infinite noise
    waits = torch.empty(blocks.shape, device=blocks.device).exponential_().clamp_min_(smallest)
    mask = ((blocks - waits.log_()) / tau).softmax(2)
    return (blocks * mask).to(blocks.dtype)


def duel(pairs: Tensor, tau: float, *, inplace: bool = False) -> Tensor:
    """The same of pairs (B, N, 2, ...), by one logistic number each."""
    if torch.compiler.is_compiling():
        return traced(pairs, whole_logistic(pairs.select(2, 0).detach()), tau)
    noise = logistic(pairs.select(2, 0))
    if not (torch.is_grad_enabled() and pairs.requires_grad):
        return weighed(pairs, noise, tau, pairs if inplace else torch.empty_like(pairs))[0]
    drawn: Tensor = Duel.apply(pairs, noise, tau)
    return drawn


def logistic(like: Tensor) -> Tensor:
    """Standard logistic noise in the shape of `like`, float32, the same in any memory format.

    log(u / (1 - u)) of the midpoints u of 65,536 intervals; four are cut from each 64 random bits.
    """
    count = like.numel()
    if like.device.type == "cpu":
        return torch.from_numpy(_logistic(count)).view(like.shape)
    words = torch.empty((count + 3) // 4, dtype=torch.int64, device=like.device)
    whole = words.random_(-(2**63), None).view(torch.int16)[:count].view(like.shape)
    return whole.float().add_(2**15 + 0.5).mul_(2**-16).logit_()


whole_logistic = torch.library.custom_op(
    "advtrain::logistic", logistic, mutates_args=(), tags=(torch.Tag.nondeterministic_seeded,)
)
"""`logistic` as one operation for compilers, which look into none and repeat or drop none."""


@whole_logistic.register_fake
def _unfilled(like: Tensor) -> Tensor:
    return torch.empty(like.shape, device=like.device)


def _logistic(count: int) -> np.ndarray:
    """The same from NumPy, whose generator and logarithm take a third of the time of PyTorch's.

    In one buffer: writing a second one takes as long as the arithmetic.
    """
    u = RANDOM.bits(count).astype(np.float32)
    u += 0.5
    np.divide(2**16, u, out=u)
    u -= 1
    return np.log(u, out=u)  # of (1 - u) / u, in the same distribution


class Random(local):
    """Random bits for a processor: a generator in each thread, seeded anew by PyTorch's each time.

    Making a generator takes as long as 100,000 bits; three random words are a state like any other.
    """

    def __init__(self) -> None:
        self.generator = np.random.SFC64(0)

    def bits(self, count: int) -> np.ndarray:
        """So many times 16, as uint16."""
        words = torch.empty(4, dtype=torch.int64).random_(-(2**63), None).numpy().view(np.uint64)
        words[3] = 1  # a counter
        self.generator.state = {
            "bit_generator": "SFC64",
            "state": {"state": words},
            "has_uint32": 0,
            "uinteger": 0,
        }
        return self.generator.random_raw((count + 3) // 4).view(np.uint16)[:count]


RANDOM = Random()


def weighed(pairs: Tensor, noise: Tensor, tau: float, out: Tensor) -> tuple[Tensor, Tensor]:
    """mask * h of pairs, in `out`, and the mask of the first of two, in few passes; overwrites the
    noise. `out` may be the pairs.
    """
    first, second = pairs.unbind(2)
    # beyond 60 exp is slow, and the mask 0 or 1
    mask = noise.add_(first).sub_(second).mul_(1 / tau).clamp_(-60, 60).sigmoid_()
    one, other = out.unbind(2)
    torch.mul(first, mask, out=one)
    torch.addcmul(second, second, mask.to(second.dtype), value=-1, out=other)
    return out, mask


def traced(pairs: Tensor, noise: Tensor, tau: float) -> Tensor:
    """mask * h of pairs, in operations that a compiler makes one loop of, and differentiates."""
    first, second = pairs.float().unbind(2)
    mask = ((first - second + noise) / tau).sigmoid()
    return torch.stack([first * mask, second - second * mask], 2).to(pairs.dtype)


def returned(gradient: Tensor, pairs: Tensor, mask: Tensor, tau: float) -> Tensor:
    """The gradient to pairs of one to their mask * h, in few passes."""
    (first, second), (up, down) = pairs.to(mask.dtype).unbind(2), gradient.to(mask.dtype).unbind(2)
    pull = torch.mul(up, first).addcmul_(down, second, value=-1)
    pull = torch.ops.aten.sigmoid_backward(pull, mask).mul_(1 / tau)
    found = torch.empty_like(pairs, dtype=mask.dtype)
    one, other = found.unbind(2)
    torch.addcmul(pull, up, mask, out=one)
    torch.addcmul(down, down, mask, value=-1, out=other).sub_(pull)
    return found.to(pairs.dtype)


class Duel(torch.autograd.Function):
    """`weighed` with its gradient; second derivatives too."""

    @staticmethod
    def forward(ctx: Any, pairs: Tensor, noise: Tensor, tau: float) -> Tensor:
        out, mask = weighed(pairs, noise, tau, torch.empty_like(pairs))
        ctx.save_for_backward(pairs, mask)
        ctx.tau = tau
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        pairs, mask = ctx.saved_tensors
        if not torch.is_grad_enabled():
            return returned(gradient, pairs, mask, ctx.tau), None, None
        # this gradient is to be differentiated: the mask with it
        (first, second), (up, down) = pairs.unbind(2), gradient.unbind(2)
        noise = ctx.tau * mask.logit() - (first - second).detach()
        mask = ((first - second + noise) / ctx.tau).sigmoid()
        pull = (up * first - down * second) * (mask * (1 - mask)) / ctx.tau
        found = torch.stack([up * mask + pull, down * (1 - mask) - pull], 2)
        return found.to(pairs.dtype), None, None

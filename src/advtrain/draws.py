"""Random numbers that belong to images, and those that the library draws one way only.

Where processes share a minibatch (`sharing`), what is drawn without a generator of its own is drawn
for all its rows, and these are the rows of this process. Other code may draw as it likes: then each
process has numbers of its own.
"""

from collections.abc import Callable
from math import ceil

import torch
from torch import Generator, Tensor

from advtrain.sharing import shared

Draw = Callable[[Tensor, Generator | None], Tensor]
"""Numbers in the shape and dtype of a tensor, whose values do not matter."""


def normal(
    like: Tensor, generator: Generator | None = None, *, std: float = 1.0, dim: int = 0
) -> Tensor:
    """N(0, std^2), in the shape and dtype of `like`; `dim`: that of the images."""

    def draw(like: Tensor, source: Generator | None) -> Tensor:
        return torch.empty_like(like).normal_(0, std, generator=source)

    return _drawn(like, draw, generator, dim)


def uniform(like: Tensor, low: float, high: float, generator: Generator | None = None) -> Tensor:
    """U[low, high), in the shape and dtype of `like`."""

    def draw(like: Tensor, source: Generator | None) -> Tensor:
        return torch.empty_like(like).uniform_(low, high, generator=source)

    return _drawn(like, draw, generator)


def exponential(like: Tensor, generator: Generator | None = None) -> Tensor:
    """Exponential numbers of mean 1, in the shape and dtype of `like`."""

    def draw(like: Tensor, source: Generator | None) -> Tensor:
        return torch.empty_like(like).exponential_(generator=source)

    return _drawn(like, draw, generator)


def integers(like: Tensor, end: int, generator: Generator | None = None) -> Tensor:
    """Whole numbers in [0, end) with equal chance, in the shape and dtype of `like`."""

    def draw(like: Tensor, source: Generator | None) -> Tensor:
        return torch.empty_like(like).random_(0, end, generator=source)

    return _drawn(like, draw, generator)


def signs(like: Tensor, generator: Generator | None = None) -> Tensor:
    """-1 or 1 with equal chance, in the shape and dtype of `like`.

    Each bit of a random byte is one of them, for on a processor it is the draws that take time.
    """
    return _drawn(like, _bits, generator)


def _bits(like: Tensor, source: Generator | None) -> Tensor:
    count = like.numel()
    octets = torch.empty(ceil(count / 8), 1, dtype=torch.uint8, device=like.device)
    octets.random_(generator=source)
    shifts = torch.arange(8, dtype=torch.uint8, device=like.device)
    places = torch.ones_like(shifts).bitwise_left_shift_(shifts)  # a list would wait for the device
    bits = (octets & places).to(like.dtype).sub_(0.5).sign_()
    return bits.flatten()[:count].view(like.shape)


def _drawn(like: Tensor, draw: Draw, generator: Generator | None, dim: int = 0) -> Tensor:
    batch = shared(like.shape[dim]) if generator is None else None
    if batch is None:
        return draw(like, generator)
    shape = [*like.shape[:dim], batch.total, *like.shape[dim + 1 :]]
    drawn = draw(like.new_empty(shape), batch.generator)
    return drawn[(slice(None),) * dim + (batch.rows,)].contiguous()

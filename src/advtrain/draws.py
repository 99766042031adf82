"""Random numbers that the library draws one way only."""

import torch
from torch import Generator, Tensor


def signs(like: Tensor, generator: Generator | None = None) -> Tensor:
    """-1 or 1 with equal chance, in the shape and dtype of `like`.

    The signs of uniform numbers in [-1, 1), in a quarter of the time of Tensor.bernoulli_ on a
    processor.
    """
    draws = torch.empty_like(like).uniform_(-1, 1, generator=generator)
    return torch.ones_like(draws).copysign_(draws)

"""Random numbers that the library draws one way only."""

from math import ceil

import torch
from torch import Generator, Tensor


def signs(like: Tensor, generator: Generator | None = None) -> Tensor:
    """-1 or 1 with equal chance, in the shape and dtype of `like`.

    Each bit of a random byte is one of them, for on a processor it is the draws that take time.
    """
    count = like.numel()
    octets = torch.empty(ceil(count / 8), 1, dtype=torch.uint8, device=like.device)
    octets.random_(generator=generator)
    places = torch.tensor([1, 2, 4, 8, 16, 32, 64, 128], dtype=torch.uint8, device=like.device)
    bits = (octets & places).to(like.dtype).sub_(0.5).sign_()
    return bits.flatten()[:count].view(like.shape)

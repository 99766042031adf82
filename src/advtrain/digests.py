"""Short names for what is the same: networks, images."""

import hashlib

import torch
from torch import Tensor, nn


def digest(model: nn.Module) -> str:
    """A name for the weights of `model`: equal weights and buffers, equal name."""
    total = hashlib.blake2b(digest_size=16)
    for name, tensor in model.state_dict().items():
        total.update(name.encode())
        total.update(as_bytes(tensor))
    return total.hexdigest()


def as_bytes(tensor: Tensor) -> bytes:
    """The numbers of `tensor` as bytes, whatever its device and its memory format."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes()

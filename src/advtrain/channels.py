"""Networks with the channels of a pixel side by side, for convolutions that run faster so.

Processors prefer kernels and maps stored channels last, GPUs do in half precision. The numbers are
the same up to rounding. Images may come as they are: maps take the order of the first kernel that
they meet. Networks whose weights are mostly those of linear layers lose by it, since flattening a
map then copies it, and stay as they are; so does anyone's code that asks maps to lie otherwise.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy

import torch
from torch import nn

from advtrain.inference import agree
from advtrain.precision import is_low

PROBES = 2  # images that are asked about in either order


def channels_last(model: nn.Module, shape: tuple[int, int, int]) -> nn.Module:
    """`model`, in place with its kernels channels last where that is sooner; the same object.

    `shape`: (C, H, W) of the images. Copies in evaluation mode are asked before; no random numbers
    are used up.
    """
    if _gains(model) and not _turned(model) and _bears(model, shape):
        model.to(memory_format=torch.channels_last)
    return model


@contextmanager
def lying_well(model: nn.Module, shape: tuple[int, int, int]) -> Iterator[nn.Module]:
    """Inside, kernels lie as `channels_last` has them for what `model` computes in now."""
    kept = [(each, each.data) for each in model.parameters() if each.ndim == 4]
    try:
        yield channels_last(model, shape)
    finally:
        for parameter, before in kept:
            parameter.data = before


def _gains(model: nn.Module) -> bool:
    weights = [each for each in model.parameters() if each.ndim > 1]
    if not weights or not (weights[0].device.type == "cpu" or is_low(model)):
        return False
    kernels = sum(each.numel() for each in weights if each.ndim == 4)
    return 2 * kernels > sum(each.numel() for each in weights)


def _turned(model: nn.Module) -> bool:
    kernels = (each for each in model.parameters() if each.ndim == 4)
    return all(each.is_contiguous(memory_format=torch.channels_last) for each in kernels)


def _bears(model: nn.Module, shape: tuple[int, int, int]) -> bool:
    """Whether the network says the same in either order, forward and back."""
    device = next(model.parameters()).device
    x = torch.rand((PROBES, *shape), generator=torch.Generator().manual_seed(0)).to(device)
    try:
        plain, other = deepcopy(model).eval(), deepcopy(model).eval()
        return agree(other.to(memory_format=torch.channels_last), plain, x)
    except Exception:  # anyone's code may refuse a copy or an order, with any error
        return False

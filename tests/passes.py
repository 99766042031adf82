"""Counts what a training step costs, in passes: 1 is one forward pass of one batch.

A backward pass to the input costs 1, one to the weights 2 (less the first layer's input gradient,
which nobody asks for). FLOP are counted as they run, so hidden passes show.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry


class Flops(TorchDispatchMode):
    """Sums the FLOP of matrix products and convolutions, forward and backward alike."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        count = flop_registry.get(func.overloadpacket)
        if count is not None:
            self.total += count(*args, **(kwargs or {}), out_val=out)
        return out


def units(model: nn.Module, x: Tensor, work: Callable[[], object]) -> float:
    """FLOP of `work()` over those of one forward pass of `model` on `x`."""
    with torch.no_grad(), Flops() as one:
        model(x)
    with Flops() as counted:
        work()
    return counted.total / one.total


def deep_network(hidden: int = 128, classes: int = 3) -> nn.Module:
    """For images (B, 1, 2, 2): the first layer is 2 % of a pass, so units are nearly whole."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(4, hidden),
        nn.ReLU(),
        nn.Linear(hidden, hidden),
        nn.ReLU(),
        nn.Linear(hidden, hidden),
        nn.ReLU(),
        nn.Linear(hidden, classes),
    )

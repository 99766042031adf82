"""Memory for time: blocks that keep nothing of a forward pass, and make it again on the way back.

Chen et al. 2016, https://arxiv.org/abs/1604.06174, with a block of the network for a segment. Only
what goes in and out of blocks stays in memory; a gradient costs one forward pass more. Second
passes leave running statistics where they are and repeat the draws of the first, so that gradients
are the same, bit for bit where kernels are.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial, wraps
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from advtrain.modes import frozen_statistics
from advtrain.precision import Method, replace

ROWS = (nn.Sequential, nn.ModuleList)


def recomputing(model: nn.Module) -> nn.Module:
    """Make the blocks of `model` recompute, in place; returns the same object.

    A block is what stands in a row of layers and has layers of its own, as those of residual
    networks. ValueError: there is none.
    """
    blocks = [
        part
        for row in model.modules()
        if isinstance(row, ROWS)
        for part in row.children()
        if not isinstance(part, ROWS) and any(True for _ in part.children())
    ]
    if not blocks:
        raise ValueError(
            f"recompute=true: {type(model).__name__} has no blocks, layers within a row of layers, "
            "to recompute. Use recompute=false."
        )
    for block in blocks:
        replace(block, "forward", recomputed)
    return model


def recomputed(method: Method) -> Method:
    """`method` of a block, which forgets what a gradient needs and finds it again."""

    @wraps(method)
    def run(self: nn.Module, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        plain = partial(method, self)
        if not torch.is_grad_enabled():
            return plain(x, *args, **kwargs)
        around: Callable[..., Any] = partial(_around, self)
        found: Tensor = checkpoint(
            plain, x, *args, use_reentrant=False, context_fn=around, **kwargs
        )
        return found

    return run


def _around(block: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """What the first pass and the second of a block run in."""
    return nullcontext(), Still(block)


class Still(AbstractContextManager[None]):
    """`frozen_statistics` of a block, as often as it is entered: second derivatives do so twice."""

    def __init__(self, block: nn.Module) -> None:
        self.block = block
        self.inside: list[AbstractContextManager[None]] = []

    def __enter__(self) -> None:
        self.inside.append(frozen_statistics(self.block))
        self.inside[-1].__enter__()

    def __exit__(self, *error: Any) -> None:
        self.inside.pop().__exit__(*error)

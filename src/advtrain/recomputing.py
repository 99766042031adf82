"""Memory for time: blocks that keep nothing of a forward pass, and make it again on the way back.

Chen et al. 2016, https://arxiv.org/abs/1604.06174, with a block of the network for a segment. Only
what goes in and out of blocks stays in memory; a gradient costs one forward pass more.

A second pass comes with the gradient, when the contexts of the first are closed: a view has taken
its temperature back, a conditional network its lambda, and the power method has moved on. So it
finds the parts of its block as the first did, attributes and buffers, repeats the draws, and leaves
all as it was: gradients are the same, bit for bit where kernels are. What code keeps elsewhere, as
in a global, is not followed.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from copy import copy
from dataclasses import is_dataclass
from functools import partial, wraps
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

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
    return nullcontext(), AsNow(block)


class AsNow(AbstractContextManager[None]):
    """Inside, a block is as it was when this was made; as often as it is entered, for second
    derivatives do so twice.

    Parameters are the same tensors, which are not copied, and so are buffers in evaluation mode,
    in which none moves.
    """

    def __init__(self, block: nn.Module) -> None:
        self.parts = [(part, _copied(vars(part))) for part in block.modules()]
        self.left: list[list[dict[str, Any]]] = []

    def __enter__(self) -> None:
        self.left.append([dict(vars(part)) for part, _ in self.parts])
        for part, then in self.parts:
            _become(part, _copied(then))

    def __exit__(self, *error: Any) -> None:
        for (part, _), left in zip(self.parts, self.left.pop(), strict=True):
            _become(part, left)


def _copied(state: dict[str, Any]) -> dict[str, Any]:
    """The attributes of a module, so that a pass with them changes nothing of the original."""
    found = {name: _own(value) for name, value in state.items()}
    if state.get("training"):
        buffers = state["_buffers"].items()
        found["_buffers"] = {name: None if held is None else held.clone() for name, held in buffers}
    return found


def _own(value: Any) -> Any:
    """A copy of what passes change in place, else the same."""
    if isinstance(value, dict | list | set):
        return value.copy()
    return copy(value) if is_dataclass(value) else value


def _become(part: nn.Module, state: dict[str, Any]) -> None:
    vars(part).clear()
    vars(part).update(state)

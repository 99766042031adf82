"""What stochastic layers note of a pass, when they are asked: how far their draws are from a prior.

A layer that can tell has an attribute `divergences`, None or a list. While it is a list, each
forward pass with gradients appends KL(q || p) of its blocks, shape (B, blocks), in the graph.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol, runtime_checkable

from torch import Tensor, nn


@runtime_checkable
class Divergent(Protocol):
    """A layer that tells how far its draws are from their prior."""

    divergences: list[Tensor] | None


def divergent(model: nn.Module) -> list[Divergent]:
    """The layers of `model` that tell."""
    return [layer for layer in model.modules() if isinstance(layer, Divergent)]


@contextmanager
def noted(model: nn.Module) -> Iterator[None]:
    """Inside, the layers of `model` note the divergences of passes with gradients; then no more."""
    layers = divergent(model)
    before = [layer.divergences for layer in layers]
    try:
        for layer in layers:
            layer.divergences = []
        yield
    finally:
        for layer, notes in zip(layers, before, strict=True):
            layer.divergences = notes

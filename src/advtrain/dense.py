"""Tensors out of a file: dense, on the host, and made of no more numbers than the file holds."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from advtrain.foreign import Refused


def require_dense(content: Any) -> None:
    """Refused: a tensor in these containers is sparse, quantised, without data or a few numbers
    repeated, as by `expand`, to stand for many.
    """
    seen: set[int] = set()  # a container that is held twice is looked at once
    waiting = [content]
    while waiting:
        node = waiting.pop()
        if isinstance(node, Tensor):
            _require_dense(node)
        elif isinstance(node, Mapping | list | tuple | set) and id(node) not in seen:
            seen.add(id(node))
            waiting += node.values() if isinstance(node, Mapping) else node


def _require_dense(tensor: Tensor) -> None:
    shape = tuple(tensor.shape)
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
        raise Refused(f"a tensor of shape {shape} is no dense one with its numbers in the file")
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise Refused(f"a tensor of shape {shape} repeats fewer numbers than it seems to have")

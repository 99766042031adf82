"""Tensors out of a file: dense, on the host, and made of no more numbers than the file holds."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from advtrain.foreign import Refused


def require_dense(content: Any, most: int) -> None:
    """Refused: a tensor in these containers is sparse, quantised, without data or a few numbers
    repeated, as by `expand`, to stand for many; or all together are of more bytes than `most`.

    The old format of torch.save makes room for whatever a file promises, and need not fill it.
    """
    seen: set[int] = set()  # a container that is held twice is looked at once
    held: dict[int, int] = {}
    waiting = [content]
    while waiting:
        node = waiting.pop()
        if isinstance(node, Tensor):
            _require_dense(node)
            _count(node, 1, held)
        elif isinstance(node, Mapping | list | tuple | set) and id(node) not in seen:
            seen.add(id(node))
            waiting += node.values() if isinstance(node, Mapping) else node
    if sum(held.values()) > most:
        raise Refused("its tensors promise more numbers than it holds")


def numbers(tensors: Iterable[Tensor]) -> int:
    """How many numbers dense tensors are made of; those that several share count once."""
    held: dict[int, int] = {}
    for tensor in tensors:
        _count(tensor, tensor.element_size(), held)
    return sum(held.values())


def _count(tensor: Tensor, size: int, held: dict[int, int]) -> None:
    """Put into `held`, by where it begins, of how many parts of `size` bytes the storage is."""
    storage = tensor.untyped_storage()
    place, parts = storage.data_ptr(), storage.nbytes() // size
    held[place] = max(parts, held.get(place, 0))


def _require_dense(tensor: Tensor) -> None:
    shape = tuple(tensor.shape)
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
        raise Refused(f"a tensor of shape {shape} is no dense one with its numbers in the file")
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise Refused(f"a tensor of shape {shape} repeats fewer numbers than it seems to have")

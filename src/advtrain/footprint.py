"""How much memory a computation takes at its height, and for how many images there is enough.

On CUDA batches are tried, doubled each time, and the allocator tells what they took. A processor
has no such counter, and running out of memory there ends the process: what tensors take is counted
on four images and on two, and half of the difference is what an image takes. One image alone is
never needed for it: batch norm in training mode refuses it where a map is a single pixel.
"""

import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from advtrain import cgroups
from advtrain.portions import TooLarge, out_of_memory, release
from advtrain.programs import at_rest

SHARE = 0.8  # of the free memory of a CUDA device: allocators lose some between their blocks
SPARED = 0.5  # of a processor's, where others live, too
GIGABYTE = 2**30


def largest(
    trial: Callable[[int], object],
    most: int,
    device: torch.device,
    *,
    key: str,
    least: int = 1,
    processes: int = 1,
    twice: bool = False,
) -> int:
    """The largest power of two, from `least` to `most`, for which `trial` of so many images fits.

    What the trials took is free again afterwards. `key`: of the configuration, whose number this
    is. `processes`: how many do this on one machine at once, each with its part of the memory of
    the processor. `twice`: of a CUDA device, for what compiled graphs take is theirs alone.
    TooLarge: not even `least` fit.
    """
    sizes = [least * 2**i for i in range((most // least).bit_length())]
    on_cuda = device.type == "cuda"
    room = SHARE * free(device) / (1 + twice) if on_cuda else SPARED * free(device) / processes
    fits = _tried if on_cuda else _counted
    with at_rest():  # programs would be compiled for every size
        found = fits(trial, sizes, device, room)
    release(device)
    if not found:
        raise TooLarge(
            f"{key}=auto: {'one image is' if least == 1 else f'{least} images are'} too large "
            f"for the {room / GIGABYTE:.1f} GiB that there are on {device}. Use precision=bf16, a "
            "smaller model, or another device."
        )
    return found


def free(device: torch.device) -> int:
    """Bytes that are free, or that this process has from the device and does not use."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0] + unused)
    lines = Path("/proc/meminfo")
    for line in lines.read_text().splitlines() if lines.is_file() else ():
        if line.startswith("MemAvailable:"):
            return min(1024 * int(line.split()[1]), cgroups.left())
    return 4 * GIGABYTE  # a system that does not tell


def _tried(
    trial: Callable[[int], object], sizes: Sequence[int], device: torch.device, room: float
) -> int:
    found, before = 0, torch.cuda.memory_allocated(device)
    for size in sizes:
        torch.cuda.reset_peak_memory_stats(device)
        try:
            trial(size)
        except Exception as error:
            if not out_of_memory(error):
                raise
            break
        if torch.cuda.max_memory_allocated(device) - before > room:
            break
        found = size
    return found


def _counted(
    trial: Callable[[int], object], sizes: Sequence[int], device: torch.device, room: float
) -> int:
    heights = []
    for size in (2, 4, 4, 2):  # what is set up once counts in the first two
        with Height() as height:
            trial(size)
        heights.append(height.most)
    four, two = heights[2:]
    each = max((four - two) / 2, 1)
    return max((size for size in sizes if two + (size - 2) * each <= room), default=0)


class Height(TorchDispatchMode):
    """Inside, the bytes of tensors made and not yet freed are followed; `most`: their height."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self.alive: set[int] = set()

    def __torch_dispatch__(
        self,
        call: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        found = call(*args, **(kwargs or {}))
        given = {id(_storage(each)) for each in tree_leaves((args, kwargs)) if _stored(each)}
        for each in tree_leaves(found):
            if _stored(each) and id(_storage(each)) not in given:
                self._note(_storage(each))
        return found

    def _note(self, storage: torch.UntypedStorage) -> None:
        name, size = id(storage), storage.nbytes()
        if name not in self.alive:
            self.alive.add(name)
            self.now += size
            self.most = max(self.most, self.now)
            weakref.finalize(storage, self._forget, name, size)

    def _forget(self, name: int, size: int) -> None:
        self.alive.discard(name)
        self.now -= size


def _stored(value: object) -> bool:
    return isinstance(value, Tensor) and value.layout == torch.strided


def _storage(tensor: Tensor) -> torch.UntypedStorage:
    return tensor.untyped_storage()

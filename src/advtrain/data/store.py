"""Where pixels live: all on the device, or in a file mapped on the host and read ahead.

Both hand out the same bytes for the same rows, so a run does not depend on which one it got.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

AHEAD = 4
"""Batches read ahead of the device; deep enough to hide a slow page, shallow for memory."""


class Store(Protocol):
    """uint8 images (N, C, H, W), fetched by row to `device`."""

    def __len__(self) -> int: ...

    @property
    def device(self) -> torch.device: ...

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of an image as stored."""

    def fetch(self, rows: slice | Tensor) -> Tensor:
        """Images at a slice, or at int64 positions (B,), on the device: uint8 (B, C, H, W)."""

    def stream(self, order: Tensor, spans: Sequence[slice]) -> Iterator[Tensor]:
        """`fetch(order[span])` for each span, ahead of the asking where that helps."""

    def take(self, rows: Tensor) -> "Store":
        """The store of these rows, in this order."""


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A copy that a CUDA device makes in the background, from page-locked memory."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


@dataclass(frozen=True)
class Resident:
    """All pixels in the memory of the device; `fetch` never touches the host."""

    pixels: Tensor

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def device(self) -> torch.device:
        return self.pixels.device

    @property
    def shape(self) -> tuple[int, int, int]:
        return _image_shape(self.pixels)

    def fetch(self, rows: slice | Tensor) -> Tensor:
        if isinstance(rows, slice):
            return self.pixels[rows]
        return self.pixels.index_select(0, to_device(rows, self.device))

    def stream(self, order: Tensor, spans: Sequence[slice]) -> Iterator[Tensor]:
        order = to_device(order, self.device)
        return (self.pixels.index_select(0, order[span]) for span in spans)

    def take(self, rows: Tensor) -> "Resident":
        return Resident(self.fetch(rows))


@dataclass(frozen=True)
class Mapped:
    """Rows of a memory-mapped file on the host: `rows` int64 (N,) into `pixels` (M, C, H, W)."""

    pixels: Tensor
    rows: Tensor
    target: torch.device

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def device(self) -> torch.device:
        return self.target

    @property
    def shape(self) -> tuple[int, int, int]:
        return _image_shape(self.pixels)

    def fetch(self, rows: slice | Tensor) -> Tensor:
        return to_device(self._read(rows), self.device)

    def stream(self, order: Tensor, spans: Sequence[slice]) -> Iterator[Tensor]:
        waiting: deque[Future[Tensor]] = deque()
        pool = ThreadPoolExecutor(max_workers=2, thread_name_prefix="advtrain-read")
        try:
            for span in spans:
                waiting.append(pool.submit(self._read_pinned, order[span]))
                if len(waiting) > AHEAD:
                    yield waiting.popleft().result().to(self.device, non_blocking=True)
            while waiting:
                yield waiting.popleft().result().to(self.device, non_blocking=True)
        finally:  # also when the consumer stops in the middle of an epoch
            pool.shutdown(wait=True, cancel_futures=True)

    def take(self, rows: Tensor) -> "Mapped":
        return Mapped(self.pixels, self.rows[rows.cpu()], self.device)

    def _read(self, rows: slice | Tensor) -> Tensor:
        chosen = self.rows[rows] if isinstance(rows, slice) else self.rows[rows.cpu()]
        return self.pixels.index_select(0, chosen)

    def _read_pinned(self, rows: Tensor) -> Tensor:
        images = self._read(rows)
        return images.pin_memory() if self.device.type == "cuda" else images


def _image_shape(pixels: Tensor) -> tuple[int, int, int]:
    _, channels, height, width = pixels.shape
    return channels, height, width

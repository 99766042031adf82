"""A data set: three splits of images and labels, ready on the device."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from advtrain.data.augment import Augment, Size, centre, to_unit
from advtrain.data.store import Store, to_device


@dataclass(frozen=True)
class Split:
    """N examples. labels int64 (N,) on the device; source int64 (N,) on the host: the position of
    each example in the file that it came from. `augment` is for training alone; `size` is the
    height and width that the network sees, at most the stored one.
    """

    store: Store
    labels: Tensor
    source: Tensor
    augment: Augment
    size: Size

    def __len__(self) -> int:
        return len(self.source)

    @property
    def device(self) -> torch.device:
        return self.store.device

    def batch(self, indices: slice | Tensor) -> tuple[Tensor, Tensor]:
        """Images as they are, float32 in [0, 1] (B, C, H, W), and labels int64 (B,), on the device.

        `indices`: a slice, or int64 positions (B,).
        """
        if isinstance(indices, Tensor):
            indices = to_device(indices, self.device)
        return to_unit(centre(self.store.fetch(indices), self.size)), self.labels[indices]

    def take(self, rows: Tensor) -> "Split":
        """The examples at int64 positions `rows`, in that order."""
        return replace(
            self,
            store=self.store.take(rows),
            labels=self.labels[to_device(rows, self.device)],
            source=self.source[rows.cpu()],
        )


@dataclass(frozen=True)
class Data:
    """shape: (C, H, W) that the network sees. rule: how train and validation were parted."""

    train: Split
    validation: Split
    test: Split
    shape: tuple[int, int, int]
    classes: tuple[str, ...]
    rule: str

    def summary(self) -> dict[str, Any]:
        """Sizes, shape and rules as plain values, for results and reports."""
        return {
            "train": len(self.train),
            "validation": len(self.validation),
            "test": len(self.test),
            "shape": list(self.shape),
            "classes": len(self.classes),
            "split": self.rule,
            "augment": repr(self.train.augment),
        }

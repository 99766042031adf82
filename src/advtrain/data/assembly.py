"""From files' worth of examples to the three splits of a `Data`."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from advtrain.data.augment import Augment, Size
from advtrain.data.errors import DataError
from advtrain.data.order import balanced_order, first_of_each_class
from advtrain.data.split import Data, Split
from advtrain.data.store import Mapped, Resident, Store


class Part(NamedTuple):
    """N examples in file order. labels int64 (N,) on the host; pixels: ascending positions to
    their images uint8 (M, C, H, W) on the host, so that only what is used need be decoded."""

    labels: Tensor
    pixels: Callable[[np.ndarray], Tensor]


@dataclass(frozen=True)
class Assembly:
    """How parts become splits.

    seed: of the class-balanced order in which each split comes, so that its first n stand for
    all. train_size, test_size: how many of them, null is all; max_train_size and max_test_size
    bound that and, unlike it, may exceed what there is. validation: images held out of train, the
    first of each class in file order (as in the released trees of GAT and NuAT), the same for
    every seed; unused where the data comes with a validation part of its own. size: what the
    network sees; null is the stored one. device_limit: bytes beyond which pixels stay in a file
    on the host; null is never.
    """

    name: str
    classes: tuple[str, ...]
    device: torch.device
    seed: int
    train_size: int | None
    test_size: int | None
    max_train_size: int | None
    max_test_size: int | None
    validation: int
    augment: Augment
    size: Size | None = None
    device_limit: int | None = None

    def __call__(self, train: Part, test: Part, validation: Part | None = None) -> Data:
        """DataError: more examples are asked for than there are."""
        if validation is None:
            held_out = self._hold_out(train.labels)
            rule = f"validation: the first {len(held_out)} of train, by class, in file order"
            left = np.setdiff1d(np.arange(len(train.labels)), held_out)
        else:
            held_out = np.arange(len(validation.labels))
            rule = "validation: a folder of its own"
            left = np.arange(len(train.labels))
        everything = np.arange(len(test.labels))
        self._check("train_size", self.train_size, len(left), len(train.labels))
        self._check("test_size", self.test_size, len(everything), len(everything))

        kept = self._first(train, left, self.train_size, self.max_train_size)
        tested = self._first(test, everything, self.test_size, self.max_test_size)
        held_out = self._first(validation or train, held_out)
        total = len(kept) + len(held_out) + len(tested)
        if validation is None:
            trained, held = self._splits(train, [kept, held_out], total)
        else:
            [trained], [held] = (
                self._splits(part, [rows], total)
                for part, rows in ((train, kept), (validation, held_out))
            )
        [tests] = self._splits(test, [tested], total)
        shape = (trained.store.shape[0], *trained.size)
        return Data(trained, held, tests, shape, self.classes, rule)

    def _hold_out(self, labels: Tensor) -> np.ndarray:
        if not 0 <= self.validation < len(labels):
            raise DataError(
                f"dataset.validation is {self.validation}, but {self.name} has {len(labels)} "
                f"training images. Allowed is 0 to {len(labels) - 1}."
            )
        rows = first_of_each_class(labels, self.validation, len(self.classes))
        if len(rows) < self.validation:
            counts = torch.bincount(labels, minlength=len(self.classes)).tolist()
            small = min(range(len(counts)), key=counts.__getitem__)
            raise DataError(
                f"dataset.validation is {self.validation}, about "
                f"{self.validation // len(self.classes)} of each class, but class "
                f"{self.classes[small]!r} of {self.name} has {counts[small]} training images. "
                "Lower dataset.validation."
            )
        return rows

    def _check(self, key: str, size: int | None, there: int, of: int) -> None:
        if size is not None and not 0 < size <= there:
            less = f" ({of} less validation)" if there < of else ""
            raise DataError(
                f"dataset.{key} is {size}, but {self.name} has {there} such images{less}. "
                f"Allowed is 1 to {there}, or null for all."
            )

    def _first(self, part: Part, rows: np.ndarray, *bounds: int | None) -> np.ndarray:
        """The first of `rows` in balanced order, as many as all `bounds` allow."""
        order = balanced_order(part.labels[torch.from_numpy(rows)], self.seed)
        return rows[order[: min([len(rows), *(n for n in bounds if n is not None)])]]

    def _splits(self, part: Part, choices: list[np.ndarray], total: int) -> list[Split]:
        used = np.unique(np.concatenate(choices))
        pixels = part.pixels(used)
        return [
            Split(
                self._place(pixels, torch.from_numpy(np.searchsorted(used, rows)), total),
                part.labels[torch.from_numpy(rows)].to(self.device),
                torch.from_numpy(rows),
                self.augment,
                self.size or (pixels.shape[2], pixels.shape[3]),
            )
            for rows in choices
        ]

    def _place(self, pixels: Tensor, rows: Tensor, total: int) -> Store:
        heavy = total * pixels.shape[1:].numel()
        if self.device_limit is not None and heavy > self.device_limit:
            return Mapped(pixels, rows, self.device)
        return Resident(pixels.index_select(0, rows).to(self.device))

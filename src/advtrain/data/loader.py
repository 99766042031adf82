"""Training batches, shuffled and augmented on the device.

What comes is a pure function of (seed, epoch, place in the epoch): nothing depends on how the
epoch was entered, on the global random state or on the device. One epoch's numbers are drawn on
the host and copied once, so that no step waits for the device.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil

import torch
from torch import Tensor

from advtrain.data.errors import DataError
from advtrain.data.split import Split
from advtrain.data.store import to_device
from advtrain.seeding import derive
from advtrain.world import here, share


@dataclass(frozen=True)
class Batches:
    """Steps of an epoch: each minibatch comes `replays` times in a row, the same tensors.

    The last minibatch is smaller where `batch_size` does not divide the split, or left out with
    `drop_last`.
    """

    split: Split
    batch_size: int
    seed: int
    replays: int = 1
    drop_last: bool = False

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.replays < 1:
            raise DataError(
                f"batch_size is {self.batch_size} and dataset.replays {self.replays}; "
                "both must be at least 1."
            )
        if self.minibatches == 0:
            raise DataError(
                f"batch_size is {self.batch_size}, but there are {len(self.split)} training images"
                f"{' and the short last minibatch is dropped' if self.drop_last else ''}: an epoch "
                "would be empty. Lower batch_size or raise dataset.train_size."
            )

        short = self.batch_size if self.drop_last else len(self.split) % self.batch_size
        if min(self.batch_size, short or self.batch_size) < here().size:
            raise DataError(
                f"batch_size is {self.batch_size}, and of {len(self.split)} training images the "
                f"last minibatch of an epoch has {short or self.batch_size}: too few for "
                f"{here().size} processes. Choose another batch_size, or fewer processes."
            )

    @property
    def minibatches(self) -> int:
        """Different minibatches in an epoch."""
        n = len(self.split) / self.batch_size
        return int(n) if self.drop_last else ceil(n)

    def __len__(self) -> int:
        return self.minibatches * self.replays

    def images(self, step: int) -> int:
        """Images of the minibatch at `step` of an epoch, those of all processes."""
        begun = step // self.replays * self.batch_size
        return min(self.batch_size, len(self.split) - begun)

    def epoch(self, index: int, skip: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Pairs (x, y) of epoch `index`, without its first `skip` steps (replays included).

        x float32 in [0, 1] (B, C, H, W); y int64 (B,): of several processes, its share of them.
        """
        if skip >= len(self):
            return
        split = self.split
        generator = torch.Generator().manual_seed(derive(self.seed, "batches", index))
        order = torch.randperm(len(split), generator=generator)
        uniform = torch.rand((len(split), split.augment.draws), generator=generator)

        begun, replayed = divmod(skip, self.replays)
        labels = split.labels.index_select(0, to_device(order, split.device))
        uniform = to_device(uniform, split.device)
        spans = [self._span(i) for i in range(begun, self.minibatches)]
        images = split.store.stream(order, spans)
        for span, stored in zip(spans, images, strict=True):
            x, y = split.augment(stored, uniform[span], split.size), labels[span]
            for _ in range(replayed, self.replays):
                yield x, y
            replayed = 0

    def _span(self, minibatch: int) -> slice:
        """Places in the epoch of a minibatch, those of this process."""
        first = minibatch * self.batch_size
        last = min(first + self.batch_size, len(self.split))
        part = share(last - first)
        return slice(first + part.start, last, part.step)

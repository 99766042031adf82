"""The minibatch that several processes share: which of its rows are this one's, and its numbers.

A random number that belongs to an image is drawn by every process for the whole minibatch, from
one stream, and each takes its rows (`draws`); so several processes draw for an image what one
would. Numbers that belong to nobody's row, as of dropout, come from a stream of each process.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from advtrain import seeding
from advtrain.exchange import added
from advtrain.world import here, share


@dataclass(frozen=True)
class Shared:
    """`total` rows, of which `rows` are this process's; `generator`: at the same place in all."""

    total: int
    rows: slice
    generator: Generator

    def __len__(self) -> int:
        return len(range(self.total)[self.rows])


_shared: ContextVar[Shared | None] = ContextVar("shared", default=None)


@contextmanager
def sharing(total: int, device: torch.device, base: int, *parts: object) -> Iterator[None]:
    """Inside, batches are shares of one of `total` rows, and draws come from the stream of `parts`.

    Seeds the generators that draw on `device`, the processor's with them.
    """
    if here().size == 1:
        seeding.seed(device, seeding.derive(base, *parts))
        yield
        return
    seeding.seed(device, seeding.derive(base, *parts, "process", here().rank))
    generator = Generator(device).manual_seed(seeding.derive(base, *parts))
    token = _shared.set(Shared(total, share(total), generator))
    try:
        yield
    finally:
        _shared.reset(token)


@contextmanager
def behind(first: int) -> Iterator[None]:
    """Inside, batches are shares of the rows from `first` on."""
    batch = _shared.get()
    if batch is None:
        yield
        return
    start = (batch.rows.start - first) % here().size
    rest = Shared(batch.total - first, slice(start, None, here().size), batch.generator)
    token = _shared.set(rest)
    try:
        yield
    finally:
        _shared.reset(token)


def shared(rows: int) -> Shared | None:
    """The minibatch of which `rows` rows can be this process's share; None for any other batch."""
    batch = _shared.get()
    return batch if batch is not None and len(batch) == rows else None


def generators(device: torch.device) -> list[Generator]:
    """The streams that numbers come from which are drawn without a generator of their own."""
    batch = _shared.get()
    return [*seeding.generators(device), *([] if batch is None else [batch.generator])]


def weight() -> float:
    """What a mean over this process's rows counts for in that over all rows; 1 outside."""
    batch = _shared.get()
    return 1.0 if batch is None else len(batch) / batch.total


def whole(rows: Tensor) -> Tensor:
    """All rows of the minibatch in their order, of `rows` (B, ...) of each process; with gradient.

    Outside, and for other batches, `rows` themselves.
    """
    batch = shared(len(rows))
    if batch is None:
        return rows
    places = torch.arange(batch.total, device=rows.device)[batch.rows]
    return added(rows.new_zeros((batch.total, *rows.shape[1:])).index_copy(0, places, rows))

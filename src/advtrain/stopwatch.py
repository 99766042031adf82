"""What an image takes, from samples of a bounded time.

A compiled network makes a program in its first pass of a kind (so many images, with or without
gradients), which takes longer than any sample should. So each sample of it is taken twice, with the
same random numbers by its caller, and the second counts.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from math import inf
from typing import Any

import torch
from torch import Tensor, nn

from advtrain.portions import Room
from advtrain.precision import inner
from advtrain.types import Classifier


class OutOfTime(BaseException):
    """The time of a measurement is over; no error of the network that is measured."""


class Hurried(Room):
    """Raises OutOfTime where a pass is asked for once the time is over.

    The first pass of each kind is not counted. Looked at outside of the network, whose programs
    leave hooks out or break at them.
    """

    def __init__(self) -> None:
        super().__init__()
        self.end = inf
        self.known: set[Any] = set()

    def hurry(self, seconds: float) -> None:
        """From now on there are so many."""
        self.end = time.perf_counter() + seconds

    def ask(self, model: Classifier, x: Tensor) -> Tensor:
        began = time.perf_counter()
        if began > self.end:
            raise OutOfTime
        logits = super().ask(model, x)
        dtype = inner(model) if isinstance(model, nn.Module) else None
        kind = id(model), x.shape, x.requires_grad, torch.is_grad_enabled(), dtype
        if kind not in self.known:
            self.known.add(kind)
            self.end += time.perf_counter() - began
        return logits


@dataclass
class Stopwatch:
    """`seconds`: that a sample may take whose passes go through `room`. `compiled`: the network is.

    `compiling`: seconds that went into programs.
    """

    device: torch.device
    seconds: float
    compiled: bool
    compiling: float = 0.0
    room: Hurried = field(default_factory=Hurried)

    def each(self, action: Callable[[int], object], *sizes: int) -> float | None:
        """Seconds of `action` for an image, of the first of `sizes`, and of each next one for which
        there is time by then. None: there was none for the first.
        """
        found = None
        for size in dict.fromkeys(sizes):
            if found is not None and found * size > self.seconds:
                break
            try:
                before = self._timed(action, size) if self.compiled else 0.0
                seconds = self._timed(action, size)
            except OutOfTime:
                break
            self.compiling += max(0.0, before - seconds)
            found = seconds / size
        return found

    def _timed(self, action: Callable[[int], object], size: int) -> float:
        self.room.hurry(self.seconds)
        began = time.perf_counter()
        action(size)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter() - began

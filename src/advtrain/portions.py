"""Passes of a network in portions, where memory does not hold a batch at once.

A batch is halved where the network sees it and nowhere else: an attack goes on with the whole of
it, and so with the same random numbers and the same points, whatever it couples. Where a gradient
is wanted, a portion keeps nothing of its forward pass and makes it once more on the way back
(Chen et al. 2016, https://arxiv.org/abs/1604.06174), so that activations of one portion at a time
are in memory. For networks in evaluation mode, whose images do not depend on each other: logits
are the same up to what kernels round otherwise in smaller batches. A network that draws random
numbers itself draws others. Of several draws for one answer it is the rows of their passes that
are halved, not the images, whose draws would fill the passes again.
"""

import logging
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from advtrain.averaged import Averaged, rewrapped, rows, single
from advtrain.sharing import generators
from advtrain.types import Classifier

logger = logging.getLogger(__name__)

T = TypeVar("T")

SIGNS = (
    *("DefaultCPUAllocator", "CUDA out of memory", "CUDA error: out of memory"),
    *("[CUDA]: out of memory", "_STATUS_ALLOC_FAILED", "_ALLOCATION_FAILED"),
)
"""What a RuntimeError says that is about memory: PyTorch's allocators (of CUDA's there is a class
besides), CUDA itself as it loads a kernel or records a graph, Triton, cuBLAS and cuDNN."""

NO_ENGINE = "unable to find an engine to execute this computation"
"""What is said of a convolution for which no way of cuDNN is left. PyTorch passes over those whose
workspace finds no memory (aten/src/ATen/native/cudnn/Conv_v8.cpp); but cards that know none, or
wrong libraries, are told by the same words."""

SCARCE = 0.1  # of a device that is free at most where NO_ENGINE is taken to be about memory


class TooLarge(ValueError):
    """One image is too large for the memory, or a training minibatch is; the message says which."""


def out_of_memory(error: BaseException) -> bool:
    """Whether `error` says that memory was asked for that is not there."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    if not isinstance(error, RuntimeError):
        return False
    told = str(error)
    return any(sign in told for sign in SIGNS) or (NO_ENGINE in told and _scarce())


def _scarce() -> bool:
    """Whether there is little memory left on a CUDA device that this process has some of."""
    if not torch.cuda.is_initialized():
        return False
    ours = (each for each in range(torch.cuda.device_count()) if torch.cuda.memory_reserved(each))
    return any(free < SCARCE * total for free, total in map(torch.cuda.mem_get_info, ours))


class Room:
    """How many images at most go through a network at once: `size`, None as long as all do.

    Each draw of an image counts. Halved for good when memory runs out.
    """

    def __init__(self, size: int | None = None) -> None:
        self.size = size
        self.widest = 0  # rows of a pass, since the present action began

    def ask(self, model: Classifier, x: Tensor) -> Tensor:
        """`model(x)`, in portions. TooLarge: one image alone is too much."""
        wide = rows(model, len(x))
        self.widest = max(self.widest, wide)
        return self._until_it_fits(lambda: self._asked(model, x), x, lambda: wide)

    def within(self, action: Callable[[], T], x: Tensor) -> T:
        """What `action` makes of the images `x`, once more from the beginning where it runs out.

        The same global random numbers are drawn each time. TooLarge: as `ask`.
        """
        states = [(source, source.get_state()) for source in generators(x.device)]

        def anew() -> T:
            self.widest = len(x)
            for source, state in states:
                source.set_state(state)
            return action()

        return self._until_it_fits(anew, x, lambda: self.widest)

    def portion(self, images: int) -> int:
        """How many of so many images to hold at once, as known: before memory for them is taken.

        Where it runs out inside of `within`, that counts like a pass of them.
        """
        self.widest = max(self.widest, images)
        return images if self.size is None else min(images, self.size)

    def _until_it_fits(self, action: Callable[[], T], x: Tensor, wide: Callable[[], int]) -> T:
        while True:
            try:
                return action()
            except Exception as error:
                if not out_of_memory(error):
                    raise
            self._halve(x, wide())  # here nothing that the error holds is alive any more

    def _asked(self, model: Classifier, x: Tensor) -> Tensor:
        if self.size is not None and isinstance(model, Averaged):
            return rewrapped(model, _InPortions(single(model), self))(x)
        return self.pass_of(model, x)

    def pass_of(self, model: Classifier, x: Tensor) -> Tensor:
        """`model(x)` in portions of `size`."""
        if self.size is None or len(x) <= self.size:
            return model(x)
        if torch.is_grad_enabled() and x.requires_grad:
            parts = [checkpoint(model, part, use_reentrant=False) for part in x.split(self.size)]
        else:
            parts = [model(part) for part in x.split(self.size)]
        return torch.cat(parts)

    def _halve(self, x: Tensor, wide: int) -> None:
        before = wide if self.size is None else min(self.size, wide)
        release(x.device)
        if before <= 1:
            beside = f" beside a batch of {len(x)}" if len(x) > 1 else ""
            smaller = "a smaller eval.batch_size (of certificates, eval.certify.batch_size), "
            raise TooLarge(
                f"one image of shape {tuple(x.shape[1:])} is too large for the memory of "
                f"{x.device}{beside}. Use {smaller if beside else ''}precision=bf16, a smaller "
                "model, or another device."
            )
        self.size = before // 2
        logger.warning(
            "memory of %s does not hold %d images in a pass: from here on %d at a time.",
            *(x.device, before, self.size),
        )


class _InPortions(nn.Module):
    """`network`, each pass of it in portions of the size of `room`."""

    def __init__(self, network: nn.Module, room: Room) -> None:
        super().__init__()
        self.network, self.room = network, room
        self.training = network.training

    def forward(self, x: Tensor) -> Tensor:
        return self.room.pass_of(self.network, x)


class Portioned:
    """A classifier that asks `model` in portions that fit."""

    def __init__(self, model: nn.Module, room: Room) -> None:
        self.model, self.room = model, room

    def __call__(self, x: Tensor) -> Tensor:
        return self.room.ask(self.model, x)


def release(device: torch.device) -> None:
    """Give back what the allocator of a device keeps, so that it is not in pieces."""
    if device.type == "cuda":
        torch.cuda.empty_cache()

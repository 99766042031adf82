"""Modes of a network, set for a while and restored exactly, also when an exception passes.

`crafting` is the trainer's and the referee's: it chooses the mode and vouches for the batch, so
attacks inside neither check the images nor hold statistics still (crafting in training mode, as
fast adversarial training does, wants them to move). Outside of it every attack guards itself, see
`attacks.guard`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal

from torch import nn

_vouched: ContextVar[bool] = ContextVar("vouched", default=False)


@contextmanager
def crafting(model: nn.Module, mode: Literal["eval", "train"]) -> Iterator[None]:
    """Inside, `model` is in `mode`, its parameters want no gradient, and attacks trust the batch.

    Afterwards each submodule's own training flag and each parameter's `requires_grad` are as
    before. With `train`, running statistics move as in any forward pass.
    """
    if mode not in ("eval", "train"):
        raise ValueError(f"craft_mode is {mode!r}; allowed are eval and train.")
    flags = [(module, module.training) for module in model.modules()]
    try:
        model.train(mode == "train")
        with frozen(model), vouching():
            yield
    finally:
        for module, training in flags:
            module.training = training


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Inside, no parameter of `model` wants a gradient; then those that did do again."""
    wanting = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        for parameter in wanting:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in wanting:
            parameter.requires_grad_(True)


@contextmanager
def frozen_statistics(model: nn.Module) -> Iterator[None]:
    """Inside, modules in training mode work on copies of their buffers; then the buffers return.

    So batch norm normalises with the batch, while its running statistics and its count of
    batches end as they were, and so does any other buffer that a forward pass moves. The buffers
    themselves are never written: a graph made inside may be differentiated outside. Costs
    nothing for modules in evaluation mode.
    """
    kept = [
        (module, name, buffer)
        for module in model.modules()
        if module.training
        for name, buffer in module.named_buffers(recurse=False)
    ]
    copies = {id(buffer): buffer.clone() for _, _, buffer in kept}
    try:
        for module, name, buffer in kept:
            setattr(module, name, copies[id(buffer)])
        yield
    finally:
        for module, name, buffer in kept:
            setattr(module, name, buffer)


@contextmanager
def vouching() -> Iterator[None]:
    """Inside, attacks leave the checks of the batch and the care for the model to the caller."""
    token = _vouched.set(True)
    try:
        yield
    finally:
        _vouched.reset(token)


def vouched() -> bool:
    """Whether a `crafting` or `vouching` block is open around the caller."""
    return _vouched.get()

"""Computing in bfloat16 without rounding what an attack works on.

Pixels near 1 are 1/256 apart in bfloat16, about a pixel value: a perturbation of 0.001 is rounded
away, and a step of 2/255 becomes two steps of the number format. So the images, all that comes
before the first layer, the first layer and the last stay in float32; layers between run under
autocast. The first layer's output is rounded, to keep the activations that follow small.

The methods are replaced on the instance, not wrapped in hooks: `with` leaves autocast whatever
is raised, the compiler can trace it, and copies get methods bound to themselves.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from functools import wraps
from types import MethodType
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

Method = Callable[..., Tensor]

FLAG = "low_dtype"  # of a model: the dtype of its inner layers, or None for full precision

TENSOR_FLOAT = torch.float32
"""As that dtype: float32, of which a GPU rounds what convolutions multiply to TF32."""

_given: ContextVar[bool | None] = ContextVar("given", default=None)
"""Whether TF32 is allowed outside of `tensor_float`; None: this is outside."""


def low_precision(model: nn.Module, dtype: torch.dtype = torch.bfloat16) -> nn.Module:
    """Make `model` compute its inner layers in `dtype`, in place; returns the same object.

    Images come in and logits (and `features`, where there is such a method) go out in float32;
    parameters, buffers, gradients and the keys of the state dict are untouched. First and last
    are the convolutions or linear layers registered first and last. Doing it twice sets the
    dtype anew.
    Raises ValueError when the model has no such layer, and at the call when the first one gets
    rounded input, because a layer registered later ran before it.
    """
    layers = [layer for layer in model.modules() if isinstance(layer, _ConvNd | nn.Linear)]
    if not layers:
        raise ValueError(
            f"precision=bf16 keeps the first layer in float32, and {type(model).__name__} has no "
            "convolution or linear layer. Use precision=fp32."
        )
    if not hasattr(model, FLAG):
        replace(model, "forward", lowered)
        if hasattr(model, "features") and callable(model.features):
            replace(model, "features", lowered)
        replace(layers[-1], "forward", last)
        if layers[0] is not layers[-1]:
            replace(layers[0], "forward", first)
    setattr(model, FLAG, dtype)
    return model


def inner(model: nn.Module) -> torch.dtype | None:
    """What inner layers of `model`, or of a network inside it, compute in; None: full precision."""
    found = (getattr(part, FLAG, None) for part in model.modules())
    return next((dtype for dtype in found if dtype is not None), None)


def is_low(model: nn.Module) -> bool:
    """Whether `model`, or a network inside it, computes its inner layers in low precision now."""
    return inner(model) is not None


@contextmanager
def full_precision(model: nn.Module) -> Iterator[nn.Module]:
    """Within the block `model` computes in float32, as every verdict must; others go on."""
    parts = [part for part in model.modules() if hasattr(part, FLAG)]
    given = _given.get()
    with _set(parts, None), nullcontext() if given is None else _tensor_float(given):
        yield model


@contextmanager
def tensor_float(model: nn.Module) -> Iterator[nn.Module]:
    """Within the block a `model` of low precision computes in float32, and on a GPU in TF32.

    There convolutions round what they multiply to ten binary digits and add up in float32, several
    times as fast as without, for searches that a rounded activation would lead astray. No verdict:
    `is_low` holds still, and `full_precision` within is as outside. What computes in full precision
    goes on.
    """
    parts = [part for part in model.modules() if getattr(part, FLAG, None) is not None]
    if not parts:
        yield model
        return
    given = _given.get()
    token = _given.set(torch.backends.cudnn.allow_tf32 if given is None else given)
    try:
        with _set(parts, TENSOR_FLOAT), _tensor_float(True):
            yield model
    finally:
        _given.reset(token)


@contextmanager
def _set(parts: Sequence[nn.Module], dtype: torch.dtype | None) -> Iterator[None]:
    before = [getattr(part, FLAG) for part in parts]
    try:
        for part in parts:
            setattr(part, FLAG, dtype)
        yield
    finally:
        for part, dtype in zip(parts, before, strict=True):
            setattr(part, FLAG, dtype)


@contextmanager
def _tensor_float(allowed: bool) -> Iterator[None]:
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


@contextmanager
def computing_in(model: nn.Module, precision: Literal["fp32", "bf16"]) -> Iterator[nn.Module]:
    """Within the block `model` computes as it would after training in that precision.

    Raises ValueError for bf16 as `low_precision` does.
    """
    with full_precision(model):
        if precision == "bf16":
            low_precision(model)
        try:
            yield model
        finally:
            if precision == "bf16":
                setattr(model, FLAG, None)


def replace(module: nn.Module, name: str, change: Callable[[Method], Method]) -> None:
    """Put `change` of a module's method in its place, bound so that copies bind their own."""
    module.__dict__[name] = MethodType(change(getattr(module, name).__func__), module)


def lowered(method: Method) -> Method:
    """`method` of a model under autocast, its result in float32."""

    @wraps(method)
    def run(self: nn.Module, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        dtype = getattr(self, FLAG)
        if dtype in (None, TENSOR_FLOAT):
            return method(self, x, *args, **kwargs)
        # Without the cache: a cast made while weights are frozen would be used to train them.
        with torch.autocast(x.device.type, dtype=dtype, cache_enabled=False):
            return method(self, x, *args, **kwargs).float()

    return run


def first(method: Method) -> Method:
    """`method` of the first layer, in float32, its result rounded to autocast's dtype."""

    @wraps(method)
    def run(self: nn.Module, x: Tensor) -> Tensor:
        kind = x.device.type
        if not torch.is_autocast_enabled(kind):
            return method(self, x)
        if x.dtype.itemsize < 4:
            raise ValueError(
                f"precision=bf16 keeps the first layer, {self}, in float32, but it got {x.dtype}: "
                "a layer registered after it ran before it. Register it first in the model, or "
                "use precision=fp32."
            )
        with torch.autocast(kind, enabled=False):
            return method(self, x).to(torch.get_autocast_dtype(kind))

    return run


def last(method: Method) -> Method:
    """`method` of the last layer, in float32, so that logits have all their digits."""

    @wraps(method)
    def run(self: nn.Module, x: Tensor) -> Tensor:
        kind = x.device.type
        if not torch.is_autocast_enabled(kind):
            return method(self, x)
        with torch.autocast(kind, enabled=False):
            return method(self, x.float())

    return run

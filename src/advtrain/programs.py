"""Compiled programs of static shapes, for the passes that a run makes thousands of times.

A compiled network is one program for each number of images. In evaluation mode images do not depend
on each other, so a batch is filled up to a size that is there: the largest one seen, its half, its
quarter and so on. In training mode they do, and the one short minibatch of an epoch runs as it is
written. Functions around a network that gradients run through inside, as a step of an attack, are
compiled with it, whole; each has a minibatch of its own.

A conditional network is told a lambda beside each image; its programs take both. What does not
compile is told once, by name, and runs as it is written. So do calls with anything else.

The compiler counts programs by the code that they are of, which all networks of a process share,
and keeps them. A network that finds no other alive has them dropped.
"""

import gc
import logging
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any, Literal, TypeVar
from weakref import WeakSet

import torch
from torch import Tensor, nn

from advtrain.conditions import Condition

logger = logging.getLogger(__name__)

Compile = bool | Literal["reduce-overhead"]
F = TypeVar("F", bound=Callable[..., Tensor])

PROGRAMS = 64  # of one function, at most: sizes, with and without gradients, either mode
GRADIENTS = "trace_autograd_ops"  # of dynamo's settings: programs may hold torch.autograd.grad

DYNAMOS = "The .grad attribute of a Tensor that is not a leaf"
"""A warning that dynamo raises about what it looks at itself."""

TENSOR_FLOAT = "TensorFloat32 tensor cores"
"""One by which inductor advises to round float32, which verdicts must not."""

WAITS = "aten::_linalg_eigh"
"""An operation that no CUDA graph can hold. Inductor knows that by itself from torch 2.14 on."""

_alive: WeakSet[nn.Module] = WeakSet()  # networks with compiled calls
_resting: ContextVar[bool] = ContextVar("resting", default=False)


def compiled(model: nn.Module, *, backend: Any = "inductor", graphs: bool = False) -> nn.Module:
    """`model`, in place with compiled calls; the same object. Copies of it are not compiled.

    `graphs`: each program is recorded as a CUDA graph, too, in parts around what none can hold.
    """
    dynamo, inductor = torch._dynamo.config, torch._inductor.config
    functorch = torch._functorch.config
    dynamo.recompile_limit = max(dynamo.recompile_limit, PROGRAMS)
    functorch.force_non_lazy_backward_lowering = True  # so that errors come with the first call
    functorch.donated_buffer = False  # some attacks go back through a pass twice
    if hasattr(dynamo, GRADIENTS):
        setattr(dynamo, GRADIENTS, True)
    if graphs and WAITS not in inductor.custom_should_partition_ops:
        inductor.custom_should_partition_ops = [*inductor.custom_should_partition_ops, WAITS]
    for told in (DYNAMOS, TENSOR_FLOAT):
        warnings.filterwarnings("ignore", told)
    if _alive:
        gc.collect()  # a network and what is compiled of it hold each other
    if not _alive:
        torch._dynamo.reset()
    model._compiled_call_impl = Static(model, backend, graphs)
    _alive.add(model)
    return model


def program(model: object, function: F) -> F:
    """`function` compiled whole, with the network inside, if `model` is compiled; else itself.

    Its first argument is a tensor with a row for each image. Numbers among its arguments that
    change from call to call come as tensors.
    """
    network = model.func if isinstance(model, partial) else model  # told a lambda for each image
    static = getattr(network, "_compiled_call_impl", None)
    if not isinstance(static, Static) or not hasattr(torch._dynamo.config, GRADIENTS):
        return function
    return static.around(function)


@contextmanager
def at_rest() -> Iterator[None]:
    """Inside, compiled networks run as they are written."""
    token = _resting.set(True)
    try:
        yield
    finally:
        _resting.reset(token)


class Static:
    """What a call of a compiled network does."""

    def __init__(self, model: nn.Module, backend: Any, graphs: bool) -> None:
        self.model, self.graphs = model, graphs
        self.options: dict[str, Any] = {"backend": backend, "dynamic": False}
        if graphs:
            self.options["mode"] = "reduce-overhead"
        self.network = torch.compile(partial(_called, model), **self.options)
        self.programs: dict[Callable[..., Tensor], Callable[..., Tensor]] = {}
        self.refused: set[object] = set()
        self.told_of_more = False
        self.minibatch: Counter[object] = Counter()  # images of the largest, by what sees it whole
        self.most = 0  # images of the largest batch in evaluation mode

    def __call__(self, x: Tensor, *more: Any, **options: Any) -> Any:
        plain = self.model._call_impl
        if torch.compiler.is_compiling() or _resting.get() or not len(x):
            return plain(x, *more, **options)
        if self.graphs:
            x = _Kept.apply(x)
        told = [*more, *options.values()]
        if not all(isinstance(each, Condition) for each in told):
            self._tell_of_more()
            return plain(x, *more, **options)
        if any(part.training for part in self.model.modules()):
            if not self._whole((self.network, *(each.zeros > 0 for each in told)), x):
                return plain(x, *more, **options)
            return self._run(self.network, plain, x, *more, **options)
        size = self._size(len(x))
        more = tuple(each.filled(len(x), size) for each in more)
        options = {name: each.filled(len(x), size) for name, each in options.items()}
        logits: Tensor = self._run(self.network, plain, filled(x, size), *more, **options)
        return logits if size == len(x) else logits[: len(x)]

    def around(self, function: F) -> F:
        """`function` as one program, for whole minibatches."""
        if function not in self.programs:
            self.programs[function] = torch.compile(function, fullgraph=True, **self.options)

        def run(x: Tensor, *more: Any) -> Tensor:
            if _resting.get() or not self._whole(function, x):
                with at_rest():
                    return function(x, *more)
            found: Tensor = self._run(self.programs[function], function, x, *more)
            return found

        return run  # type: ignore[return-value]

    def _whole(self, by: object, x: Tensor) -> bool:
        self.minibatch[by] = max(self.minibatch[by], len(x))
        return 0 < len(x) == self.minibatch[by]

    def _size(self, images: int) -> int:
        """The least of `most`, its half and so on, that is not below `images`."""
        self.most = size = max(self.most, images)
        while images <= size // 2:
            size //= 2
        return size

    def _run(
        self, fast: Callable[..., Any], plain: Callable[..., Any], *given: Any, **keys: Any
    ) -> Any:
        if fast not in self.refused:
            try:
                found = fast(*given, **keys)
                return found.clone() if self.graphs else found  # a graph overwrites what it returns
            except Exception as error:
                if not _of_compiler(error):
                    raise
                self.refused.add(fast)
                self._tell(plain, error)
        return plain(*given, **keys)

    def _tell_of_more(self) -> None:
        if not self.told_of_more:
            logger.warning(
                "compile: %s is called with more than images and lambdas, and runs as it is.",
                type(self.model).__name__,
            )
        self.told_of_more = True

    def _tell(self, plain: Callable[..., Any], error: Exception) -> None:
        name = type(self.model).__name__
        what = name if _name(plain) == "_call_impl" else f"{_name(plain)} around {name}"
        error = getattr(error, "inner_exception", error)
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        logger.warning("compile: %s does not compile (%s) and runs as it is.", what, first[:200])


class _Kept(torch.autograd.Function):
    """The images themselves, whose gradient outlives the graph that returns it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient.clone()


def _called(model: nn.Module, x: Tensor, *more: Any, **options: Any) -> Any:
    """A pass, as code of ours: torch 2.11 leaves its own modules, as Sequential, uncompiled."""
    return model._call_impl(x, *more, **options)


def _name(function: Callable[..., Any]) -> str:
    return getattr(function, "__name__", type(function).__name__)


def filled(x: Tensor, size: int) -> Tensor:
    """`x` with its last row repeated, up to `size` rows; as it is where there are as many."""
    if size == len(x):
        return x
    return torch.cat([x, x[-1:].expand(size - len(x), *x.shape[1:])])


def _of_compiler(error: BaseException) -> bool:
    homes = ("torch._dynamo", "torch._inductor", "torch._functorch")
    return any(kind.__module__.startswith(homes) for kind in type(error).__mro__)

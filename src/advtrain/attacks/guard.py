"""What stands around every attack that users may call: checks of the batch, care for the model.

A guarded attack leaves the model as it was: parameters are frozen and buffers held still while it
runs, and the mode is never touched. Modules are found in a `functools.partial` and behind a bound
method too; one hidden in a closure is found by nobody, and if that is in training mode its running
statistics move. The checks cost one host synchronisation per call. Inside `modes.crafting`, and in
attacks called by an attack, the guard stands aside: somebody above has done all this.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial, wraps
from math import isfinite
from typing import Any, Concatenate, ParamSpec

import torch
from torch import Generator, Tensor, nn

from advtrain import seeding
from advtrain.modes import frozen, frozen_statistics, vouched, vouching
from advtrain.precision import full_precision, tensor_float
from advtrain.types import Classifier

P = ParamSpec("P")
Guarded = Callable[Concatenate[Classifier, Tensor, Tensor, P], Tensor]

SLACK = 1e-5  # of pixels outside the box, which interpolation in float32 may cause


def guarded(attack: Guarded[P]) -> Guarded[P]:
    """`attack` with the guard. Gradients are on inside, whatever the caller's mode, and tensors of
    `torch.inference_mode` are copied, since autograd takes none.

    ValueError: images outside the box of the threat ([0, 1] without one), not finite, or not
    floating point; labels of the wrong type, shape or range; logits that are not (N, K).
    """

    @wraps(attack)
    def guard(model: Classifier, x: Tensor, y: Tensor, *args: P.args, **keys: P.kwargs) -> Tensor:
        with ExitStack() as stack:
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.enable_grad())
            x, y = _recordable(x), _recordable(y)
            if not vouched():
                largest = check(x, y, keys.get("threat"), keys.get("generator"))
                for module in modules_of(model):
                    stack.enter_context(frozen(module))
                    stack.enter_context(frozen_statistics(module))
                stack.enter_context(vouching())
                stack.enter_context(_own_draws(model, x, keys.get("generator")))
                model = Checked(model, largest)
            return attack(model, x, y, *args, **keys)

    return guard


def _recordable(given: Tensor) -> Tensor:
    return given.clone() if given.is_inference() else given.detach()


@contextmanager
def _own_draws(model: Classifier, x: Tensor, generator: Any) -> Iterator[None]:
    """With a generator, draws of a model come from it as well: of dropout, or at every pass."""
    drawing = any(
        part.training or getattr(part, "stochastic", False)
        for module in modules_of(model)
        for part in module.modules()
    )
    if not isinstance(generator, Generator) or not drawing:
        yield
        return
    ahead = generator.clone_state()  # what the attack itself draws stays as it would be
    seed = torch.randint(2**62, (), generator=ahead, device=ahead.device)
    with torch.random.fork_rng(devices=[x.device] if x.is_cuda else []):
        seeding.seed(x.device, int(seed))
        yield


@dataclass(frozen=True)
class Checked:
    """A classifier whose logits are checked for their shape; labels are at most `largest`."""

    model: Classifier
    largest: int

    def around(self, model: Classifier) -> "Checked":
        """The same checks of another classifier."""
        return Checked(model, self.largest)

    def __call__(self, x: Tensor) -> Tensor:
        logits = self.model(x)
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(x):
            raise ValueError(
                f"the model returned {shape} for {len(x)} images; attacks need logits of shape "
                f"({len(x)}, K). Wrap the model so that it returns these alone."
            )
        if self.largest >= logits.shape[1]:
            raise ValueError(
                f"y holds the label {self.largest}, the model returns {logits.shape[1]} logits; "
                f"labels lie in [0, {logits.shape[1] - 1}]."
            )
        return logits


def check(x: Tensor, y: Tensor, threat: Any, generator: Any) -> int:
    """Refuse a batch that an attack cannot be asked about; the largest label otherwise, or -1."""
    if not x.is_floating_point() or x.ndim < 2:
        raise ValueError(
            f"x has dtype {x.dtype} and shape {tuple(x.shape)}; attacks take floating-point images "
            "of shape (N, C, H, W) or (N, D). Write x.float() / 255 for bytes."
        )
    if y.dtype != torch.int64 or y.shape != x.shape[:1]:
        raise ValueError(
            f"y has dtype {y.dtype} and shape {tuple(y.shape)}; attacks take one int64 label per "
            f"image, shape ({len(x)},). Write y.argmax(1) for one-hot labels."
        )
    if y.device != x.device:
        raise ValueError(f"y is on {y.device} and x on {x.device}; put both on one device.")
    if isinstance(generator, Generator) and generator.device.type != x.device.type:
        raise ValueError(
            f"generator is on {generator.device} and x on {x.device}; noise is drawn where the "
            f"images are. Write torch.Generator({str(x.device)!r})."
        )
    return _check_values(x, y, threat) if x.numel() else -1


def _check_values(x: Tensor, y: Tensor, threat: Any) -> int:
    low, high = getattr(threat, "low", 0.0), getattr(threat, "high", 1.0)
    extremes = torch.stack([extreme.float() for extreme in (*x.aminmax(), *y.aminmax())])
    darkest, brightest, smallest, largest = extremes.tolist()
    finite = isfinite(darkest) and isfinite(brightest)
    if not (finite and low - SLACK <= darkest and brightest <= high + SLACK):
        raise ValueError(
            f"x lies in [{darkest:g}, {brightest:g}]; images lie in [{low:g}, {high:g}], and are "
            "finite. Divide bytes by 255, and put normalisation into the model."
        )
    if smallest < 0:
        raise ValueError(f"y holds the label {smallest:g}; labels are class indices from 0.")
    return int(largest)


def exact(model: Classifier) -> AbstractContextManager[None]:
    """Inside, the modules that a call of `model` is known to run compute in float32."""
    return _all_within(model, full_precision)


def searching(model: Classifier) -> AbstractContextManager[None]:
    """Inside, those of them in low precision compute in float32, on a GPU in TF32: no verdicts."""
    return _all_within(model, tensor_float)


@contextmanager
def _all_within(
    model: Classifier, block: Callable[[nn.Module], AbstractContextManager[nn.Module]]
) -> Iterator[None]:
    with ExitStack() as stack:
        for module in modules_of(model):
            stack.enter_context(block(module))
        yield


def modules_of(model: Classifier) -> Iterator[nn.Module]:
    """The modules that a call of `model` is known to run."""
    if isinstance(model, nn.Module):
        yield model
    elif isinstance(model, partial):
        for part in (model.func, *model.args, *model.keywords.values()):
            yield from modules_of(part)
    elif hasattr(model, "__self__"):
        yield from modules_of(model.__self__)
    elif hasattr(model, "model"):  # what wraps a classifier keeps it under this name
        yield from modules_of(model.model)

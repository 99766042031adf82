"""Optimizers: PyTorch's, fused where the device has that, with weight decay where it is wanted.

`parameters` comes from the program. With `no_decay_on_norm`, tensors of one dimension (scales and
shifts of norms, biases) form a second group without weight decay.
"""

from collections.abc import Iterable, Mapping

from torch import nn, optim

from advtrain.ranges import Decay, NonNegative, Positive
from advtrain.types import Schedule


def sgd(
    parameters: Iterable[nn.Parameter],
    *,
    lr: Positive,
    momentum: Decay,
    weight_decay: NonNegative,
    nesterov: bool,
    no_decay_on_norm: bool,
) -> optim.Optimizer:
    """Stochastic gradient descent; weight decay is added to the gradient, before momentum."""
    groups = _groups(parameters, weight_decay, no_decay_on_norm)
    return optim.SGD(groups, lr, momentum, nesterov=nesterov, fused=_fused(groups))


def adam(
    parameters: Iterable[nn.Parameter],
    *,
    lr: Positive,
    betas: tuple[Decay, Decay],
    weight_decay: NonNegative,
    no_decay_on_norm: bool,
) -> optim.Optimizer:
    """Adam (Kingma and Ba 2015, https://arxiv.org/abs/1412.6980); decay enters the gradient."""
    groups = _groups(parameters, weight_decay, no_decay_on_norm)
    return optim.Adam(groups, lr, _pair(betas), fused=_fused(groups))


def adamw(
    parameters: Iterable[nn.Parameter],
    *,
    lr: Positive,
    betas: tuple[Decay, Decay],
    weight_decay: NonNegative,
    no_decay_on_norm: bool,
) -> optim.Optimizer:
    """Adam with decoupled decay (Loshchilov and Hutter 2019, https://arxiv.org/abs/1711.05101)."""
    groups = _groups(parameters, weight_decay, no_decay_on_norm)
    return optim.AdamW(groups, lr, _pair(betas), fused=_fused(groups))


def require_rates(optimizer: optim.Optimizer, rates: Mapping[str, Schedule]) -> None:
    """Raise ValueError if a schedule drives something that the optimizer does not have."""
    known = [name for name in ("lr", "momentum") if name in optimizer.defaults]
    for name in rates:
        if name not in known:
            raise ValueError(
                f"schedule.{name} drives nothing: {type(optimizer).__name__} lets a schedule set "
                f"{' and '.join(known)}. Remove schedule.{name}, or choose optimizer=sgd."
            )


def _groups(
    parameters: Iterable[nn.Parameter], weight_decay: float, no_decay_on_norm: bool
) -> list[dict[str, object]]:
    every = list(parameters)
    spared = [p for p in every if no_decay_on_norm and p.ndim <= 1]
    decayed = [p for p in every if not (no_decay_on_norm and p.ndim <= 1)]
    groups = ((decayed, weight_decay), (spared, 0.0))
    return [{"params": members, "weight_decay": decay} for members, decay in groups if members]


def _fused(groups: list[dict[str, object]]) -> bool:
    """One kernel for all tensors: a third of the time of a loop, on these devices."""
    members = [p for group in groups for p in group["params"]]  # type: ignore[attr-defined]
    return all(p.device.type in ("cpu", "cuda") for p in members)


def _pair(betas: tuple[float, float]) -> tuple[float, float]:
    first, second = betas  # a list when it comes from YAML
    return first, second

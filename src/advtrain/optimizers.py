"""Optimizers: PyTorch's, fused where the device has that, with weight decay where it is wanted.

`parameters` comes from the program. With `no_decay_on_norm`, tensors of one dimension (scales and
shifts of norms, biases) have no weight decay. `rates` multiplies `lr`, and whatever a schedule sets
in its place, for parts of the network: {head: 10}; the longest name that fits counts. Parameters
that are treated alike form a group; those that want no gradient yet form groups of their own, so
that a group takes its first step as a whole.
"""

from collections.abc import Iterable, Mapping
from functools import cache
from inspect import unwrap
from typing import Any

import torch
from torch import Tensor, nn, optim

from advtrain.parts import require_parts, within
from advtrain.ranges import Decay, NonNegative, Positive
from advtrain.types import Schedule

Parameters = Iterable[nn.Parameter] | Iterable[tuple[str, nn.Parameter]]
"""Of a network, in its order, with their names; `rates` cannot do without names."""
Groups = list[dict[str, object]]
GUARDED = ("step", "zero_grad", "add_param_group", "state_dict", "load_state_dict")
"""Methods that PyTorch hides from its compiler, for which their first call imports it."""
SCHEDULED = ("lr", "momentum")
"""Options that a schedule may set."""


def sgd(
    parameters: Parameters,
    *,
    lr: Positive,
    momentum: Decay,
    weight_decay: NonNegative,
    nesterov: bool,
    no_decay_on_norm: bool,
    rates: Mapping[str, Positive] | None = None,
) -> optim.Optimizer:
    """Stochastic gradient descent; weight decay is added to the gradient, before momentum."""
    groups = _groups(parameters, lr, weight_decay, no_decay_on_norm, rates or {})
    kind = unguarded(optim.SGD)
    return _aligned(kind(groups, lr, momentum, nesterov=nesterov, fused=_fused(groups)))


def adam(
    parameters: Parameters,
    *,
    lr: Positive,
    betas: tuple[Decay, Decay],
    weight_decay: NonNegative,
    no_decay_on_norm: bool,
    rates: Mapping[str, Positive] | None = None,
) -> optim.Optimizer:
    """Adam (Kingma and Ba 2015, https://arxiv.org/abs/1412.6980); decay enters the gradient."""
    groups = _groups(parameters, lr, weight_decay, no_decay_on_norm, rates or {})
    return _aligned(unguarded(optim.Adam)(groups, lr, _pair(betas), fused=_fused(groups)))


def adamw(
    parameters: Parameters,
    *,
    lr: Positive,
    betas: tuple[Decay, Decay],
    weight_decay: NonNegative,
    no_decay_on_norm: bool,
    rates: Mapping[str, Positive] | None = None,
) -> optim.Optimizer:
    """Adam with decoupled decay (Loshchilov and Hutter 2019, https://arxiv.org/abs/1711.05101)."""
    groups = _groups(parameters, lr, weight_decay, no_decay_on_norm, rates or {})
    return _aligned(unguarded(optim.AdamW)(groups, lr, _pair(betas), fused=_fused(groups)))


@cache
def unguarded(kind: Any) -> Any:
    """`kind` as it computes, a second sooner: the compiler is imported by what is compiled alone.

    A step of it must not be part of what torch.compile is given.
    """
    own = {name: unwrap(getattr(kind, name)) for name in GUARDED}
    return type(kind.__name__, (kind,), {**own, "step": torch.no_grad()(own["step"])})


def require_rates(optimizer: optim.Optimizer, rates: Mapping[str, Schedule]) -> None:
    """Raise ValueError if a schedule drives something that the optimizer does not have."""
    known = [name for name in SCHEDULED if name in optimizer.defaults]
    for name in rates:
        if name not in known:
            raise ValueError(
                f"schedule.{name} drives nothing: {type(optimizer).__name__} lets a schedule set "
                f"{' and '.join(known)}. Remove schedule.{name}, or choose optimizer=sgd."
            )


def _groups(
    parameters: Parameters,
    lr: float,
    weight_decay: float,
    no_decay_on_norm: bool,
    rates: Mapping[str, float],
) -> Groups:
    """Groups of PyTorch's, in the order of the network; `factor` is that of the rate."""
    named = [each if isinstance(each, tuple) else ("", each) for each in parameters]
    if rates and not all(name for name, _ in named):
        raise ValueError("rates goes by names: give the optimizer model.named_parameters().")
    require_parts("rates", rates, [name for name, _ in named])
    found: dict[tuple[float, float, bool], list[nn.Parameter]] = {}
    for name, each in named:
        decay = 0.0 if no_decay_on_norm and each.ndim <= 1 else weight_decay
        part = max((part for part in rates if within(name, [part])), key=len, default=None)
        factor = 1.0 if part is None else rates[part]
        found.setdefault((decay, factor, each.requires_grad), []).append(each)
    return [
        {"params": members, "lr": factor * lr, "factor": factor, "weight_decay": decay}
        for (decay, factor, _), members in found.items()
    ]


def _fused(groups: Groups) -> bool:
    """One kernel for all tensors: a third of the time of a loop, on these devices."""
    members = [p for group in groups for p in group["params"]]  # type: ignore[attr-defined]
    return all(p.device.type in ("cpu", "cuda") for p in members)


def _aligned(optimizer: optim.Optimizer) -> optim.Optimizer:
    """Fused kernels go by memory, where a gradient or a moment may lie otherwise than its weights.

    So may one from a file, or a gradient that a descent has made: then it is laid out anew. What a
    file has of another shape is refused by load_state_dict, with ValueError.
    """
    optimizer.register_step_pre_hook(_lay_gradients)
    optimizer.register_load_state_dict_pre_hook(_keep_options)
    optimizer.register_load_state_dict_post_hook(_require_moments)
    optimizer.register_load_state_dict_post_hook(lay_moments)
    return optimizer


def _lay_gradients(optimizer: optim.Optimizer, *given: Any) -> None:
    for group in optimizer.param_groups:
        for each in group["params"]:
            if each.grad is not None and not _alike(each, each.grad):
                each.grad = torch.empty_like(each).copy_(each.grad)


def _keep_options(optimizer: optim.Optimizer, saved: dict[str, Any]) -> dict[str, Any]:
    """`saved` with the options of the configuration, but for what schedules set."""
    groups = [
        {**own, "params": theirs["params"]}
        | {name: float(theirs[name]) for name in SCHEDULED if name in own}
        for own, theirs in zip(optimizer.param_groups, saved["param_groups"], strict=True)
    ]
    return {"state": saved["state"], "param_groups": groups}


def _require_moments(optimizer: optim.Optimizer) -> None:
    sgd = isinstance(optimizer, optim.SGD)
    names = {"momentum_buffer"} if sgd else {"step", "exp_avg", "exp_avg_sq"}
    for each, state in optimizer.state.items():
        if state and set(state) != names:
            raise ValueError("the state of the optimizer is that of another")
        for name, value in state.items():
            shape = torch.Size() if name == "step" else each.shape
            if value is not None and value.shape != shape:
                raise ValueError(f"{name} of a tensor {tuple(each.shape)} has another shape")


def lay_moments(optimizer: optim.Optimizer) -> None:
    """Let moments lie as their weights do, in the order that fused steps read both in."""
    for each, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.shape == each.shape and not _alike(each, value):
                state[name] = torch.empty_like(each, dtype=value.dtype).copy_(value)


def _alike(weights: Tensor, value: Tensor) -> bool:
    """Whether both lie in the same order; how far apart single entries are tells nothing."""
    pairs = zip(weights.shape, weights.stride(), value.stride(), strict=True)
    return all(mine == other for size, mine, other in pairs if size > 1)


def _pair(betas: tuple[float, float]) -> tuple[float, float]:
    first, second = betas  # a list when it comes from YAML
    return first, second

"""Exact robustness of linear models: how far each image is from the nearest other class.

The logits W x + b have z_c - z_k linear in x, so class c gives way to k at the distance
(z_c - z_k) / |w_c - w_k|*, in the dual of the norm in which images move (l1 for l-infinity, l2 for
l2, l-infinity for l1; Hein and Andriushchenko 2017, https://arxiv.org/abs/1705.08475, sec. 2.1).
The nearest k decides. That is no bound but the distance itself, for any number of classes: inside
the class is c, and beyond, in the right direction, it is not. Images may leave the box of pixels
here; where they may not, the true distance can only be larger.
"""

from collections.abc import Iterable, Mapping, Sequence
from math import inf, isfinite
from typing import NamedTuple, TypedDict

import torch
from torch import Tensor

from advtrain.affine import Affine
from advtrain.certification.summary import name
from advtrain.threat import L1, L2, Ball, Linf

UNIT: Mapping[str, Ball] = {"linf": Linf(1.0), "l2": L2(1.0), "l1": L1(1.0)}
"""The unit ball of each norm, whose support function is the dual norm."""


class Distances(NamedTuple):
    """Classes (N,), int64, and how far they hold, (N,), float64; inf where nothing changes them."""

    classes: Tensor
    radii: Tensor


class Exact(TypedDict):
    """The entry of one norm in `exact` of results.json; acr is null where it is infinite."""

    accuracy_at_radius: dict[str, float]
    acr: float | None


def distances(model: Affine, x: Tensor, norm: str) -> Distances:
    """The class of each image x (N, ...), and its exact distance to the nearest other class.

    In float64, `norm` one of linf, l2, l1. 0 on a boundary, which is as near as can be.
    """
    weight, bias = model.weight.double(), model.bias.double()
    logits = x.double().flatten(1) @ weight.T + bias
    classes = logits.argmax(1)
    radii = torch.full_like(logits[:, 0], inf)
    for ahead in range(1, len(weight)):
        other = (classes + ahead) % len(weight)
        pair = torch.stack([classes, other], 1)
        best, next_best = logits.gather(1, pair).unbind(1)
        slope = UNIT[norm].support(weight[classes] - weight[other])
        # equal weights: the gap is 0 everywhere and the boundary here, or nothing closes it
        radii = torch.minimum(radii, ((best - next_best) / slope).nan_to_num(nan=0.0, posinf=inf))
    return Distances(classes, radii)


def summary(parts: Iterable[tuple[Distances, Tensor]], radii: Sequence[float]) -> Exact:
    """Of batches, each with its labels (N,): certified accuracy at `radii`, and the mean radius.

    An image counts at a radius up to its distance, that included, if its class is right; it adds
    its distance to acr, the average certified radius, if its class is right, else 0.
    """
    reached = torch.cat([d.radii.where(d.classes == y, -inf).cpu() for d, y in parts])
    acr = float(reached.clamp_min(0).mean())
    return Exact(
        accuracy_at_radius={name(r): float((reached >= r).double().mean()) for r in radii},
        acr=acr if isfinite(acr) else None,
    )


def require_norms(norms: Iterable[str]) -> None:
    """ValueError: a norm without exact distances, or none at all."""
    given = list(norms)
    if not given or not set(given) <= UNIT.keys():
        raise ValueError(
            f"exact has the norms {given}; allowed are one or more of {', '.join(UNIT)}, each with "
            "the radii at which to count. Write exact={linf: [0.1], l2: [0.5]}."
        )

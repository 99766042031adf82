"""Momentum iterative method (Dong et al. 2018, https://arxiv.org/abs/1710.06081, eq. 6 and 7).

g <- decay g + grad / |grad|_1 per example; x <- x + step_size * steepest(g). decay is mu in the
paper. For transfer; against the network that it sees, PGD is the stronger attack.

Differs: an exactly zero gradient divides 0 by 0 in the usual code, and a momentum of NaN then
holds the image still for good; here such a gradient adds nothing.
"""

from typing import Literal

import torch
from torch import Generator, Tensor

from advtrain.attacks import starts
from advtrain.attacks.guard import guarded
from advtrain.attacks.objectives import cross_entropy
from advtrain.attacks.pgd import Rule, climb
from advtrain.ranges import Count, NonNegative, Range, require
from advtrain.types import Classifier, Objective, Start, Threat


@guarded
def mim(
    model: Classifier,
    x: Tensor,
    y: Tensor,
    *,
    threat: Threat,
    steps: Count,
    step_size: NonNegative,
    decay: NonNegative,
    start: Start = starts.clean,
    restarts: Count = 1,
    targeted: bool = False,
    objective: Objective = cross_entropy,
    keep: Literal["last", "any"] = "last",
    generator: Generator | None = None,
) -> Tensor:
    """`steps` ascents along an average of past gradients; the rest as in `pgd`.

    Restarts differ only with a random start. ValueError as `pgd`, and for a negative decay.
    """
    require("decay", decay, Range(0))
    return climb(
        model,
        x,
        y,
        lambda: momentum(threat, decay),
        threat=threat,
        steps=steps,
        step_size=step_size,
        start=start,
        restarts=restarts,
        targeted=targeted,
        objective=objective,
        keep=keep,
        generator=generator,
    )


def momentum(threat: Threat, decay: float) -> Rule:
    """A rule that remembers: the steepest direction of the decayed sum of gradients."""
    total: Tensor | None = None

    def direction(gradient: Tensor) -> Tensor:
        nonlocal total
        fresh = _normalised(gradient)
        total = fresh if total is None else torch.add(fresh, total, alpha=decay)
        return threat.steepest(total)

    return direction


def _normalised(gradient: Tensor) -> Tensor:
    """The gradient over its l1 norm, per example; 0 where that norm is 0 or not finite."""
    wide = torch.promote_types(gradient.dtype, torch.float32)
    length = gradient.abs().sum(tuple(range(1, gradient.ndim)), keepdim=True, dtype=wide)
    return (gradient / length).to(gradient.dtype).nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)

"""Projected gradient ascent by Adam, the attack in the code of LLR (Qin et al. 2019).

x <- x + step_size * mean / (sqrt(square) + 1e-8), running moments of the gradient with their bias
corrected (Kingma and Ba 2015, https://arxiv.org/abs/1412.6980, algorithm 1), then projected. The
first step moves every pixel by `step_size`, whatever the norm of the set.

Differs: their code has 1e-9 for 1e-8 and gradients of the batch's mean, here they are of its sum.
"""

from typing import Literal

from torch import Generator, Tensor

from advtrain.attacks import starts
from advtrain.attacks.cw import Adam
from advtrain.attacks.guard import guarded
from advtrain.attacks.objectives import cross_entropy
from advtrain.attacks.pgd import Rule, climb
from advtrain.ranges import Count, NonNegative
from advtrain.types import Classifier, Objective, Start, Threat


@guarded
def adam_pgd(
    model: Classifier,
    x: Tensor,
    y: Tensor,
    *,
    threat: Threat,
    steps: Count,
    step_size: NonNegative,
    start: Start = starts.uniform,
    restarts: Count = 1,
    targeted: bool = False,
    objective: Objective = cross_entropy,
    keep: Literal["last", "any"] = "last",
    generator: Generator | None = None,
) -> Tensor:
    """`steps` steps of Adam at rate `step_size` (pixel units); the rest as in `pgd`."""
    return climb(
        model,
        x,
        y,
        moments,
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


def moments() -> Rule:
    """A rule that remembers: Adam's step at rate 1. Gradients that are not finite count as 0."""
    adam: Adam | None = None

    def direction(gradient: Tensor) -> Tensor:
        nonlocal adam
        adam = adam or Adam(gradient, lr=1.0)
        return adam.step(-gradient.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0))

    return direction

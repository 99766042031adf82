"""The attack of fast adversarial training (Wong et al. 2020, https://arxiv.org/abs/2001.03994,
algorithm 3): a uniform start in the ball, one step, projection to the ball, and the box at the end.

The gradient is taken at the start even where that is no image. On MNIST, whose pixels are mostly 0,
it matters: half of the background would start at 0 if it were clipped, all of it would end at 0 or
eps, and training on such corners alone hides the gradient.

Differs: the authors' CIFAR-10 code clips the start, `clip_start: true`; their MNIST code does not.
"""

from dataclasses import replace
from math import inf

from torch import Generator, Tensor

from advtrain.attacks.guard import guarded
from advtrain.attacks.objectives import cross_entropy
from advtrain.attacks.pgd import pgd
from advtrain.ranges import NonNegative
from advtrain.threat import Ball
from advtrain.types import Classifier, Objective, Threat


@guarded
def fast(
    model: Classifier,
    x: Tensor,
    y: Tensor,
    *,
    threat: Threat,
    step_size: NonNegative,
    clip_start: bool = False,
    targeted: bool = False,
    objective: Objective = cross_entropy,
    generator: Generator | None = None,
) -> Tensor:
    """One step of `step_size` (pixel units; 1.25 eps in the paper) from a point of the ball.

    ValueError: step_size is not positive (0 is fine when eps is 0).
    """
    assert isinstance(threat, Ball)
    begun = threat if clip_start else replace(threat, low=-inf, high=inf)
    x_adv = pgd(
        model,
        x,
        y,
        threat=begun,
        steps=1,
        step_size=step_size,
        targeted=targeted,
        objective=objective,
        generator=generator,
    )
    return threat.project(x_adv, x)

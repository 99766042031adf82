"""Gradient steps: FGSM, R+FGSM and projected gradient descent, for any threat.

FGSM: Goodfellow et al. 2015, https://arxiv.org/abs/1412.6572. R+FGSM: Tramer et al. 2018,
https://arxiv.org/abs/1705.07204. PGD: Madry et al. 2018, https://arxiv.org/abs/1706.06083.

The gradient is taken at a point that already lies in the set, and with respect to that point.
Differentiating through a projection instead stops at saturated pixels, which on digits makes
PGD-20 look 13 points weaker than it is.

Differs: many implementations evaluate their first gradient at a random point outside the box;
here the start is projected first. Losses are summed over the batch, so no gradient depends on
the batch's size.
"""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Literal

import torch
from torch import Generator, Tensor

from advtrain.attacks import starts
from advtrain.attacks.best import Best, Watched
from advtrain.attacks.guard import guarded
from advtrain.attacks.objectives import cross_entropy, separate
from advtrain.attacks.objectives import targeted as descending
from advtrain.attacks.restarts import Rows, restarted
from advtrain.draws import normal
from advtrain.programs import program
from advtrain.ranges import Count, NonNegative, Range, Unit, require
from advtrain.types import Classifier, Gain, Objective, Start, Threat

Project = Callable[[Tensor], Tensor]
Rule = Callable[[Tensor], Tensor]
"""A gradient to a direction of unit norm; may remember the gradients of this run."""


@guarded
def fgsm(
    model: Classifier,
    x: Tensor,
    y: Tensor,
    *,
    threat: Threat,
    targeted: bool = False,
    objective: Objective = cross_entropy,
    generator: Generator | None = None,
) -> Tensor:
    """One step of length eps from the clean images, in the steepest direction; draws nothing.

    Exact on a linear model with two classes. With an l2 threat this is the fast gradient method.
    """
    gain = (descending(objective) if targeted else objective)(model, x, y)
    return ascent(model, threat.eps, x)(x, gain, threat.steepest, threat.around(x))


@guarded
def rfgsm(
    model: Classifier,
    x: Tensor,
    y: Tensor,
    *,
    threat: Threat,
    noise_share: Unit,
    targeted: bool = False,
    objective: Objective = cross_entropy,
    generator: Generator | None = None,
) -> Tensor:
    """`noise_share` of eps in a random direction, then the rest of eps along the gradient there.

    The direction is that of Gaussian noise: its sign for l-infinity, as in the paper.
    """
    require("noise_share", noise_share, Range(0, 1))
    project = threat.around(x)
    noise = threat.steepest(normal(x, generator))
    x_adv = project(step(x, noise, noise_share * threat.eps))
    gain = (descending(objective) if targeted else objective)(model, x, y)
    rest = (1 - noise_share) * threat.eps
    return ascent(model, rest, x)(x_adv, gain, threat.steepest, project)


@guarded
def pgd(
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
    """`steps` ascents of length `step_size` (pixel units), each projected to the set.

    keep `last` returns the last point of a run, as papers report; `any` chooses among all points
    of the run, the start included, for one more forward pass. Restarts draw anew from `start`, and
    run for the examples that stand (see `restarts`). Of several candidates each example keeps the
    first that fools, else the one of highest gain.
    ValueError: steps or restarts below 1, step_size not positive (0 is fine when eps is 0).
    """
    return climb(
        model,
        x,
        y,
        lambda: threat.steepest,
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


def climb(
    model: Classifier,
    x: Tensor,
    y: Tensor,
    rule: Callable[[], Rule],
    *,
    threat: Threat,
    steps: int,
    step_size: float,
    start: Start,
    restarts: int,
    targeted: bool,
    objective: Objective,
    keep: Literal["last", "any"],
    generator: Generator | None,
) -> Tensor:
    """The runs of `pgd` and its kin; `rule()` is called at the beginning of each.

    Per run, `steps` forward and backward passes, and a forward pass if there is a choice to make.
    """
    require("steps", steps, Range(1))
    require("step_size", step_size, Range(0, open_low=threat.eps > 0))
    runs = partial(
        _runs,
        model,
        x,
        y,
        rule,
        threat=threat,
        steps=steps,
        step_size=step_size,
        objective=descending(objective) if targeted else objective,
        keep=keep,
    )
    return restarted(
        model,
        x,
        y,
        runs,
        lambda: start(x, threat, generator=generator),
        restarts=restarts,
        keep=keep,
        targeted=targeted,
        separate=separate(objective),
    )


def _runs(
    model: Classifier,
    x: Tensor,
    y: Tensor,
    rule: Callable[[], Rule],
    rows: Rows,
    points: Iterable[Tensor],
    best: Best | None,
    *,
    threat: Threat,
    steps: int,
    step_size: float,
    objective: Objective,
    keep: Literal["last", "any"],
) -> Tensor:
    """The loop: a run for the images `rows` from each of `points`; see `restarts.Runs`."""
    x, y, watched = x[rows], y[rows], Watched(model)
    gain = objective(watched if best else model, x, y)
    project = threat.around(x)
    forward = ascent(model, step_size, x)
    for point in points:
        x_adv, direction = project(point), rule()
        whole = keep == "last" and direction == threat.steepest  # no program holds a memory
        for _ in range(steps):
            if whole:
                x_adv = forward(x_adv, gain, direction, project)
                continue
            value, gradient = evaluate(gain, x_adv)
            if best and keep == "any":
                best.offer(x_adv, value, watched.logits)
            x_adv = project(step(x_adv, direction(gradient), step_size))
        if best:
            with torch.no_grad():
                best.offer(x_adv, gain(x_adv), watched.logits)
    return x_adv


def ascent(
    model: Classifier, size: float, like: Tensor
) -> Callable[[Tensor, Gain, Rule, Project], Tensor]:
    """`ascend` by steps of `size`, one program with `model` inside where that is compiled."""
    forward = program(model, ascend)
    length = size if forward is ascend else like.new_full((), size)

    def run(x_adv: Tensor, gain: Gain, direction: Rule, project: Project) -> Tensor:
        return forward(_leaf(x_adv), gain, direction, project, length)

    return run


def ascend(
    leaf: Tensor, gain: Gain, direction: Rule, project: Project, size: float | Tensor
) -> Tensor:
    """One ascent of length `size` from `leaf`, which wants a gradient, and its projection.

    The leaf is made outside, for programs of torch 2.11 cannot make one.
    """
    _, gradient = _slope(gain, leaf)
    return project(step(leaf.detach(), direction(gradient), size))


def evaluate(gain: Gain, x_adv: Tensor) -> tuple[Tensor, Tensor]:
    """The gain at `x_adv`, (B,), and its gradient, of the shape of `x_adv`; both detached.

    ValueError if the gain does not depend on its argument by differentiable operations.
    """
    return _slope(gain, _leaf(x_adv))


def _leaf(x_adv: Tensor) -> Tensor:
    return x_adv.detach().requires_grad_()


def _slope(gain: Gain, leaf: Tensor) -> tuple[Tensor, Tensor]:
    value = gain(leaf)
    require_gradient(value)
    (gradient,) = torch.autograd.grad(value.sum(), leaf)
    return value.detach(), gradient


def require_gradient(value: Tensor) -> None:
    """ValueError if `value`, made of logits, does not depend on the images by gradients."""
    if not value.requires_grad:
        raise ValueError(
            "the model's logits carry no gradient to the images: it detaches, rounds or takes the "
            "argmax. Attack a differentiable version of it, or use square, which needs none."
        )


def step(x_adv: Tensor, direction: Tensor, size: float | Tensor) -> Tensor:
    """`x_adv + size * direction`, in a tensor of its own."""
    if isinstance(size, Tensor):
        return torch.addcmul(x_adv, direction, size)
    return torch.add(x_adv, direction, alpha=size)

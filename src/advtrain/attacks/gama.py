"""Guided adversarial margin attack (Sriramanan et al. 2020, https://arxiv.org/abs/2011.14969).

Ascends, on softmax probabilities p, the margin max_{j != y} p_j(x_adv) - p_y(x_adv) and, with a
weight that falls to 0 in a line, the distance |p(x_adv) - p(x)|^2: away from the image first, then
to the nearest boundary. weight is lambda_0 in the paper, and ramp tau over the number of steps.
A run sets out from the surface of the ball: for l-infinity, one of its corners. Moments are shares
of the steps, so that a short attack has the same phases.

`gama_pgd` takes gradient steps, `gama_fw` those of Frank and Wolfe, a share gamma of the way to
the point of the ball that is furthest along the gradient. Defaults are those for CIFAR-10; for
MNIST the authors run gama_pgd with weight 5, ramp 0.5, step 1 and drops 0.5, 0.75.

Margins of probabilities are flat where p_y rounds to 1: against a network with very large logits,
ascend the margin of logits (`objectives.margin`) or dlr instead.

Differs: in the authors' code the distance is to p at the noisy start, here to p(x) as in the
paper, computed once; and theirs evaluates the start outside the box, here it is projected first.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Literal

import torch
from torch import Generator, Tensor

from advtrain import functional
from advtrain.attacks import pgd
from advtrain.attacks.best import Best, Watched
from advtrain.attacks.guard import guarded
from advtrain.attacks.restarts import Rows, restarted
from advtrain.draws import normal
from advtrain.ranges import Count, NonNegative, Positive, Range, Unit, require
from advtrain.types import Classifier, Gain, Threat

Move = Callable[[Tensor, Tensor, Tensor, float], Tensor]
"""An image, a point, the direction of steepest ascent there and a size to the next point."""


@guarded
def gama_pgd(
    model: Classifier,
    x: Tensor,
    y: Tensor,
    *,
    threat: Threat,
    steps: Count,
    weight: NonNegative = 50.0,
    ramp: Unit = 0.25,
    step: Positive = 2.0,
    drops: Sequence[Unit] = (0.60, 0.85),
    factor: Positive = 10.0,
    restarts: Count = 1,
    keep: Literal["last", "any"] = "last",
    generator: Generator | None = None,
) -> Tensor:
    """`steps` ascents of length `step` in units of eps, `factor` times shorter at each drop.

    `keep` and `restarts` as in `pgd`. Per run `steps` forward and backward passes, one forward
    pass if there is a choice to make, and one for p(x) in all.
    ValueError: a number outside of its range.
    """
    require("step", step, Range(0, open_low=True))
    return _climb(
        model,
        x,
        y,
        lambda x, x_adv, direction, size: pgd.step(x_adv, direction, size * threat.eps),
        threat=threat,
        sizes=_sizes(step, steps, drops, factor),
        weights=_weights(weight, steps, ramp),
        restarts=restarts,
        keep=keep,
        generator=generator,
    )


@guarded
def gama_fw(
    model: Classifier,
    x: Tensor,
    y: Tensor,
    *,
    threat: Threat,
    steps: Count,
    weight: NonNegative = 50.0,
    ramp: Unit = 0.25,
    gamma: Unit = 0.5,
    drops: Sequence[Unit] = (0.60, 0.85),
    factor: Positive = 5.0,
    restarts: Count = 1,
    keep: Literal["last", "any"] = "last",
    generator: Generator | None = None,
) -> Tensor:
    """`steps` moves by a share `gamma` to the ball's furthest point, `factor` times less at drops.

    The rest as `gama_pgd`. Where the gradient is 0 the furthest point is the image itself.
    """
    require("gamma", gamma, Range(0, 1))
    return _climb(
        model,
        x,
        y,
        lambda x, x_adv, direction, share: x_adv.lerp(pgd.step(x, direction, threat.eps), share),
        threat=threat,
        sizes=_sizes(gamma, steps, drops, factor),
        weights=_weights(weight, steps, ramp),
        restarts=restarts,
        keep=keep,
        generator=generator,
    )


def _sizes(size: float, steps: int, drops: Sequence[float], factor: float) -> list[float]:
    """The size of each step: `size`, divided by `factor` at each of the shares in `drops`."""
    require("steps", steps, Range(1))
    require("factor", factor, Range(0, open_low=True))
    for share in drops:
        require("drops", share, Range(0, 1))
    at = [round(share * steps) for share in drops]
    return [size / factor ** sum(drop <= i for drop in at) for i in range(steps)]


def _weights(weight: float, steps: int, ramp: float) -> list[float]:
    """lambda of each step: from `weight` in a line to 0 at the share `ramp` of the steps."""
    require("weight", weight, Range(0))
    require("ramp", ramp, Range(0, 1))
    return [weight * max(0.0, 1 - i / (ramp * steps)) if ramp else 0.0 for i in range(steps)]


def _climb(
    model: Classifier,
    x: Tensor,
    y: Tensor,
    move: Move,
    *,
    threat: Threat,
    sizes: list[float],
    weights: list[float],
    restarts: int,
    keep: Literal["last", "any"],
    generator: Generator | None,
) -> Tensor:
    """The runs of both. Points are compared by their margins, for the weight changes."""
    watched = Watched(model)
    with torch.no_grad():
        clean = _probabilities(model(x)) if weights[0] > 0 else None

    def draw() -> Tensor:
        return pgd.step(x, threat.steepest(normal(x, generator)), threat.eps)

    def runs(rows: Rows, starts: Iterable[Tensor], best: Best | None) -> Tensor:
        image, label, p = x[rows], y[rows], None if clean is None else clean[rows]
        project = threat.around(image)
        for start in starts:
            x_adv = project(start)
            for size, weight in zip(sizes, weights, strict=True):
                _, gradient = pgd.evaluate(_gain(watched, label, p, weight), x_adv)
                if best and keep == "any":
                    best.offer(x_adv, _margin(watched.logits, label), watched.logits)
                x_adv = project(move(image, x_adv, threat.steepest(gradient), size))
            if best:
                with torch.no_grad():
                    best.offer(x_adv, _margin(watched(x_adv), label), watched.logits)
        return x_adv

    return restarted(
        model, x, y, runs, draw, restarts=restarts, keep=keep, targeted=False, separate=True
    )


def _gain(model: Classifier, y: Tensor, clean: Tensor | None, weight: float) -> Gain:
    """The margin of probabilities, and `weight` times their squared distance from `clean`."""

    def gain(x_adv: Tensor) -> Tensor:
        p = _probabilities(model(x_adv))
        margin = functional.margin(p, y)
        if clean is None or not weight:
            return margin
        return margin + weight * (p - clean).square().sum(1)

    return gain


def _margin(logits: Tensor, y: Tensor) -> Tensor:
    return functional.margin(_probabilities(logits), y)


def _probabilities(logits: Tensor) -> Tensor:
    return logits.softmax(1, dtype=torch.promote_types(logits.dtype, torch.float32))

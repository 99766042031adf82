"""Fast adaptive boundary attack (Croce and Hein 2020, https://arxiv.org/abs/1907.02044, alg. 1).

Seeks the nearest point that fools. Each step takes the model as linear at the current point, where
another class draws level on a plane, and moves both that point and the image to the plane, inside
the box. The next point lies between the two and a little beyond; if it fools, it is drawn back
towards the image. ALPHA, OVERSHOOT and BACK are alpha_max, eta and beta in the paper.

FAB looks at the planes of all other classes in each step and takes the nearest. FAB-T (Croce and
Hein 2020, https://arxiv.org/abs/2003.01690) runs once per target class and looks at that plane
alone, for one backward pass a step instead of K - 1.

Differs: the authors' code judges a point only before it is drawn back; here also after, since its
logits are computed for the next step anyway. It takes all steps of a run, also once a point within
eps is known. It draws the starts of further runs on the surface of the ball of radius eps / 2,
here they lie anywhere in it. The paper ends with a search on the way to the image; neither does.
"""

from functools import partial
from math import inf
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from advtrain.attacks.guard import exact, guarded
from advtrain.attacks.pgd import require_gradient
from advtrain.attacks.survivors import (
    Found,
    Run,
    advance,
    fools,
    precise,
    require_rows_to_move,
    separable,
    until_fooled,
)
from advtrain.ranges import Count, Range, require
from advtrain.rows import per_image, select
from advtrain.types import Classifier, Threat

ALPHA, OVERSHOOT, BACK = 0.1, 1.05, 0.9
SHORTEST = 1e-8  # of a way to the plane, so that a point which lies on it divides by no zero


class State(NamedTuple):
    """A run for B examples. `x_adv` is the nearest point that fools, or the image before any."""

    x_adv: Tensor
    fooled: Tensor  # whether x_adv fools and is near enough, (B,)
    distance: Tensor  # of x_adv, infinite before any, (B,)
    point: Tensor
    away: Tensor  # the distance of `point`, (B,)
    x: Tensor
    y: Tensor
    rivals: Tensor  # the classes whose planes are looked at, (B, T)


@guarded
def fab(
    model: Classifier,
    x: Tensor,
    y: Tensor,
    *,
    threat: Threat,
    steps: Count,
    targets: Count | None = None,
    restarts: Count = 1,
    generator: Generator | None = None,
) -> Tensor:
    """The nearest point found to fool, where it lies in the set; images wrong already stay.

    `targets` None is FAB; a number is FAB-T against so many other classes of highest clean logit,
    K - 1 at most. `steps` for each target and restart; first runs set out from the image, and only
    further ones draw. An example is left alone once a point in the set fools it; one that stands
    gets the nearest point of its last run, projected to the set, or the image if there was none.
    In float32, also where the model computes in low precision otherwise.

    Passes: one forward for all, then per step 2 forward and 1 backward, K - 1 without targets.
    ValueError: steps, targets or restarts below 1.
    """
    fooled, runs, run = _runs(
        model,
        x,
        y,
        threat=threat,
        steps=steps,
        targets=targets,
        restarts=restarts,
        near=threat.eps,
        generator=generator,
    )
    return threat.project(until_fooled(x, fooled, runs, run), x)


@guarded
def closest(
    model: Classifier,
    x: Tensor,
    y: Tensor,
    *,
    threat: Threat,
    steps: Count,
    targets: Count | None = None,
    restarts: Count = 1,
    generator: Generator | None = None,
) -> Tensor:
    """The nearest point found to fool in all runs, at whatever distance from the image.

    In the box, not in the set: of `threat` the norm counts, and eps for the starts of restarts
    alone. Images that are wrong already, or that no point was found for, come back as they are.
    The rest as `fab`; no run ends early.
    """
    fooled, runs, run = _runs(
        model,
        x,
        y,
        threat=threat,
        steps=steps,
        targets=targets,
        restarts=restarts,
        near=inf,
        generator=generator,
    )
    x_adv, least = x.clone(), torch.full(y.shape, inf, device=x.device)
    standing = (~fooled).nonzero().squeeze(1)
    for number in range(runs if len(standing) else 0):
        found = run(standing, torch.full_like(standing, number))
        distance = threat.distance(found.x_adv, x[standing]).to(least.dtype)
        nearer = found.fooled & (distance < least[standing])
        x_adv[standing[nearer]] = found.x_adv[nearer]
        least[standing[nearer]] = distance[nearer]
    return x_adv


def _runs(
    model: Classifier,
    x: Tensor,
    y: Tensor,
    *,
    threat: Threat,
    steps: int,
    targets: int | None,
    restarts: int,
    near: float,
    generator: Generator | None,
) -> tuple[Tensor, int, Run]:
    """Which images are wrong already, (N,), how many runs the others get, and what a run does.

    A run takes an example for fooled at the distance `near` or less; if finite, it then ends there.
    """
    require_rows_to_move(model, "fab")
    require("steps", steps, Range(1))
    require("restarts", restarts, Range(1))
    if targets is not None:
        require("targets", targets, Range(1))
    logits = precise(model, x)
    rivals = _rivals(logits, y, targets)
    drawn = (threat.sample(x, generator) for _ in range(restarts - 1))
    starts = torch.stack([x, *(x.lerp(other, 0.5) for other in drawn)])
    step = partial(_step, model, threat=threat, near=near)
    drop = near < inf and separable(model)

    def run(index: Tensor, number: Tensor) -> Found:
        image, classes = x[index], rivals[index]
        if targets is not None:
            classes = classes.gather(1, (number // restarts).unsqueeze(1))
        point = starts[number % restarts, index]
        none, away = torch.zeros_like(index, dtype=torch.bool), threat.distance(point, image)
        far = torch.full_like(away, inf)
        state = State(image, none, far, point, away, image, y[index], classes)
        with exact(model):  # a rounded model's boundary is elsewhere
            return advance(model, state, steps, step, drop=drop)

    runs = restarts if targets is None else restarts * rivals.shape[1]
    return fools(logits, y), runs if rivals.shape[1] else 0, run


def _step(model: Classifier, state: State, _: int, *, threat: Threat, near: float) -> State:
    """One step of the algorithm; the drawn-back point of the step before is judged on the way."""
    x, point, y = state.x, state.point, state.y
    gap, w, logits = _plane(model, state, threat)
    state = _offer(state, point, state.away, fools(logits, y), near)
    cut = threat.reach(point, w, gap)
    home = threat.reach(x, w, gap + (point - x).mul_(w).flatten(1).sum(1))
    there = threat.distance(cut, point).clamp_(min=SHORTEST)
    here = threat.distance(home, x).clamp_(min=SHORTEST)
    alpha = (there / (there + here)).clamp_(max=ALPHA).to(x.dtype)
    beyond = torch.lerp(point, cut, OVERSHOOT, out=cut)
    beyond.lerp_(torch.lerp(x, home, OVERSHOOT, out=home), per_image(alpha, x))
    beyond.clamp_(threat.low, threat.high)
    with torch.no_grad():
        hits = fools(model(beyond), y)
    share, away = torch.ones_like(alpha).masked_fill(hits, BACK), threat.distance(beyond, x)
    state = _offer(state, beyond, away, hits, near)
    return state._replace(point=x.lerp(beyond, per_image(share, x)), away=away * share)


def _offer(state: State, point: Tensor, away: Tensor, hits: Tensor, near: float) -> State:
    """With `point`, so far `away`, for x_adv where it fools and is nearer."""
    nearer = hits & (away < state.distance)
    return state._replace(
        x_adv=select(nearer, point, state.x_adv),
        fooled=state.fooled | (nearer & (away <= near)),
        distance=away.where(nearer, state.distance),
    )


def _plane(model: Classifier, state: State, threat: Threat) -> tuple[Tensor, Tensor, Tensor]:
    """The nearest plane <w, . - point> = gap on which a rival draws level: gap, w and the logits.

    Distances to planes leave the box aside. Where no rival has a gradient, w is 0.
    """
    leaf, y = state.point.detach().requires_grad_(), state.y.unsqueeze(1)
    logits = model(leaf)
    require_gradient(logits)
    wide = logits.detach().to(torch.promote_types(logits.dtype, torch.float32))
    leads = (wide.gather(1, y) - wide.gather(1, state.rivals)).unbind(1)

    def normal(i: int) -> Tensor:
        against = torch.zeros_like(logits).scatter_(1, state.rivals[:, i : i + 1], 1.0)
        against = against.scatter_(1, y, -1.0)
        (found,) = torch.autograd.grad(logits, leaf, against, retain_graph=i + 1 < len(leads))
        return found.nan_to_num(0.0, 0.0, 0.0)

    def distance(lead: Tensor, w: Tensor) -> Tensor:
        away = lead.abs() / (w * threat.steepest(w)).flatten(1).sum(1)
        return away.nan_to_num_(nan=inf, posinf=inf)

    gap, w = leads[0], normal(0)
    least = distance(gap, w) if len(leads) > 1 else gap
    for i, lead in enumerate(leads[1:], 1):
        other = normal(i)
        away = distance(lead, other)
        nearer = away < least
        w, gap = select(nearer, other, w), lead.where(nearer, gap)
        least = away.where(nearer, least)
    return gap, w, logits.detach()


def _rivals(logits: Tensor, y: Tensor, count: int | None) -> Tensor:
    """The `count` other classes of highest logit, or all others, highest first: (N, T)."""
    others = logits.shape[1] - 1
    among = logits.scatter(1, y.unsqueeze(1), -inf)
    return among.topk(others if count is None else min(count, others), dim=1).indices

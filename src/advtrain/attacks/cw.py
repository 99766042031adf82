"""Carlini and Wagner's l2 attack (2017, https://arxiv.org/abs/1608.04644, section VI.A).

Looks for the closest adversarial example: minimises |x_adv - x|^2 + c max(confidence - margin, 0)
by Adam over w, where x_adv = (tanh w + 1) / 2, so that every w is an image. c is searched for each
example: ten times more until an example falls, then halfway between the largest c that failed and
the smallest that did not. Each search begins anew at x. confidence is kappa in the paper.

Images are shrunk by 1e-6 before w is taken, as the authors do, so that pixels of exactly 0 and 1
have a finite w and can move: slowly, a few hundred steps of 0.01 until the change shows.

Differs: no search is aborted, where the authors stop one when the loss of the whole batch stops
falling, which makes a result depend on its neighbours. The point where all searches begin is
evaluated once. From ten searches on, the authors repeat the smallest c that succeeded at the end;
with the same start and no noise that finds the same points, so it is left out.
"""

from typing import NamedTuple

import torch
from torch import Generator, Tensor

from advtrain.attacks.best import Watched
from advtrain.attacks.guard import exact, guarded
from advtrain.attacks.objectives import margin
from advtrain.attacks.objectives import targeted as descending
from advtrain.attacks.pgd import evaluate
from advtrain.ranges import Count, NonNegative, Positive, Range, require
from advtrain.rows import per_image, select
from advtrain.types import Classifier, Threat

SHRINK = 1 - 1e-6
LARGEST_CONST = 1e10


@guarded
def cw(
    model: Classifier,
    x: Tensor,
    y: Tensor,
    *,
    threat: Threat,
    steps: Count,
    confidence: NonNegative = 0.0,
    binary_search_steps: Count = 9,
    lr: Positive = 0.01,
    initial_const: Positive = 1e-3,
    targeted: bool = False,
    generator: Generator | None = None,
) -> Tensor:
    """`closest`, and where that is further away than eps, its projection to the set.

    Draws nothing. ValueError: a threat of another norm than l2, or with another box than [0, 1],
    and as `closest`.
    """
    if threat.norm != "l2":
        raise ValueError(
            f"cw looks for the closest point in l2, and the threat is {threat.norm}. Use an l2 "
            "threat; or pgd with objective margin (attack=cw_pgd), the CW loss for other norms."
        )
    box = getattr(threat, "low", 0.0), getattr(threat, "high", 1.0)
    if box != (0, 1):
        raise ValueError(
            f"the box of the threat is [{box[0]:g}, {box[1]:g}]; cw keeps images in [0, 1] by a "
            "change of variables. Leave low and high out."
        )
    found = closest(
        model,
        x,
        y,
        steps=steps,
        confidence=confidence,
        binary_search_steps=binary_search_steps,
        lr=lr,
        initial_const=initial_const,
        targeted=targeted,
    )
    return threat.project(found, x)


@guarded
def closest(
    model: Classifier,
    x: Tensor,
    y: Tensor,
    *,
    steps: Count,
    confidence: NonNegative = 0.0,
    binary_search_steps: Count = 9,
    lr: Positive = 0.01,
    initial_const: Positive = 1e-3,
    targeted: bool = False,
    generator: Generator | None = None,
) -> Tensor:
    """Of all points that fool the model, by a margin over `confidence`, the one nearest to x in l2.

    No bound on the distance: an example that no point fooled is returned as it was, so take mean
    distances over those that the model gets wrong. In float32, also where the model computes in
    low precision otherwise: the points lie on its boundary. One forward and backward pass, and
    for each of `binary_search_steps` searches `steps` forward and `steps` - 1 backward passes.
    ValueError: a number outside of its range.
    """
    require("steps", steps, Range(1))
    require("confidence", confidence, Range(0))
    require("binary_search_steps", binary_search_steps, Range(1))
    require("lr", lr, Range(0, open_low=True))
    require("initial_const", initial_const, Range(0, open_low=True))
    with exact(model):  # a rounded model's boundary is elsewhere
        seen = Seen(model, x.clamp(0, 1), y, confidence=confidence, targeted=targeted)
        first = seen.look(seen.x)
        const = torch.full_like(seen.distance, initial_const)
        failed, succeeded = torch.zeros_like(const), torch.full_like(const, torch.inf)
        for _ in range(binary_search_steps):
            hit = _descend(seen, first, const, steps=steps, lr=lr)
            failed, succeeded = torch.where(hit, failed, const), torch.where(hit, const, succeeded)
            middle, larger = (failed + succeeded) / 2, (10 * const).clamp(max=LARGEST_CONST)
            const = torch.where(torch.isfinite(succeeded), middle, larger)
    return seen.nearest


class Look(NamedTuple):
    """Whether a point fools the model, (B,), and where its margin rises: 0 where that suffices."""

    fools: Tensor
    rise: Tensor


class Seen:
    """A model around images `x`, and per example the nearest point so far that fools it."""

    def __init__(
        self, model: Classifier, x: Tensor, y: Tensor, *, confidence: float, targeted: bool
    ) -> None:
        self.watched = Watched(model)
        self.gain = (descending(margin) if targeted else margin)(self.watched, x, y)
        self.confidence = confidence
        self.x = x
        self.nearest = x
        self.distance = torch.full(x.shape[:1], torch.inf, device=x.device)  # squared

    def look(self, x_adv: Tensor) -> Look:
        value, gradient = evaluate(self.gain, x_adv)
        wanting = per_image(value <= self.confidence, x_adv)
        return Look(self._take(x_adv, value), gradient.where(wanting, 0.0))

    @torch.no_grad()
    def glance(self, x_adv: Tensor) -> Tensor:
        """Whether `x_adv` fools, (B,), without a backward pass."""
        return self._take(x_adv, self.gain(x_adv))

    def _take(self, x_adv: Tensor, value: Tensor) -> Tensor:
        fools = (value > self.confidence) & torch.isfinite(self.watched.logits).all(1)
        distance = (_wide(x_adv) - _wide(self.x)).flatten(1).square().sum(1)
        nearer = fools & (distance < self.distance)
        self.nearest = select(nearer, x_adv, self.nearest)
        self.distance = torch.where(nearer, distance, self.distance)
        return fools


def _descend(seen: Seen, first: Look, const: Tensor, *, steps: int, lr: float) -> Tensor:
    """Show `seen` the points of a descent with this c (B,); whether one of them fooled, (B,)."""
    x = seen.x
    weight = per_image(const, x)
    w = (2 * _wide(x) - 1).mul_(SHRINK).atanh_()
    centre = image = _pixels(w)
    adam, hit, rise = Adam(w, lr), first.fools, first.rise
    for i in range(steps):
        downhill = (2 * (image - centre) - weight * rise).nan_to_num_(0.0, 0.0, 0.0)
        w = w + adam.step(downhill * 2 * image * (1 - image))  # d image / d w
        image = _pixels(w)
        x_adv = image.to(x.dtype)
        if i + 1 < steps:
            fools, rise = seen.look(x_adv)
        else:
            fools = seen.glance(x_adv)
        hit = hit | fools
    return hit


class Adam:
    """Adam (Kingma and Ba 2015, https://arxiv.org/abs/1412.6980, algorithm 1) from zero moments."""

    def __init__(self, like: Tensor, lr: float) -> None:
        self.lr = lr
        self.taken = 0
        self.mean = torch.zeros_like(like)
        self.square = torch.zeros_like(like)

    def step(self, gradient: Tensor) -> Tensor:
        """What to add to the variable whose gradient this is."""
        self.taken += 1
        self.mean.lerp_(gradient, 0.1)
        self.square.lerp_(gradient.square(), 0.001)
        scale = (self.square / (1 - 0.999**self.taken)).sqrt_().add_(1e-8)
        return (self.mean / scale).mul_(-self.lr / (1 - 0.9**self.taken))


def _pixels(w: Tensor) -> Tensor:
    return w.tanh().add_(1).div_(2)


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))

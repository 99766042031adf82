"""What gradients show on a few images: signs that an attack by gradients stops short of the worst.

Athalye et al. 2018 (https://arxiv.org/abs/1802.00420), Carlini et al. 2019
(https://arxiv.org/abs/1902.06705) and Pintor et al. 2022 (https://arxiv.org/abs/2106.09947) say how
masked gradients betray themselves: they are zero, or an attack by them fails without a bound, gets
weaker in a larger set or with more steps, depends on the scale of the logits or on the length of a
step. Kim et al. 2021 (https://arxiv.org/abs/2010.01799): a network that collapsed in single-step
training is right at the end of the step and wrong on the way.

All is measured on images that the network gets right, with 121 forward and backward passes of these
and 10 forward ones. The bounds leave room for what honest networks show, see `tolerance`.

Differs: Pintor et al. compare losses along the path of one attack; here verdicts of several.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import inf
from typing import Any

import torch
from torch import Generator, Tensor

from advtrain.functional import cross_entropy, margin
from advtrain.threat import Linf
from advtrain.tolerance import INSIDE, OVERSTATED, UNLIKELY, UNSTABLE, clearly, has_collapsed
from advtrain.types import Classifier, Threat

FEW, MANY = 10, 50  # steps of length eps / 4: of the usual run, and of one that goes on
FREE = [0.25] * 20  # steps in the whole box
FALLING = [2 - 0.1 * i for i in range(20)]  # steps from 2 eps to a tenth of eps
RANGE = 10.0  # from the smallest to the largest logit, where all are brought to one scale
INNER = (0.25, 0.5, 0.75)  # points on the way of a single step

Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Slopes:
    """A network around images `x` (N, ...) that it gets right, with labels `y` (N,); N >= 1.

    `steady`: it draws no random numbers, so that the worst of several looks is no luck.
    """

    model: Classifier
    x: Tensor
    y: Tensor
    threat: Threat
    steady: bool
    generator: Generator | None

    @cached_property
    def gradients(self) -> tuple[Tensor, Tensor]:
        """Of cross-entropy and of the margin at the images, (N, ...) each."""
        leaf = self.x.detach().requires_grad_()
        logits = self.model(leaf)
        (first,) = torch.autograd.grad(cross_entropy(logits, self.y).sum(), leaf, retain_graph=True)
        (second,) = torch.autograd.grad(margin(logits, self.y).sum(), leaf)
        return first, second

    @cached_property
    def single(self) -> list[Tensor]:
        """Who stands at the points INNER of a single step of length eps, and at its end."""
        direction = self.threat.steepest(self.gradients[0]) * self.threat.eps
        project = self.threat.around(self.x)
        return [self.look(project(self.x + share * direction)) for share in (*INNER, 1.0)]

    @cached_property
    def usual(self) -> Tensor:
        """Who stands along a run of MANY steps; the first FEW are a run of their own."""
        return self.run(self.threat, [self.threat.eps / 4] * MANY)

    def run(self, room: Threat, sizes: Sequence[float], loss: Loss = cross_entropy) -> Tensor:
        """Who stands at each point of an ascent within `room`: (len(sizes) + 1, N).

        It starts from a random point of the threat. Logits that are not finite fool nobody.
        """
        project, standing = room.around(self.x), []
        x_adv = project(self.threat.sample(self.x, self.generator))
        for size in sizes:
            leaf = x_adv.detach().requires_grad_()
            logits = self.model(leaf)
            standing.append(stand(logits.detach(), self.y))
            (gradient,) = torch.autograd.grad(loss(logits, self.y).sum(), leaf)
            x_adv = project(torch.add(x_adv, room.steepest(gradient), alpha=size))
        return torch.stack([*standing, self.look(x_adv)])

    def look(self, x_adv: Tensor) -> Tensor:
        """Who stands at `x_adv`, (N,)."""
        with torch.no_grad():
            return stand(self.model(x_adv), self.y)


def signs(slopes: Slopes) -> Iterator[tuple[str, str]]:
    """Names of the checks that find something, and what each says."""
    for check in CHECKS:
        message = check(slopes)
        if message is not None:
            yield check.__name__, message


def zero_gradient(slopes: Slopes) -> str | None:
    n = len(slopes.x)
    dead, flat = (unusable(gradient) for gradient in slopes.gradients)
    lost = int(dead.sum())
    if lost <= max(1, 0.02 * n):
        return None
    said = f"The gradient of cross-entropy is zero or not finite on {lost} of {n} images"
    if 2 * int((dead & flat).sum()) > lost:
        return (
            f"{said}, and that of the margin too: something on the way to the logits has no "
            "derivative, as rounding or units that are all off, so attacks by gradients stand "
            "still. Attack a version that has one in its place (BPDA), and judge by square."
        )
    return (
        f"{said}, that of the margin is not: logits are so far apart that cross-entropy saturates, "
        "and attacks that ascend it stand still. Judge by the margin, or by autoattack."
    )


def loss_dependent(slopes: Slopes) -> str | None:
    n, usual = len(slopes.x), slopes.usual[FEW]
    other = slopes.run(slopes.threat, [slopes.threat.eps / 4] * FEW, rescaled)[-1]
    if not clearly(*between(usual, other), n, OVERSTATED):
        return None
    return (
        f"PGD-{FEW} leaves {int(usual.sum())} of {n} images standing, and {int(other.sum())} where "
        f"logits are brought to a range of {RANGE:g} first: their scale hides gradients from "
        "cross-entropy. Judge by the margin, dlr or autoattack, which no scale concerns."
    )


def step_dependent(slopes: Slopes) -> str | None:
    n, usual = len(slopes.x), slopes.usual[FEW]
    if not slopes.steady:
        return None
    other = slopes.run(slopes.threat, [slopes.threat.eps * share for share in FALLING]).all(0)
    if not clearly(*between(usual, other), n, UNSTABLE):
        return None
    return (
        f"PGD-{FEW} leaves {int(usual.sum())} of {n} images standing, and {int(other.sum())} with "
        f"{len(FALLING)} steps that begin at twice eps: the loss is rugged, and steps of a usual "
        "length get caught in it. Judge by autoattack, whose steps adapt."
    )


def larger_eps(slopes: Slopes) -> str | None:
    n, smaller = len(slopes.x), None
    for share in (0.5, 1.0, 2.0):
        room = scaled(slopes.threat, share)
        run = slopes.usual if share == 1 else slopes.run(room, [room.eps / 4] * FEW)
        if smaller is not None and clearly(*between(run[FEW], smaller), n, UNLIKELY):
            return (
                f"PGD-{FEW} leaves {int(run[FEW].sum())} of {n} images standing within "
                f"{room.eps:.4g}, and {int(smaller.sum())} within half of that: a larger set "
                "cannot be safer. Gradients lead astray; judge by square and transfer."
            )
        smaller = run[FEW]
    return None


def more_steps(slopes: Slopes) -> str | None:
    n, few, many = len(slopes.x), slopes.usual[FEW], slopes.usual[MANY]
    if not clearly(*between(many, few), n, UNLIKELY):
        return None
    return (
        f"{int(few.sum())} of {n} images stand after {FEW} steps of PGD, and {int(many.sum())} "
        f"after {MANY}: more steps lead away, as on masked gradients. Keep the first point that "
        "fools, and judge by autoattack."
    )


def unbounded(slopes: Slopes) -> str | None:
    n, box = len(slopes.x), Linf(1.0, slopes.threat.low, slopes.threat.high)
    standing = int(slopes.run(box, FREE).all(0).sum())
    alike = int(slopes.y.bincount().max()) / n  # stand by right where all images become the same
    if not clearly(standing, 0, n, alike):
        return None
    return (
        f"{standing} of {n} images stand against {len(FREE)} steps that may change every pixel at "
        "will, where none can: gradients lead nowhere, and rows of attacks that follow them say "
        "too much. Judge by square and transfer."
    )


def collapsed(slopes: Slopes) -> str | None:
    n, one, many = len(slopes.x), int(slopes.single[-1].sum()), int(slopes.usual[FEW].sum())
    if not has_collapsed(one, many, n):
        return None
    return (
        f"Of {n} images {one} stand against one step of length eps, and {many} against {FEW} "
        "smaller ones: single-step training has collapsed. Believe rows of several steps only."
    )


def distorted(slopes: Slopes) -> str | None:
    *inner, end = slopes.single
    n, right = len(slopes.x), int(end.sum())
    hidden = int((end & ~torch.stack(inner).all(0)).sum())
    if right < n / 2 or not clearly(hidden, 0, right, INSIDE):
        return None
    return (
        f"Of {right} images that stand at the end of one step of length eps {hidden} have fallen "
        "within it: the network has learned that step alone, as single-step training does when it "
        "collapses. Believe rows of several steps only."
    )


CHECKS = (
    zero_gradient,
    loss_dependent,
    step_dependent,
    larger_eps,
    more_steps,
    unbounded,
    collapsed,
    distorted,
)


def between(first: Tensor, second: Tensor) -> tuple[int, int]:
    """How many stand in `first` alone, and how many in `second` alone."""
    return int((first & ~second).sum()), int((second & ~first).sum())


def stand(logits: Tensor, y: Tensor) -> Tensor:
    return (logits.argmax(1) == y) | ~torch.isfinite(logits).all(1)


def unusable(gradient: Tensor) -> Tensor:
    flat = gradient.flatten(1)
    return (flat == 0).all(1) | ~torch.isfinite(flat).all(1)


def scaled(threat: Any, share: float) -> Threat:
    """The same set with `share` of its radius, or the largest there is."""
    largest = getattr(threat, "largest", inf)
    changed: Threat = replace(threat, eps=min(share * threat.eps, largest))
    return changed


def rescaled(logits: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy of logits that are brought to one range, example by example."""
    spread = (logits.amax(1) - logits.amin(1)).detach().clamp_min(torch.finfo(logits.dtype).tiny)
    return cross_entropy(logits * (RANGE / spread).unsqueeze(1), y)

"""Auto-PGD: gradient ascent that chooses its step sizes itself (Croce and Hein 2020,
https://arxiv.org/abs/2003.01690, algorithm 1; for l1 Croce and Hein 2021,
https://arxiv.org/abs/2103.01208).

A run sets out at the surface of the ball and ends in small steps around the best point found; see
`apgd_rules` for how. loss `ce` is cross-entropy, `dlr` eq. 6 of the first paper, `dlr_targeted`
eq. 7: one run against each of the `targets` classes that the model likes next best at the clean
image. A run for one class that leads to any wrong class has succeeded.

Differs: the authors return the last point that fools, and the clean image where none does; here it
is the first that fools, in low precision the one of highest loss among them, since not all may fool
in float32; and where none does the point of highest loss, which serves transfer. Noise belongs to
an example and a run, whoever else stands. No gradient is taken at the last point of a run. A loss
that is not finite is below all others, and logits that are not finite fool nobody.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Generator, Tensor

from advtrain import functional
from advtrain.attacks.apgd_rules import Halving, Project, Rule, Sparse, State
from advtrain.attacks.best import Watched
from advtrain.attacks.guard import guarded, modules_of
from advtrain.attacks.pgd import evaluate
from advtrain.attacks.survivors import (
    Found,
    Noise,
    advance,
    fools,
    precise,
    require_rows_to_move,
    separable,
    until_fooled,
)
from advtrain.precision import is_low
from advtrain.ranges import Count, Range, require
from advtrain.rows import per_image, select
from advtrain.threat import L1
from advtrain.types import Classifier, Gain, Threat

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Logits, labels and target classes to what a run ascends, (B,)."""

LOSSES: Mapping[str, Loss] = {
    "ce": lambda logits, y, target: functional.cross_entropy(logits, y),
    "dlr": lambda logits, y, target: functional.dlr(logits, y),
    "dlr_targeted": functional.dlr_targeted,
}
CLASSES = {"ce": 1, "dlr": 3, "dlr_targeted": 4}  # that a loss needs


@guarded
def apgd(
    model: Classifier,
    x: Tensor,
    y: Tensor,
    *,
    threat: Threat,
    steps: Count,
    loss: Literal["ce", "dlr", "dlr_targeted"] = "ce",
    restarts: Count = 1,
    targets: Count = 9,
    eot: Count = 1,
    warm_up: bool = False,
    generator: Generator | None = None,
) -> Tensor:
    """Per example the first point that fools the model, else that of highest loss in its last run.

    Examples that the model gets wrong already stay as they are. Runs are `restarts`, for
    `dlr_targeted` as many for each of the `targets` classes (at most K - 1); each is for the
    examples that still stand, and costs them steps + 1 forward and `steps` backward passes.
    eot: gradients are the mean over so many draws of a stochastic model, while the loss and the
    verdict are those of the last draw alone, as in AutoAttack. warm_up (l1): 30 % of the steps in
    the ball of 3 eps, 30 % in that of 2 eps, the rest in the threat's, each from the best point so
    far. ValueError: a count below 1, too few classes for the loss, warm_up without an l1 threat.
    """
    counts = {"steps": steps, "restarts": restarts, "targets": targets, "eot": eot}
    for name, count in counts.items():
        require(name, count, Range(1))
    if loss not in LOSSES:
        raise ValueError(f"loss is {loss!r}; allowed are {', '.join(LOSSES)}.")
    require_rows_to_move(model, "apgd")
    phases = _phases(threat, steps, warm_up)
    clean = precise(model, x)
    classes = clean.shape[1]
    if classes < CLASSES[loss]:
        fitting = " or ".join(name for name in LOSSES if CLASSES[name] <= classes)
        raise ValueError(
            f"loss is {loss!r} and the model returns {classes} logits; it needs at least "
            f"{CLASSES[loss]}. Use loss={fitting}."
        )
    ranked = clean.scatter(1, y.unsqueeze(1), torch.inf).argsort(1, descending=True)
    noise = Noise(x, lambda: phases[0].noise(x, generator))
    drop = eot == 1 and separable(model)

    def run(index: Tensor, number: Tensor) -> Found:
        rows, labels = x[index], y[index]
        target = ranked[index, number // restarts + 1] if loss == "dlr_targeted" else labels
        point = phases[0].start(rows, noise(index, number))
        for rule in phases:
            judged = rule is phases[-1]
            climb = _Climb(model, rule, LOSSES[loss], eot=eot, judged=judged)
            state = climb.begin(rows, labels, target, point, warm=warm_up)
            found = advance(model, state, rule.steps, climb.step, drop=drop and judged)
            point = found.x_adv
        return found

    runs = restarts * (min(targets, classes - 1) if loss == "dlr_targeted" else 1)
    return until_fooled(x.clone(), fools(clean, y), runs, run)


def _phases(threat: Threat, steps: int, warm_up: bool) -> list[Rule]:
    """The rule of each part of a run; the last searches the set itself."""
    if not isinstance(threat, L1):
        if warm_up:
            raise ValueError(
                f"warm_up is true and the threat is {threat.norm}; larger balls first are for l1. "
                "Leave it out."
            )
        return [Halving(threat, steps)]
    early = 3 * steps // 10 if warm_up else 0
    parts = ((3, early), (2, early), (1, steps - 2 * early))
    return [
        Sparse(replace(threat, eps=min(radius * threat.eps, threat.largest)), count)
        for radius, count in parts
        if count
    ]


class _Climb:
    """The steps of a run under one rule. `judged` says whether a point that fools counts."""

    def __init__(
        self, model: Classifier, rule: Rule, loss: Loss, *, eot: int, judged: bool
    ) -> None:
        self.model = Watched(model)
        self.rounding = any(is_low(module) for module in modules_of(model))
        self.rule = rule
        self.loss = loss
        self.eot = eot
        self.judged = judged
        self.bound: tuple[Tensor, Project] | None = None

    def begin(
        self, x: Tensor, y: Tensor, target: Tensor, start: Tensor, *, warm: bool
    ) -> State[Any]:
        point = self._project(x)(start)
        value, gradient = self._evaluate(point, y, target)
        state: State[Any] = State(
            x=x,
            y=y,
            target=target,
            point=point,
            gradient=gradient,
            size=per_image(x.new_full((len(x),), self.rule.first), x),
            x_adv=point,
            best_gradient=gradient,
            peak=value,
            fooled=self._hits(y),
            memory=None,
        )
        return state._replace(memory=self.rule.begin(state, warm=warm))

    def step(self, state: State[Any], done: int) -> State[Any]:
        """The move after `done` others. The last point needs no gradient."""
        point = self.rule.move(state, self._project(state.x), done)
        done += 1
        last = done == self.rule.steps
        if last:
            value, gradient = self._value(point, state.y, state.target), state.gradient
        else:
            value, gradient = self._evaluate(point, state.y, state.target)
        hits, memory = self._hits(state.y), self.rule.note(state, value)
        higher = value > state.peak
        better = ~state.fooled & (hits | higher)
        if self.rounding:
            better |= hits & higher
        state = state._replace(
            point=point,
            gradient=gradient,
            x_adv=select(better, point, state.x_adv),
            best_gradient=select(better, gradient, state.best_gradient),
            peak=value.where(better, state.peak),
            fooled=state.fooled | hits,
            memory=memory,
        )
        if last or done not in self.rule.reviews:
            return state
        return self.rule.review(state, done)

    def _project(self, x: Tensor) -> Project:
        """Into the set around `x`; bounds are computed anew once rows have been left out."""
        if self.bound is None or self.bound[0] is not x:
            self.bound = x, self.rule.threat.around(x)
        return self.bound[1]

    def _gain(self, y: Tensor, target: Tensor) -> Gain:
        return lambda x_adv: self.loss(self.model(x_adv), y, target)

    def _evaluate(self, point: Tensor, y: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        gain = self._gain(y, target)
        value, gradient = evaluate(gain, point)
        for _ in range(self.eot - 1):
            value, another = evaluate(gain, point)
            gradient = gradient + another
        mean = gradient / self.eot if self.eot > 1 else gradient
        return _finite(value), mean.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)

    def _value(self, point: Tensor, y: Tensor, target: Tensor) -> Tensor:
        with torch.no_grad():
            return _finite(self._gain(y, target)(point))

    def _hits(self, y: Tensor) -> Tensor:
        """Whether the point of the last call fools the model, as far as that counts, (B,)."""
        hits = fools(self.model.logits, y)
        return hits if self.judged else torch.zeros_like(hits)


def _finite(value: Tensor) -> Tensor:
    return value.nan_to_num(nan=-torch.inf, posinf=-torch.inf, neginf=-torch.inf)

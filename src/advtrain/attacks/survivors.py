"""Work on examples that stand, and on no others: between the runs of an attack, and inside one.

A run is one restart, or one target class, of an attack. In evaluation mode examples do not depend
on each other, so leaving one out changes no other's fate; where a module is in training mode it
may, and nobody is left out inside a run.
"""

from collections.abc import Callable
from functools import partial
from math import inf
from typing import NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor, nn

from advtrain.attacks.guard import exact, modules_of
from advtrain.conditions import Condition
from advtrain.precision import is_low
from advtrain.rows import per_image
from advtrain.types import Classifier

EVERY = 10  # steps between two looks at who has fallen; each look waits for the device
WORTH = 8  # repack once at least one row in so many has fallen


class Found(NamedTuple):
    """What a run proposes, (B, ...), and whether that fools the model, (B,)."""

    x_adv: Tensor
    fooled: Tensor


class Rated(NamedTuple):
    """The same, and how good a proposal is that does not fool, (B,): the higher the better."""

    x_adv: Tensor
    fooled: Tensor
    gain: Tensor


class State(Protocol):
    """A NamedTuple of tensors with one row per example; three of them are read here."""

    @property
    def y(self) -> Tensor:
        """The labels to leave, (B,)."""

    @property
    def x_adv(self) -> Tensor:
        """The proposal so far: a point that fools, if there was one."""

    @property
    def fooled(self) -> Tensor:
        """Whether the proposal fools, (B,)."""


S = TypeVar("S", bound=State)
Run = Callable[[Tensor, Tensor], Found]
"""Takes indices of examples (B,) and the number of the run for each of them (B,)."""
RatedRun = Callable[[Tensor, Tensor], Rated]


def until_fooled(x: Tensor, fooled: Tensor, runs: int, run: Run) -> Tensor:
    """`runs` runs for each of the examples `x` (N, ...), until one fools it: x_adv, (N, ...).

    Examples already `fooled` (N,) are returned as they are. A batch of `run` holds at most N
    rows, those of the first run in front; when few stand, several runs of an example share a
    batch. Of the points that fool the first is kept; an example that stands keeps its last.
    """
    return until_fooled_or_best(
        x, fooled, runs, lambda index, number: Rated(*run(index, number), number.float())
    )


def until_fooled_or_best(x: Tensor, fooled: Tensor, runs: int, run: RatedRun) -> Tensor:
    """As `until_fooled`, but an example that stands keeps the first of its points of highest gain.

    A gain of -inf or NaN is below all others, and below that of the example as it is.
    """
    size, kept = len(x), Rated(x, fooled, torch.full(fooled.shape, -inf, device=x.device))
    waiting = torch.arange(runs * size, device=x.device)
    while len(waiting):
        waiting = waiting[~kept.fooled[waiting % size]]
        batch, waiting = waiting[:size], waiting[size:]
        if len(batch):
            kept = _keep(kept, batch % size, run(batch % size, batch // size))
    return kept.x_adv


def _keep(kept: Rated, index: Tensor, found: Rated) -> Rated:
    """The choice for all examples, after rows of the examples `index` were tried."""
    gain = found.gain.nan_to_num(nan=-inf, neginf=-inf).where(~found.fooled, inf)  # inf: it fools
    highest = torch.full_like(kept.gain, -inf, dtype=gain.dtype)
    highest = highest.scatter_reduce(0, index, gain, "amax")
    rows = torch.arange(len(index), device=index.device).where(gain == highest[index], len(index))
    first = torch.full_like(kept.fooled, len(index) - 1, dtype=torch.int64)
    first = first.scatter_reduce(0, index, rows, "amin")
    better = highest > kept.gain
    x_adv = found.x_adv[first].where(per_image(better, kept.x_adv), kept.x_adv)
    return Rated(x_adv, kept.fooled | (highest == inf), highest.where(better, kept.gain))


class Noise:
    """What is drawn for an example and a run: the same whoever else takes part; runs in order.

    `draw` draws for all the examples `x` (N, ...).
    """

    def __init__(self, x: Tensor, draw: Callable[[], Tensor]) -> None:
        self.draw = draw
        self.drawn = 0
        self.latest = x

    def __call__(self, index: Tensor, number: Tensor) -> Tensor:
        rows = torch.empty_like(self.latest[index])
        for run in number.unique().tolist():
            self.draw_until(run + 1)
            rows = torch.where(per_image(number == run, rows), self.latest[index], rows)
        return rows

    def draw_until(self, runs: int) -> None:
        """Have the draws for so many runs behind."""
        while self.drawn < runs:
            self.latest, self.drawn = self.draw(), self.drawn + 1


def advance(
    model: Classifier, state: S, steps: int, step: Callable[[S, int], S], *, drop: bool
) -> Found:
    """`steps` times `step(state, i)`; with `drop`, rows that fell are left out after a while.

    A step must let a row whose `fooled` was taken back find another point.
    """
    rows = torch.arange(len(state.fooled), device=state.fooled.device)
    x_adv, fooled = torch.empty_like(state.x_adv), torch.zeros_like(state.fooled)
    for i in range(steps):
        state = step(state, i)
        if drop and (i + 1) % EVERY == 0 and i + 1 < steps:
            state = confirmed(model, state)
            standing = (~state.fooled).nonzero().squeeze(1)
            if len(standing) * WORTH <= len(rows) * (WORTH - 1):
                x_adv[rows], fooled[rows] = state.x_adv, state.fooled
                rows, state = rows[standing], take(state, standing)
                if not len(rows):
                    break
    state = confirmed(model, state)
    x_adv[rows], fooled[rows] = state.x_adv, state.fooled
    return Found(x_adv, fooled)


def confirmed(model: Classifier, state: S) -> S:
    """`state` with `fooled` only where the proposal fools `model` in float32."""
    if not len(state.fooled) or not any(is_low(module) for module in modules_of(model)):
        return state
    hits = state.fooled.nonzero().squeeze(1)
    fooled = state.fooled.clone()
    if len(hits):
        fooled[hits] = fools(precise(model, state.x_adv[hits]), state.y[hits])
    return state._replace(fooled=fooled)  # type: ignore[attr-defined]


def precise(model: Classifier, x: Tensor) -> Tensor:
    """The logits of `model` in float32, whatever it computes in, without a graph."""
    with torch.no_grad(), exact(model):
        return model(x)


def fools(logits: Tensor, y: Tensor) -> Tensor:
    """Which rows of `logits` (B, K) name another class than `y` (B,); (B,).

    Logits that are not finite fool nobody.
    """
    return (logits.argmax(1) != y) & torch.isfinite(logits).all(1)


def take(state: S, rows: Tensor) -> S:
    """The state of some of its rows."""
    return type(state)._make(part[rows] for part in state)  # type: ignore[attr-defined]


def placed(model: Classifier) -> bool:
    """Whether `model` is told a lambda for each row of a batch, so that rows keep their places."""
    inner: object = model
    while not isinstance(inner, nn.Module | partial) and hasattr(inner, "model"):
        inner = inner.model
    given = (*inner.args, *inner.keywords.values()) if isinstance(inner, partial) else ()
    return any(isinstance(each, Condition) for each in given)


def require_rows_to_move(model: Classifier, attack: str) -> None:
    """ValueError: `attack` leaves rows out and packs them anew, which the model does not allow."""
    if placed(model):
        raise ValueError(
            f"{attack} leaves out examples that fell, and the network is told a lambda for each "
            "row of the batch. Use pgd, mim or fgsm, or a view at one lambda."
        )


def separable(model: Classifier) -> bool:
    """Whether no module that `model` is known to run is in training mode."""
    return not any(part.training for module in modules_of(model) for part in module.modules())

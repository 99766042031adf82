"""Square attack (Andriushchenko et al. 2020, https://arxiv.org/abs/1912.00049, alg. 1 to 3).

A random search that reads logits alone, so it finds what masked gradients hide. A query changes
a square of the perturbation, and examples keep the change if it raises their margin. The share of
pixels in the square, p, falls with the number of queries by the paper's table for 10,000 of them,
stretched to `queries` as in the paper; AutoAttack leaves it as it is (`schedule`). As there, the
square of a query, and for l-infinity its signs, serve the whole batch; the paper draws them per
image.

l-infinity (alg. 2): from vertical stripes of +-eps, the square goes to an end of the ball, with
one sign per channel. l2 (alg. 3): from a tiling with bumps, a window takes over the mass of
another, and what the box has cut from eps, and a bump is added to it.

A network in low precision is asked in float32, on a GPU in TF32 with every hit confirmed without:
rounded activations hide what a query gains, rounded operands with exact sums do not.

Differs: squares may touch the last row and column, as in the paper; AutoAttack's code never draws
those. Targeted runs ascend the margin too, where that takes cross-entropy, and a tie never fools.
Tiles are centred along each side, so images need not be square. For l2 the authors scale the
whole perturbation to eps after each move; the move alone leads there, so only windows are written.
"""

import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from functools import partial
from types import EllipsisType
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from advtrain.attacks.guard import exact, guarded, searching
from advtrain.attacks.pgd import step
from advtrain.attacks.survivors import (
    Found,
    advance,
    precise,
    require_rows_to_move,
    separable,
)
from advtrain.draws import signs
from advtrain.ranges import Count, Range, Unit, require
from advtrain.types import Classifier, Threat

SPAN = 10_000  # queries of the paper's table
HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)  # the last query before p is halved
TILES = 5  # along the shorter side of an image, at the start for l2
TINY = 1e-12  # a length that is 0

_length = partial(torch.linalg.vector_norm, dim=(2, 3), keepdim=True)

Window = tuple[EllipsisType, slice, slice]


class State(NamedTuple):
    """A run for B examples; `x_adv` is the best point so far. The first three change in place."""

    x_adv: Tensor
    fooled: Tensor  # (B,)
    margin: Tensor  # at x_adv, (B,)
    x: Tensor
    y: Tensor
    own: Tensor  # 1 for the label and 0 for the others, (B, K)
    others: Tensor  # -inf for the label and 0 for the others, (B, K)


Change = tuple[Tensor, Tensor]
"""A part of `x_adv`, in which a proposal is written, and what it held before."""

Propose = Callable[[State, int], list[Change]]
"""Writes the proposal of a query into `x_adv`, for all examples."""


@guarded
def square(
    model: Classifier,
    x: Tensor,
    y: Tensor,
    *,
    threat: Threat,
    queries: Count,
    p_init: Unit = 0.8,
    restarts: Count = 1,
    targeted: bool = False,
    schedule: Count | None = None,
    generator: Generator | None = None,
) -> Tensor:
    """`queries` proposals from a random start, one forward pass each; x is (N, C, H, W).

    `schedule`: how many queries the fall of p is laid out for, None: `queries`; 10,000 leaves the
    paper's table as it is. Fewer queries than that end in squares that are too large.

    Examples that are fooled already stay as they are. Each other keeps the first point that fools,
    else the one of the highest margin; only those that stand are tried again, `restarts` runs in
    all. Fooled ones leave the batch inside a run too, unless a module is in training mode. A
    stochastic model is judged by single draws.
    ValueError: x of another shape, an l1 threat, l2 with a side below 5, settings out of range.
    """
    require("queries", queries, Range(1))
    require("restarts", restarts, Range(1))
    require("schedule", schedule if schedule is not None else queries, Range(1))
    require("p_init", p_init, Range(0, 1))
    require_rows_to_move(model, "square")
    _check(x, threat)
    x_adv = x.clone()
    if not len(x):
        return x_adv
    plan = _squares if threat.norm == "linf" else _bumps
    table = [i * SPAN // (schedule or queries) for i in range(queries)]
    asked = exact if targeted else searching  # a hit is confirmed for labels left, not targets met
    with torch.no_grad(), asked(model):
        logits = precise(model, x)
        clean = _begin(x, x, y, logits)
        clean = clean._replace(fooled=_margin(logits, clean, targeted) > 0)
        fooled, highest = clean.fooled, clean.margin
        for _ in range(restarts):
            rows = (~fooled).nonzero().squeeze(1)
            if not len(rows):
                break
            start = _start(x[rows], threat, generator)
            state = _begin(start, x[rows], y[rows], logits)
            propose = plan(state.x, threat, p_init, table, generator)
            query = partial(_query, model, targeted, propose)
            found = advance(model, state, queries + 1, query, drop=separable(model))
            if restarts > 1:
                margin = _margin(model(found.x_adv), state, targeted)
                better = found.fooled | (margin > highest[rows])
                rows, found = rows[better], Found(*(part[better] for part in found))
                highest[rows] = margin[better]
            x_adv[rows], fooled[rows] = found
    return x_adv


def _check(x: Tensor, threat: Threat) -> None:
    if threat.norm not in ("linf", "l2"):
        raise ValueError(
            f"square searches linf and l2 balls, the threat is {threat.norm}. Use apgd or fab."
        )
    if x.ndim != 4:
        raise ValueError(
            f"x has shape {tuple(x.shape)}; square changes windows of images of shape "
            "(N, C, H, W). Write x.view(-1, C, H, W), and flatten inside the model."
        )
    if threat.norm == "l2" and min(x.shape[2:]) < TILES:
        raise ValueError(
            f"x has shape {tuple(x.shape)}; square starts with {TILES} tiles along a side for l2, "
            f"so sides are at least {TILES}. Use pgd or fab for smaller images."
        )


def _begin(x_adv: Tensor, x: Tensor, y: Tensor, logits: Tensor) -> State:
    """Before the first query, when any margin is better than none; for logits of this kind."""
    wide = torch.promote_types(logits.dtype, torch.float32)
    own = F.one_hot(y, logits.shape[1]).to(wide)
    fooled, margin = torch.zeros_like(y, dtype=torch.bool), torch.full_like(own[:, 0], -torch.inf)
    return State(x_adv, fooled, margin, x, y, own, (1 - own).log())


def _margin(logits: Tensor, state: State, targeted: bool) -> Tensor:
    """`functional.margin`, or less that; -inf where a logit is not finite. In few kernels."""
    own = (logits * state.own).sum(1)  # NaN if another logit is infinite
    best = (logits + state.others).amax(1)
    margin = own - best if targeted else best - own
    return margin.nan_to_num_(-torch.inf, -torch.inf, -torch.inf)


def _query(model: Classifier, targeted: bool, propose: Propose, state: State, i: int) -> State:
    """The start for i = 0, then a proposal; kept where it raises the margin of who stands."""
    changes = propose(state, i - 1) if i else []
    margin = _margin(model(state.x_adv), state, targeted)
    better = (margin > state.margin) > state.fooled  # for truth values: and not fooled
    for part, before in changes:
        torch.where(better.view(-1, 1, 1, 1), part, before, out=part)
    torch.where(better, margin, state.margin, out=state.margin)
    torch.where(better, margin > 0, state.fooled, out=state.fooled)
    return state


def _start(x: Tensor, threat: Threat, generator: Generator | None) -> Tensor:
    """Stripes, with a sign per image, channel and column; tiles of bumps for l2."""
    linf = threat.norm == "linf"
    pattern = signs(x[:, :, :1], generator) if linf else _tiles(x, generator)
    return threat.project(step(x, threat.steepest(pattern), threat.eps), x)


def _squares(
    x: Tensor, threat: Threat, p_init: float, table: Sequence[int], generator: Generator | None
) -> Propose:
    """Squares for l-infinity. 2 eps towards a sign, cut to the ball, is the end of the ball."""
    height, width = x.shape[2:]
    places = torch.rand(len(table), 2, generator=generator, device=x.device).tolist()
    ends = signs(x.new_empty(len(table), x.shape[1], 1, 1), generator)
    moves = ends.mul_(threat.eps).unbind()

    def propose(state: State, i: int) -> list[Change]:
        side = _side(height, width, p_init, table[i], odd=False)
        window = _window(height, width, side, *places[i])
        part, before = _change(state, window)
        torch.add(state.x[window], moves[i], out=part).clamp_(threat.low, threat.high)
        return [(part, before)]

    return propose


def _tiles(x: Tensor, generator: Generator | None) -> Tensor:
    """Bumps side by side, a sign for each of an image and channel; shape of x, any length."""
    count, channels, height, width = x.shape
    side = min(height, width) // TILES
    down, across = height // side, width // side
    lying = torch.rand(down, across, generator=generator, device=x.device).round().long()
    up = signs(x.new_empty(count, channels, down, across, 1, 1), generator)
    tiles = (up * _pairs(side).to(x)[lying]).transpose(3, 4).flatten(4, 5).flatten(2, 3)
    top, left = (height - down * side) // 2, (width - across * side) // 2
    pattern = torch.zeros_like(x)
    pattern[..., top : top + down * side, left : left + across * side] = tiles
    return pattern


def _bumps(
    x: Tensor, threat: Threat, p_init: float, table: Sequence[int], generator: Generator | None
) -> Propose:
    """Windows for l2: the first takes the mass of both, and what the box has cut from eps."""
    channels, height, width = x.shape[1:]
    sides = [_side(height, width, p_init, i, odd=True) for i in table]
    pairs = {side: _pairs(side).to(x) for side in set(sides)}
    draws = torch.rand(len(table), 5, generator=generator, device=x.device).tolist()

    def propose(state: State, i: int) -> list[Change]:
        side, (*places, lying) = sides[i], draws[i]
        first = _window(height, width, side, *places[:2])
        second = _window(height, width, side, *places[2:])
        cut = threat.eps**2 - threat.distance(state.x_adv, state.x).square()
        changes = [_change(state, first), _change(state, second)]
        here, there = (part for part, _ in changes)
        image, other = state.x[first], state.x[second]
        delta = here - image
        length = _length(delta)
        here.copy_(image)  # first, for what the windows share counts once
        mass = cut.view(-1, 1, 1, 1) / channels + length.square() + _length(there - other).square()
        there.copy_(other)
        up = signs(length, generator)
        delta.div_(length.clamp_min(TINY)).addcmul_(up, pairs[side][round(lying)])
        delta.mul_(mass.clamp_min(0).sqrt() / _length(delta).clamp_min(TINY))
        torch.add(image, delta, out=here).clamp_(threat.low, threat.high)
        return changes

    return propose


def _pairs(side: int) -> Tensor:
    """A bump up above a bump down, and the same lying; (2, side, side), each of length 1."""
    pair = torch.cat([_bump(side // 2, side), -_bump(side - side // 2, side)])
    return torch.stack([pair, pair.T]) / pair.norm()


def _bump(height: int, width: int) -> Tensor:
    """Rings around the middle, the k-th step to the outermost of height 1 / k^2; length 1."""
    rows, columns = (torch.arange(size).sub(size // 2).abs() for size in (height, width))
    ring = torch.maximum(rows.unsqueeze(1), columns)
    steps = torch.arange(1, max(height, width) // 2 + 2, dtype=torch.float64) ** -2
    bump = steps.flip(0).cumsum(0).flip(0)[ring]
    return bump / bump.norm()


def _side(height: int, width: int, p_init: float, i: int, *, odd: bool) -> int:
    """Side of a square that covers p of an image at query `i` of SPAN; `odd` where it fits."""
    side = max(round(math.sqrt(p_init / 2 ** bisect_left(HALVINGS, i) * height * width)), 1)
    return min(max(side, 3) // 2 * 2 + 1 if odd else side, height, width)


def _window(height: int, width: int, side: int, down: float, across: float) -> Window:
    """A square of `side` pixels at shares `down` and `across`, in [0, 1), of all its places."""
    top, left = int(down * (height - side + 1)), int(across * (width - side + 1))
    return ..., slice(top, top + side), slice(left, left + side)


def _change(state: State, window: Window) -> Change:
    part = state.x_adv[window]
    return part, part.clone()

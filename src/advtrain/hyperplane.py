"""The nearest point at which a linear function has a given value, inside a box.

Per row, the z of least |z - x|_p with <w, z - x> = gap and low <= z <= high, a step of the attack
of Croce and Hein 2020 (https://arxiv.org/abs/1907.02044). Rows x and w have shape (N, D), gap
(N, 1); low and high may be infinite. Where the box holds no such point, pixels go towards the
corner that comes closest; pixels with w = 0 stay.

Differs: no sorting. The authors sort the breakpoints of each row and bisect among them.
"""

from math import isinf

import torch
from torch import Tensor

HALVINGS = 20  # of the range of |w|, for l1


def linf(x: Tensor, w: Tensor, gap: Tensor, *, low: float, high: float) -> Tensor:
    """All pixels move by the same amount, or up to the face of the box."""
    size, sign, need = w.abs(), w.sign().mul_(gap.sign()), gap.abs()
    room = _room(x, sign, size, need, low, high)
    level = _level(room, size, size * room, need, rounds=3)
    return torch.addcmul(x, sign, torch.minimum(room, level)).clamp_(low, high)


def l2(x: Tensor, w: Tensor, gap: Tensor, *, low: float, high: float) -> Tensor:
    """Pixels move in proportion to |w|, or up to the face of the box."""
    size, sign, need = w.abs(), w.sign().mul_(gap.sign()), gap.abs()
    speed = _ratio(size, size.amax(1, keepdim=True))
    room = _room(x, sign, size, need, low, high)
    level = _level(room / speed, size * speed, size * room, need, rounds=8)
    return torch.addcmul(x, sign, torch.minimum(room, speed.mul_(level))).clamp_(low, high)


def l1(x: Tensor, w: Tensor, gap: Tensor, *, low: float, high: float) -> Tensor:
    """Pixels go to the face of the box, those of largest |w| first, until the gap is closed.

    Bisects for the |w| at which that happens; pixels between the two bounds that are left, of
    equal |w| up to rounding, go an equal share of their way.
    """
    size, sign, need = w.abs(), w.sign().mul_(gap.sign()), gap.abs()
    room = _room(x, sign, size, need, low, high)
    gains, over = size * room, torch.empty_like(size)
    below, above = torch.zeros_like(need), size.amax(1, keepdim=True)
    for _ in range(HALVINGS):
        middle = (below + above) / 2
        gain = torch.gt(size, middle, out=over).mul_(gains).sum(1, keepdim=True)
        below, above = middle.where(gain > need, below), above.where(gain > need, middle)
    all_of, some_of = (size > above).to(size.dtype), (size > below).to(size.dtype)
    certain = (all_of * gains).sum(1, keepdim=True)
    share = _ratio(need - certain, (some_of * gains).sum(1, keepdim=True) - certain).clamp_(0, 1)
    return torch.addcmul(x, all_of.lerp(some_of, share), sign * room).clamp_(low, high)


def _room(x: Tensor, sign: Tensor, size: Tensor, need: Tensor, low: float, high: float) -> Tensor:
    """How far pixels may move towards `sign`: to the box, or what would close the gap alone."""
    if isinf(low) or isinf(high):
        room = torch.maximum(sign * (high - x), sign * (low - x)).nan_to_num_()
        return torch.minimum(room, need / size.clamp_min(torch.finfo(size.dtype).tiny))
    room = x - (low + high) / 2
    return torch.addcmul(x.new_full((), (high - low) / 2), sign, room, value=-1, out=room)


def _level(caps: Tensor, rates: Tensor, gains: Tensor, need: Tensor, *, rounds: int) -> Tensor:
    """The level at which pixels, gaining `rates` per level up to `caps`, gain `need` in all.

    gains = rates caps. The gain is piecewise linear in the level, rising and concave, so Newton's
    method from 0 never overshoots and ends at the solution itself. The rounds suffice but for
    planes near a corner, where many pixels reach their caps one after the other; there the level
    may fall a little short.
    """
    level, short = torch.zeros_like(need), need - gains.sum(1, keepdim=True)
    free, part = torch.empty_like(caps), torch.empty_like(caps)
    for _ in range(rounds):
        torch.gt(caps, level, out=free)
        left = torch.mul(free, gains, out=part).sum(1, keepdim=True)
        rate = torch.mul(free, rates, out=part).sum(1, keepdim=True)
        level = torch.maximum(level, _ratio(short + left, rate))
    return level


def _ratio(above: Tensor, below: Tensor) -> Tensor:
    """above / below, and 0 where that is not finite."""
    return (above / below).nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)

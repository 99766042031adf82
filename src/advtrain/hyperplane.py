"""The nearest point at which a linear function has a given value, inside a box.

Per row, the z of least |z - x|_p with <w, z - x> = gap and low <= z <= high, a step of the attack
of Croce and Hein 2020 (https://arxiv.org/abs/1907.02044). Rows x and w have shape (N, D), gap
(N, 1); low and high may be infinite. Where the box holds no such point, pixels go towards the
corner that comes closest; pixels with w = 0 stay.

Differs: no sorting. The authors sort the breakpoints of each row and bisect among them.
"""

import torch
from torch import Tensor

HALVINGS = 20  # of the range of |w|, for l1


def linf(x: Tensor, w: Tensor, gap: Tensor, *, low: float, high: float) -> Tensor:
    """All pixels move by the same amount, or up to the face of the box."""
    return _along(x, w, gap, w.sign(), low, high, rounds=4)


def l2(x: Tensor, w: Tensor, gap: Tensor, *, low: float, high: float) -> Tensor:
    """Pixels move in proportion to |w|, or up to the face of the box."""
    largest = w.abs().amax(1, keepdim=True)
    return _along(x, w, gap, _ratio(w, largest), low, high, rounds=8)


def l1(x: Tensor, w: Tensor, gap: Tensor, *, low: float, high: float) -> Tensor:
    """Pixels go to the face of the box, those of largest |w| first, until the gap is closed.

    Bisects for the |w| at which that happens; pixels between the two bounds that are left, of
    equal |w| up to rounding, go an equal share of their way.
    """
    size, sign, need = w.abs(), w.sign().mul_(gap.sign()), gap.abs()
    room = torch.maximum(sign * (high - x), sign * (low - x)).nan_to_num_()
    room = torch.minimum(room, need / size.clamp_min(torch.finfo(size.dtype).tiny))
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


def _along(
    x: Tensor, w: Tensor, gap: Tensor, direction: Tensor, low: float, high: float, *, rounds: int
) -> Tensor:
    """clip(x + level direction), for the level that closes the gap.

    <w, z - x> is piecewise linear in level, rising, and concave on the way from 0, so Newton's
    method never overshoots and ends at the solution itself. The rounds suffice but for planes
    near a corner, where many pixels saturate one after the other; there z may fall a little short.
    """
    rates = w * direction
    level = _ratio(gap, rates.sum(1, keepdim=True))
    for _ in range(rounds):
        free = torch.addcmul(x, direction, level)
        z = free.clamp(low, high)
        rate = free.eq_(z).mul_(rates).sum(1, keepdim=True)
        level = level + _ratio(gap - z.sub_(x).mul_(w).sum(1, keepdim=True), rate)
    return torch.addcmul(x, direction, level).clamp_(low, high)


def _ratio(above: Tensor, below: Tensor) -> Tensor:
    """above / below, and 0 where that is not finite."""
    return (above / below).nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)

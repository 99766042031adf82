"""Which of some thresholds does a rate exceed? An exact test that stops once that is clear.

Independent draws hit with an unknown rate p: that of the class guessed, among noisy answers. Rates
q_1 < q_2 < ... are given. After each of a few fixed numbers of draws t_1 < ... < t_J = n, the hits
K_j so far are looked at, and more of the q_i may be claimed to lie below p.

Guarantee: whatever p is, and whatever rule stops the draws, the probability that a q_i >= p is
ever claimed is at most alpha. Why:

1. One threshold q. The hypothesis p <= q is rejected at the first look where K_j >= c_j. The c_j
   are chosen in turn, each the smallest with P_q(K_i >= c_i for some i <= j) <= a_j, for levels
   a_1 <= ... <= a_J = alpha set beforehand: error spending (Lan and DeMets 1983). P_q is computed
   from the binomial law by recursion over the looks (Armitage, McPherson and Rowe 1969), so that
   the looks share alpha without a union bound, and what one look cannot spend, counts being whole,
   goes to the next. Where p < q, draw both from the same uniform numbers: p has no more hits at
   any look, so rejecting is no more probable.
2. Several. q_i is claimed only if all smaller ones are: tests in a fixed order, each at the full
   alpha (Maurer, Hothorn and Lehmacher 1995; Westfall and Krishen 2001). Let q_i be the smallest
   that is at least p: any false claim needs p <= q_i rejected, which is rare enough by 1.
3. Ending early without a claim removes claims and adds none. So the 'no' side needs no part of
   alpha and costs only certificates: it ends once the test of 1 at level LOSS, on misses, rejects
   p >= c_J / n, the rate at which n draws just suffice. An image with a higher rate is given up
   wrongly with probability at most LOSS; or it ends where not even n - t hits would suffice.

At n = 100,000 and alpha = 0.001 the last look asks for a few hits more than Clopper and Pearson's
bound with all n draws would: less than 0.004 sigma of radius is lost at thresholds up to 3 sigma,
0.008 beyond, and nothing at the largest, which no earlier look can claim.

Differs: Horvath et al. 2022 (https://arxiv.org/abs/2106.06946) divide alpha by the number of looks
and draw afresh for each. Voracek 2024 (https://arxiv.org/abs/2406.17830) bounds all looks at once
by the Beta(1/2, 1/2)-mixture martingale and Ville's inequality, valid for any n: about twice the
draws of the test here on the rates of Cohen's published CIFAR-10 networks.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from math import log

import numpy as np
from numpy.typing import NDArray

from advtrain.certification.bounds import COUNT, LEVEL, Floats
from advtrain.ranges import require

Integers = NDArray[np.int64]

FIRST = 50  # draws before the first look
RATIO = 1.2  # of the draws at two looks; each look is a pause of the device
EARLY = 0.5  # share of alpha for the looks before the last
LOSS = 0.01  # of images with a rate that n draws would do for, at each threshold
SLACK = 1e-9  # of each level, for rounding and for counts of no weight that are left out


@dataclass(frozen=True, eq=False)
class Plan:
    """Bounds on the hits at each look, for thresholds in ascending order.

    looks: draws until each look, (J,). yes, no: (J, thresholds); a threshold may be claimed at
    `yes` hits or more, and is given up at `no` or fewer.
    """

    looks: Integers
    yes: Integers
    no: Integers

    def settle(
        self, look: Integers, hits: Integers, low: Integers, high: Integers
    ) -> tuple[Integers, Integers]:
        """`low` and `high` of some images after the look of each; all of shape (images,).

        The first `low` thresholds are claimed, those from `high` on are given up: begin with 0
        and the number of thresholds. An image is settled once low >= high, or after the last look.
        """
        count = self.yes.shape[1]
        passed = (hits[:, None] >= self.yes[look]) | (np.arange(count) < low[:, None])
        given_up = hits[:, None] <= self.no[look]
        first = np.where(given_up.any(1), given_up.argmax(1), count)
        return np.logical_and.accumulate(passed, axis=1).sum(1), np.minimum(high, first)


def plan(rates: Sequence[float], n: int, alpha: float) -> Plan:
    """The test for thresholds `rates`, ascending, in (0, 1), with at most `n` draws.

    ValueError: rates not ascending or outside (0, 1), n < 1, alpha outside (0, 1).
    """
    require("n", n, COUNT)
    require("alpha", alpha, LEVEL)
    for rate in rates:
        require("rate", rate, LEVEL)
    if not rates or any(a >= b for a, b in pairwise(rates)):
        raise ValueError(f"rates are {list(rates)}; give at least one, in ascending order.")
    at = looks(n)
    bounds = [_bounds(rate, n, alpha) for rate in rates]
    yes, no = (np.stack(part, axis=1) for part in zip(*bounds, strict=True))
    return Plan(at, yes, no)


def looks(n: int) -> Integers:
    """Numbers of draws at which hits are looked at: RATIO apart, roughly, and the last is n."""
    if n <= FIRST:
        return np.array([n])
    steps = max(1, round(log(n / FIRST) / log(RATIO)))
    return np.unique(np.rint(np.geomspace(FIRST, n, steps + 1)).astype(np.int64))


@cache
def _bounds(rate: float, n: int, alpha: float) -> tuple[Integers, Integers]:
    """Columns of `Plan.yes` and `Plan.no` for one threshold."""
    at = looks(n)
    passed = np.arange(1, len(at) + 1) / len(at)
    levels = alpha * EARLY * passed
    levels[-1] = alpha
    yes = fewest(at, rate, levels)
    spare = n - int(yes[-1])  # misses that the last look allows; -1 where even none are too many
    misses = np.minimum(fewest(at, max(spare, 0) / n, LOSS * passed), spare + 1)
    return yes, at - misses


def fewest(at: Integers, rate: float, levels: Floats) -> Integers:
    """The smallest counts at each look that reject "the rate is at most `rate`", (J,).

    The probability at `rate` that the count is reached at one of the looks up to the j-th is at
    most levels[j]; levels must not fall. Counts are above the number of draws where no count will
    do. `rate` in [0, 1).
    """
    from scipy.stats import binom  # as in bounds

    found = np.empty_like(at)
    alive, base = np.ones(1), 0  # P[no look rejected yet, count = base + i]
    spent, drawn = 0.0, 0
    for look, (total, level) in enumerate(zip(at.tolist(), levels.tolist(), strict=True)):
        step, drawn = total - drawn, total
        reach = 12 * (step * rate * (1 - rate)) ** 0.5 + 60  # leaves out less than exp(-60)
        least = max(0, int(step * rate - reach))
        most = min(step, int(step * rate + reach) + 1)
        # Sums of products of positive numbers: exact but for the relative rounding of each.
        alive = np.convolve(alive, binom.pmf(np.arange(least, most + 1), step, rate))
        base += least
        above = np.append(alive[::-1].cumsum()[::-1], 0.0)
        cut = int(np.argmax(spent + above <= level * (1 - SLACK)))
        found[look] = base + cut
        spent += above[cut]
        alive = alive[:cut]
        light = int(np.searchsorted(alive.cumsum(), 1e-6 * SLACK * levels[-1]))
        alive, base = alive[light:], base + light
    return found

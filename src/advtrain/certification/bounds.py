"""The statistics of randomised smoothing (Cohen et al. 2019, https://arxiv.org/abs/1902.02918).

From counts of noisy predictions to what may be claimed about the smoothed classifier, without a
network. `lower_bound` is the paper's LowerConfBound, `rank_p_value` its BinomPValue at 1/2.
"""

from math import expm1, floor, log
from numbers import Integral
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

from advtrain.ranges import Range, RangeError, require

Floats = NDArray[np.float64]

POSITIVE = Range(0, open_low=True)
COUNT = Range(1)
LEVEL = Range(0, 1, open_low=True, open_high=True)


def lower_bound(hits: ArrayLike, trials: ArrayLike, alpha: float) -> Floats:
    """The rate that the true one exceeds with probability at least 1 - alpha, in [0, 1].

    Clopper and Pearson's exact one-sided bound for `hits` of `trials` independent draws: the
    `alpha` quantile of Beta(hits, trials - hits + 1), and 0 where hits is 0. Integers or arrays
    of them that broadcast; float64 of the common shape. Holds for each entry alone, not for all
    of them together.

    ValueError: alpha outside (0, 1); trials < 1; hits outside [0, trials].
    """
    require("alpha", alpha, LEVEL)
    hits, trials = np.broadcast_arrays(np.asarray(hits), np.asarray(trials))
    if (trials < 1).any() or (hits < 0).any() or (hits > trials).any():
        raise ValueError(
            "hits must lie in [0, trials] and trials be at least 1; got hits from "
            f"{hits.min(initial=0)} to {hits.max(initial=0)} and trials from "
            f"{trials.min(initial=1)} to {trials.max(initial=1)}. Count hits among the trials."
        )
    from scipy.special import betaincinv  # a moment to import, and summaries need none of it

    # with no hits there is no such distribution of a rate, and no claim
    quantile = betaincinv(np.maximum(hits, 1), trials - np.maximum(hits, 1) + 1, alpha)
    return np.where(hits > 0, quantile, 0.0)


def radius(p_low: ArrayLike, sigma: float) -> Floats:
    """l2 radius sigma Phi^-1(p_low) within which a class of at least that rate stays on top.

    Theorem 1 with p_B = 1 - p_A, in the units of sigma; 0 where p_low is at most 1/2, which
    says nothing.
    """
    from scipy.special import ndtri

    return sigma * np.maximum(ndtri(np.asarray(p_low, dtype=np.float64)), 0.0)


def largest_radius(sigma: float, n: int, alpha: float) -> float:
    """The radius certified when all `n` draws agree, sigma Phi^-1(alpha^(1/n)); no other is larger.

    In pixel units of [0, 1]. 0 where `n` is too small for any certificate, see `draws_needed`.

    ValueError: sigma not positive, n < 1, alpha outside (0, 1).
    """
    require("sigma", sigma, POSITIVE)
    require("n", n, COUNT)
    require("alpha", alpha, LEVEL)
    missing = -expm1(log(alpha) / n)  # 1 - alpha^(1/n), exact where n is large
    return max(0.0, -sigma * NormalDist().inv_cdf(missing))


def draws_needed(alpha: float) -> int:
    """The smallest `n` with alpha^(1/n) > 1/2: with fewer draws every image is abstained on."""
    require("alpha", alpha, LEVEL)
    return floor(-log(alpha) / log(2)) + 1


def require_draws(name: str, value: int) -> None:
    """Raise RangeError where `value` is not a number of draws: whole, and at least 1."""
    if not isinstance(value, Integral) or value < 1:
        raise RangeError(f"{name} is {value}; allowed is a whole number of draws, at least 1.")


def rank_p_value(top: ArrayLike, second: ArrayLike) -> Floats:
    """Two-sided binomial p-value of `top` of `top + second` draws at rate 1/2, in [0, 1].

    If it is at most alpha, the class counted most is the most probable one, with probability at
    least 1 - alpha (Hung and Fithian 2019). 1 on a tie. Non-negative integers or arrays that
    broadcast, top >= second.
    """
    from scipy.special import betainc

    top, second = np.broadcast_arrays(np.asarray(top), np.asarray(second))
    # P[X >= top] = I_1/2(top, second + 1); at rate 1/2 both tails are equal
    tail = betainc(np.maximum(top, 1), second + 1, 0.5)
    return np.where(top > second, np.minimum(2 * tail, 1.0), 1.0)

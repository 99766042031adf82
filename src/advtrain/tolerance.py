"""How large a difference must be before it says something against a network.

Honest networks differ from theory too: PGD is not the worst case, and a few hundred examples decide
nothing to a percent. Measured on standard, PGD-AT and TRADES networks for digits (400 examples,
eps 0.15) and the two public MNIST networks of fast_adversarial (128 to 1,000 examples, eps 0.3),
and read off published tables for CIFAR-10; the bounds lie above all but those known to be masked.
"""

from math import sqrt

IMPOSSIBLE = 0.002  # of the examples, AutoAttack's bound where nothing should be
UNLIKELY = 0.01  # what transfers and white boxes miss: up to 0.5 %; verdicts of runs that go back
UNSTABLE = 0.05  # what other losses or steps of PGD find: up to 3 % by steps, 8 % by scale (TRADES)
OVERSTATED = 0.08  # what AutoAttack or Square finds and PGD does not: up to 8 %; papers 3 to 6
INSIDE = 0.03  # of those that stand at the end of a single step, those that fall within: up to 1 %


def clearly(more: int, less: int, n: int, share: float) -> bool:
    """Whether `more` exceeds `less`, of `n` examples, by over `share` of n at two standard errors.

    `more` and `less` count examples that two attacks decide differently, each way; the variance of
    their difference is McNemar's.
    """
    return more - less - 2 * sqrt(more + less) > share * n


def has_collapsed(one: int, many: int, right: int) -> bool:
    """Whether so many of `right` examples standing after one step, and after many, mean that.

    After standard training a sixth stand after one step on CIFAR-10, up to four tenths on digits.
    """
    return one >= 0.6 * right > 0 and many <= 0.1 * right

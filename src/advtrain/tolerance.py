"""How large a difference must be before it says something against a network.

Honest networks differ from theory too: PGD is not the worst case, and a few hundred examples decide
nothing to a percent. Measured on standard, PGD-AT and TRADES networks for digits (400 examples,
eps 0.15) and on pgd_madry.pth for MNIST (400 examples, eps 0.3), and read off tables for CIFAR-10.
"""

from math import sqrt

IMPOSSIBLE = 0.002  # of the examples: AutoAttack's bound where nothing should be; 0 to 0.3 % found
UNLIKELY = 0.01  # what transfers and white boxes miss, or comes back with more steps; to 0.8 %
UNSTABLE = 0.05  # what PGD with other steps finds; to 3 %
OVERSTATED = 0.08  # what PGD misses and AutoAttack, Square or scaled logits find; to 8 %, papers 6
INSIDE = 0.03  # of those that stand at the end of a single step, those that fall within; to 1 %


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
    return one >= 0.6 * right > 0 and many <= 0.1 * right and clearly(one, many, right, 0.0)

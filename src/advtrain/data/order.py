"""Which examples make up a subset: balanced over the classes and the same for everyone."""

import numpy as np
from torch import Tensor


def balanced_order(labels: Tensor, seed: int) -> np.ndarray:
    """A seeded order of all N examples whose first n, for any n, are balanced over the classes.

    Labels int64 (N,), on any device; positions int64 (N,). Each round takes one example of every
    class that has any left, in a random order: counts differ by one at most until the smallest
    class is used up.
    """
    generator = np.random.default_rng(seed)
    y = labels.cpu().numpy()
    shuffled = generator.permutation(len(y))
    return shuffled[np.lexsort((generator.random(len(y)), _rank_in_class(y[shuffled])))]


def first_of_each_class(labels: Tensor, size: int, classes: int) -> np.ndarray:
    """Positions of `size` examples, the first of each class in file order; ascending.

    Where `size` is no multiple of `classes`, the lowest classes give one more. Fewer come back
    when a class is too small.
    """
    y = labels.cpu().numpy()
    quota = np.full(classes, size // classes)
    quota[: size % classes] += 1
    return np.flatnonzero(_rank_in_class(y) < quota[y])


def _rank_in_class(y: np.ndarray) -> np.ndarray:
    """How many earlier examples share the class of each, (N,)."""
    by_class = np.argsort(y, kind="stable")
    starts = np.searchsorted(y[by_class], y[by_class], side="left")
    rank = np.empty(len(y), dtype=np.int64)
    rank[by_class] = np.arange(len(y)) - starts
    return rank

"""Whether answers and labels have anything to do with each other.

Cohen 1960 (https://doi.org/10.1177/001316446002000104): agreement is held against that of the same
answers and labels in any order. Its standard error where there is none beyond that is of Fleiss,
Cohen and Everitt 1969 (https://doi.org/10.1037/h0028106, eq. 14).
"""

from math import sqrt

from torch import Tensor

CERTAIN = 2.0  # standard errors that an agreement must exceed luck by


def expected(answers: Tensor, labels: Tensor) -> float:
    """How many of `answers` (N,) would be right if they stood in any other order."""
    ours, theirs = _shares(answers, labels)
    return len(labels) * float((ours * theirs).sum())


def by_luck(answers: Tensor, labels: Tensor) -> bool:
    """Whether no more of `answers` (N,) are right than that; False where labels are all the same.

    Both int64, not negative, on one device. One answer to everything is always by luck.
    """
    ours, theirs = _shares(answers, labels)
    if not len(labels) or float(theirs.max()) == 1.0:
        return False
    lucky = float((ours * theirs).sum())
    spread = float((ours * theirs * (ours + theirs)).sum())
    error = sqrt(max(0.0, lucky + lucky**2 - spread) / len(labels))
    right = float((answers == labels).double().mean())
    return right - lucky <= CERTAIN * error + 1e-12


def _shares(answers: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The share of each class among both, (K,) in float64."""
    classes = 1 + max(int(each.max()) for each in (answers, labels)) if len(labels) else 0
    ours, theirs = (each.bincount(minlength=classes).double() for each in (answers, labels))
    return ours / max(1, len(labels)), theirs / max(1, len(labels))

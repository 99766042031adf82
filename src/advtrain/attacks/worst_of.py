"""Several attacks, each on the examples that those before it left standing: the worst case.

An example falls to the first attack that fools the model on it, and is left alone afterwards; so
the accuracy is that under all attacks together, at the price of the hardest examples only. Those
that stand are packed into full batches again before each attack.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor

from advtrain.attacks.guard import guarded
from advtrain.attacks.survivors import fools, precise
from advtrain.ranges import Count, Range, require
from advtrain.types import Attack, Classifier, Threat

Members = Callable[[int], Mapping[str, Attack]]
"""The attacks, in order, against a model of so many classes."""


@dataclass(frozen=True)
class WorstOf:
    """`attacks` in their order as one row of an evaluation; they share one threat.

    ValueError: no attacks, one without a threat, or threats that differ.
    """

    attacks: Mapping[str, Attack]

    def __post_init__(self) -> None:
        threats = self._threats()
        if len(threats) != 1 or None in threats:
            told = ", ".join(sorted(map(str, threats))) or "no attack"
            raise ValueError(
                f"WorstOf.attacks must share one threat, and have {told}. Give all of them the "
                "same `threat:`."
            )

    @property
    def threat(self) -> Threat:
        """The set that all members search."""
        (threat,) = self._threats()
        return threat

    def members(self, classes: int) -> Mapping[str, Attack]:
        """The attacks, whatever the number of classes."""
        return self.attacks

    def _threats(self) -> set[Any]:
        return {getattr(attack, "keywords", {}).get("threat") for attack in self.attacks.values()}


@guarded
def worst_of(
    model: Classifier,
    x: Tensor,
    y: Tensor,
    *,
    threat: Threat,
    members: Members,
    batch_size: Count,
    generator: Generator | None = None,
) -> Tensor:
    """Per example the first proposal that fools the model; images that nobody fools as they are.

    Images that the model gets wrong already are not attacked. Verdicts are in float32, whatever
    the model computes in; they take one forward pass per example, and one per attack for those
    that stand, in batches of `batch_size`. Members take `generator=`.
    """
    require("batch_size", batch_size, Range(1))
    x_adv = x.clone()
    if not len(x):
        return x_adv
    logits = torch.cat([precise(model, batch) for batch in x.split(batch_size)])
    standing = ~fools(logits, y)
    for attack in members(logits.shape[1]).values():
        for rows in standing.nonzero().squeeze(1).split(batch_size):
            proposal = attack(model, x[rows], y[rows], generator=generator)
            fooled = fools(precise(model, proposal), y[rows])
            x_adv[rows[fooled]] = proposal[fooled]
            standing[rows] = ~fooled
    return x_adv

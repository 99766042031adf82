"""Training against several attacks, one per batch, in turn or by lot.

A rotation is no attack: it says which of its attacks a moment calls for. Any defense takes one in
place of its attack; those that guide theirs refuse it if one of the attacks cannot be guided.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from advtrain.ranges import Natural
from advtrain.seeding import derive
from advtrain.types import Attack, Moment


@dataclass(frozen=True)
class Several:
    """`attacks` by name. ValueError: none."""

    attacks: Mapping[str, Attack]

    def __post_init__(self) -> None:
        require_some(self.attacks)

    def members(self) -> tuple[Attack, ...]:
        return tuple(self.attacks.values())


@dataclass(frozen=True)
class Cycle(Several):
    """By the index of the batch in its epoch, in the order of `attacks`; each epoch begins anew.

    Where their number does not divide that of the batches, the first ones are used once more.
    """

    def at(self, now: Moment) -> Attack:
        return self.members()[now.batch % len(self.attacks)]


@dataclass(frozen=True)
class Lot(Several):
    """One of them with equal chance at each batch: a function of seed and step alone."""

    seed: Natural

    def at(self, now: Moment) -> Attack:
        return self.members()[derive(self.seed, "attack", now.step) % len(self.attacks)]


def require_some(attacks: Mapping[str, Attack]) -> None:
    """ValueError if there is no attack."""
    if not attacks:
        raise ValueError("attacks is empty; give at least one attack under a name, as attacks.pgd.")

"""AutoAttack: sets of attacks without parameters to tune (Croce and Hein 2020,
https://arxiv.org/abs/2003.01690), each on what those before it left standing.

`standard` is the set of today's leaderboards (August 2020), `v1` that of the paper, which some
tables quote; robust accuracies of v1 are some 0.1 to 0.4 points higher, so never compare the two.
`plus` is both together. `rand`, for stochastic models, averages gradients over 20 draws; whether a
point fools is judged there by single draws, which alone costs accuracy: read it beside a control
at eps = 0.

Where a model has too few classes for a member: with three, untargeted DLR takes the place of the
targeted; with two, only cross-entropy, FAB and Square are left. Targets are all other classes,
at most nine.

Differs: the authors draw all noise on the CPU from the reseeded global generator; Square's windows
and the order of work inside the members follow our own files. Points within eps and decided are
left out earlier, which changes no verdict.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal

from torch import Generator, Tensor, nn

from advtrain.attacks.apgd import apgd
from advtrain.attacks.fab import fab
from advtrain.attacks.square import SPAN, square
from advtrain.attacks.worst_of import worst_of
from advtrain.inference import swift
from advtrain.ranges import Count, Range, require
from advtrain.types import Attack, Classifier, Threat

MEMBERS: Mapping[str, tuple[str, ...]] = {
    "standard": ("apgd_ce", "apgd_t", "fab_t", "square"),
    "plus": ("apgd_ce_5", "apgd_dlr_5", "fab_5", "square", "apgd_t", "fab_t"),
    "rand": ("apgd_ce_eot", "apgd_dlr_eot"),
    "v1": ("apgd_ce_5", "apgd_dlr_5", "fab_5", "square"),
}
STEPS, QUERIES, TARGETS, DRAWS = 100, 5000, 9, 20
PROBES = 16  # images on which the faster network is held against the original


@dataclass(frozen=True)
class AutoAttack:
    """The set `version` for one threat; ValueError for another version or an l1 threat.

    `steps` and `queries` below 100 and 5000 make a quicker attack of the same build, which is not
    AutoAttack and is not to be called so.
    """

    threat: Threat
    version: Literal["standard", "plus", "rand", "v1"] = "standard"
    steps: Count = STEPS
    queries: Count = QUERIES

    def __post_init__(self) -> None:
        if self.version not in MEMBERS:
            allowed = ", ".join(MEMBERS)
            raise ValueError(f"version is {self.version!r}; allowed are {allowed}.")
        if self.threat.norm == "l1":
            raise ValueError(
                "AutoAttack's threat is l1; its sets are here for linf and l2. Use apgd or fab "
                "alone."
            )
        for name in ("steps", "queries"):
            require(name, getattr(self, name), Range(1))

    def members(self, classes: int) -> dict[str, Attack]:
        """The attacks by name, in order, against a model of `classes` classes."""
        climb = partial(apgd, threat=self.threat, steps=self.steps)
        cut = partial(fab, threat=self.threat, steps=self.steps)
        search = partial(square, threat=self.threat)
        known: dict[str, Attack] = {
            "apgd_ce": partial(climb, loss="ce", restarts=1),
            "apgd_ce_5": partial(climb, loss="ce", restarts=5),
            "apgd_ce_eot": partial(climb, loss="ce", eot=DRAWS),
            "apgd_dlr": partial(climb, loss="dlr", restarts=1),
            "apgd_dlr_5": partial(climb, loss="dlr", restarts=5),
            "apgd_dlr_eot": partial(climb, loss="dlr", eot=DRAWS),
            "apgd_t": partial(climb, loss="dlr_targeted", targets=TARGETS),
            "fab_5": partial(cut, targets=None, restarts=5),
            "fab_t": partial(cut, targets=TARGETS),
            "square": partial(search, queries=self.queries, schedule=SPAN),
        }
        fitting = _fitting(MEMBERS[self.version], classes)
        return {name.removesuffix("_5").removesuffix("_eot"): known[name] for name in fitting}


def autoattack(
    model: Classifier,
    x: Tensor,
    y: Tensor,
    *,
    threat: Threat,
    version: Literal["standard", "plus", "rand", "v1"] = "standard",
    batch_size: Count = 250,
    generator: Generator | None = None,
) -> Tensor:
    """Per example the first point of the set that fools the model; the others as they are.

    x (N, C, H, W) in [0, 1], y int64 (N,). ValueError: version not one of the four, an l1 threat.
    """
    return worst_of(
        swift(model, x[:PROBES]) if isinstance(model, nn.Module) else model,
        x,
        y,
        threat=threat,
        members=AutoAttack(threat, version).members,
        batch_size=batch_size,
        generator=generator,
    )


def _fitting(names: tuple[str, ...], classes: int) -> list[str]:
    """Those members that a model of `classes` classes admits, none of them twice."""
    if classes < 3:
        return [name for name in names if not name.startswith(("apgd_dlr", "apgd_t"))]
    if classes == 3 and any(name.startswith("apgd_dlr") for name in names):
        return [name for name in names if name != "apgd_t"]
    if classes == 3:
        return ["apgd_dlr" if name == "apgd_t" else name for name in names]
    return list(names)

"""The referee: runs attacks on a classifier and decides, by itself, which examples stand.

An attack proposes; the referee checks that a proposal is finite, in the box and in the set, asks
the classifier afresh, and counts. A proposal outside the set never counts as a success, and an
example that is wrong without an attack is not robust, whatever an attack makes of it. Logits that
are not finite name no class, the right one neither: an example does not stand on a proposal that
gets them, although attacks do not look for such.

A corruption, such as noise, is no attack: its images may lie anywhere, and the accuracy is of these
images, whatever was made of the clean ones.

A row runs on all examples, as papers do; a combination of attacks runs member by member, each on
those that still stand.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from advtrain.answers import asked, attacking
from advtrain.averaged import passes, single
from advtrain.exchange import divided
from advtrain.modes import crafting
from advtrain.portions import Room
from advtrain.precision import full_precision
from advtrain.records import VerdictLog, Verdicts
from advtrain.rows import per_image
from advtrain.seeding import stream
from advtrain.types import Attack, Classifier, Combination, Corruption, Threat

Show = Callable[[Tensor, Tensor, Tensor, Tensor], None]
"""Takes images, proposals, labels and logits on the proposals of a batch."""

SLACK = 1e-5  # relative and absolute room for float rounding in "within eps"


class EvaluationFailed(ValueError):
    """The network cannot be evaluated, or not by this row; what was found before is on disk."""


class Examples(Protocol):
    """What the referee needs of a split."""

    def __len__(self) -> int: ...

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B, C, H, W) in [0, 1] without augmentation, and labels (B,)."""


@dataclass(frozen=True)
class Subject:
    """The network that is judged, and one with the same logits up to rounding to attack.

    `room`: for how many images at once there is memory.
    """

    model: nn.Module
    fast: nn.Module
    room: Room = field(default_factory=Room)


@dataclass(frozen=True)
class Row:
    """One row of an evaluation. `attack` None: the images as they are. `key`: its fingerprint.

    `members`: the attacks of a combination, in their order; empty for any other. `view`: the name
    of that under which the network is judged, `draws`: passes that a verdict takes there.
    """

    name: str
    key: str
    attack: Attack | Combination | None
    members: Mapping[str, Attack]
    view: str = "identity"
    draws: int = 1

    @property
    def plain(self) -> Attack | None:
        """The attack of a row that is no combination."""
        return None if isinstance(self.attack, Combination) else self.attack

    @property
    def settings(self) -> Mapping[str, Any]:
        if self.attack is None:
            return {}
        return self.attack.keywords if isinstance(self.attack, partial) else vars(self.attack)

    @property
    def threat(self) -> Threat | None:
        known: Threat | None = self.settings.get("threat") or getattr(self.attack, "threat", None)
        return known


@dataclass(frozen=True)
class Stage:
    """One attack of a row, and what was found of the examples that it ran on."""

    name: str
    verdicts: tuple[Verdicts, ...]


@dataclass(frozen=True)
class Outcome:
    """A row and what became of each example: `standing` after all stages."""

    row: Row
    stages: tuple[Stage, ...]
    standing: tuple[bool, ...]


class Counting:
    """A classifier that counts its examples, forward and backward, once for each draw of them."""

    def __init__(
        self, model: Classifier, spent: Counter[str] | None = None, room: Room | None = None
    ) -> None:
        self.model = model
        self.spent: Counter[str] = Counter() if spent is None else spent
        self.room = Room() if room is None else room
        self.each = passes(model)

    def around(self, model: Classifier) -> "Counting":
        """Another classifier that counts into the same sums."""
        return Counting(model, self.spent, self.room)

    @property
    def forward_passes(self) -> int:
        return self.spent["forward"]

    @property
    def backward_passes(self) -> int:
        return self.spent["backward"]

    def __call__(self, x: Tensor) -> Tensor:
        logits = asked(partial(self.room.ask, self.model), x)
        self.spent["forward"] += len(x) * self.each
        if logits.requires_grad:
            logits.register_hook(partial(self._count_backward, len(x) * self.each))
        return logits

    def _count_backward(self, examples: int, gradient: Tensor) -> None:
        self.spent["backward"] += examples


def evaluate(
    subject: Subject,
    examples: Examples,
    row: Row,
    log: VerdictLog,
    *,
    clean: Sequence[bool],
    batch_size: int,
    seed: int,
    stop: Callable[[], None],
    watch: Callable[[int], None],
    show: Show | None = None,
    looks: int = 0,
) -> Outcome:
    """What `row` does to the first len(clean) examples; `clean`: which are right unattacked.

    Batches already in `log` are taken from there. Draws come from the stream (seed, row, stage,
    first example), so that each batch comes out the same alone. `show` sees the first batch of a
    row that is no combination, unless that was in the log. Several processes divide the batches,
    and all know all verdicts. `stop` is called before each batch, or before all have one, and may
    raise; `watch` gets the number of examples that are dealt with. `looks` single draws of the
    network are asked about the proposals besides.
    ValueError: the attack refuses the network or the images, or the network raises an error.
    """
    standing, stages = list(clean), []
    attacks: Mapping[str, Attack | None] = row.members or {row.name: row.plain}
    for name, attack in attacks.items():
        places = [i for i in range(len(clean)) if standing[i] or not row.members]
        watch(len(clean) - len(places))
        found = []
        starts = range(0, len(places), batch_size)
        batches = [tuple(places[start : start + batch_size]) for start in starts]
        key = f"{row.key}/{name}" if row.members else row.key

        def judged(
            at: tuple[int, ...], name: str = name, attack: Attack | None = attack, key: str = key
        ) -> Iterator[Verdicts]:
            x, y = examples.batch(torch.tensor(at))
            right = torch.tensor([clean[i] for i in at], device=x.device)
            with stream(x.device, seed, row.name, *([name] if row.members else []), at[0]):
                yield judge(
                    subject,
                    x,
                    y,
                    attack,
                    row.threat,
                    key=key,
                    at=at,
                    clean=right,
                    show=show if at[0] == 0 and not row.members else None,
                    looks=looks,
                )

        fresh = divided([at for at in batches if log.find(key, at) is None], judged, stop)
        for at in batches:
            verdicts = log.find(key, at)
            if verdicts is None:
                verdicts = next(fresh)
                log.append(verdicts)
            watch(len(at))
            found.append(verdicts)
            for place, bit in zip(at, verdicts.robust, strict=True):
                standing[place] = bit == "1"
        stages.append(Stage(name, tuple(found)))
    return Outcome(row, tuple(stages), tuple(standing))


def judge(
    subject: Subject,
    x: Tensor,
    y: Tensor,
    attack: Attack | None,
    threat: Threat | None,
    *,
    key: str,
    at: tuple[int, ...],
    clean: Tensor,
    show: Show | None = None,
    looks: int = 0,
) -> Verdicts:
    """Attack one batch and judge it, in fp32 whatever the attack computes in.

    `clean` (B,): which examples are right unattacked; without an attack, those that may be. A
    corruption asks neither for that nor for a set.
    `looks`: fresh single draws to ask about the same points, after the verdict is reached.
    Weights are frozen and modules in evaluation mode meanwhile; both are restored. Where memory
    runs out, passes are halved and the batch begins anew, with the same draws. TooLarge: it runs
    out with one image.
    """
    began = time.perf_counter()

    def once() -> Verdicts:
        counted = Counting(subject.fast, room=subject.room)
        judging = Counting(subject.model, room=subject.room)
        drawing = judging.around(single(subject.model))
        with crafting(subject.model, mode="eval"), crafting(subject.fast, mode="eval"):
            with attacking(x):
                x_adv = x if attack is None else attack(counted, x, y).detach()
            if isinstance(attack, Corruption):
                valid = allowed = torch.isfinite(x_adv.flatten(1)).all(1)
            else:
                valid, allowed = inside(x_adv, x, threat), clean
            with torch.no_grad(), full_precision(subject.model):
                point = torch.where(per_image(valid, x), x_adv, x)
                logits = judging(point)
                draws = tuple(_bits(right(drawing(point), y)) for _ in range(looks))
        broken = valid & ~torch.isfinite(logits).all(1)
        stands, named = right(logits, y), logits.argmax(1)
        adversarial = stands if attack is None else torch.where(valid, stands, allowed)
        if show is not None and attack is not None:
            show(x, x_adv, y, logits)
        return Verdicts(
            row=key,
            at=at,
            adversarial=_bits(adversarial),
            robust=_bits(allowed & adversarial),
            outside=int((~valid).sum()),
            non_finite=int(broken.sum()) if attack is not None else 0,
            forward_passes=counted.forward_passes + judging.forward_passes,
            backward_passes=counted.backward_passes,
            seconds=round(time.perf_counter() - began, 4),
            draws=draws,
            labels=tuple(y.tolist()),
            answers=tuple(named.where(torch.isfinite(logits).all(1), -1).tolist()),
        )

    return subject.room.within(once, x)


def right(logits: Tensor, y: Tensor) -> Tensor:
    """Which rows of `logits` (B, K) name `y` (B,); a row that is not finite names nothing."""
    return torch.isfinite(logits).all(1) & (logits.argmax(1) == y)


def inside(x_adv: Tensor, x: Tensor, threat: Threat | None) -> Tensor:
    """Which proposals (B, ...) are finite, in the box and within eps of the threat: (B,).

    Without a threat the box is [0, 1] and eps unbounded.
    """
    if x_adv.shape != x.shape:
        raise ValueError(f"an attack returned shape {tuple(x_adv.shape)} for {tuple(x.shape)}.")
    flat = x_adv.flatten(1)
    low, high = getattr(threat, "low", 0.0), getattr(threat, "high", 1.0)
    boxed = (flat >= low - SLACK).all(1) & (flat <= high + SLACK).all(1)
    valid = torch.isfinite(flat).all(1) & boxed
    if threat is not None:
        valid = valid & (threat.distance(x_adv, x) <= threat.eps * (1 + SLACK) + SLACK)
    return valid


def _bits(mask: Tensor) -> str:
    return "".join("1" if value else "0" for value in mask.tolist())


def rows(
    attacks: Mapping[str, Attack | Combination],
    keys: Mapping[str, str],
    classes: int,
    view: str = "identity",
    draws: int = 1,
) -> Iterator[Row]:
    """`clean` first, then the attacks in their order; `keys` are the fingerprints.

    `classes`: of the model, on which the members of a combination may depend.
    """
    yield Row("clean", keys["clean"], None, {}, view, draws)
    for name, attack in attacks.items():
        members = attack.members(classes) if isinstance(attack, Combination) else {}
        yield Row(row_name(name, attack), keys[name], attack, members, view, draws)


def row_name(name: str, attack: Attack | Combination) -> str:
    """`name`; a row called `pgd` is named for the norm of its threat, pgd_linf or pgd_l2."""
    threat = Row(name, "", attack, {}).threat
    return f"pgd_{threat.norm}" if name == "pgd" and threat else name

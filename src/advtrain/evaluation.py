"""The referee: runs attacks on a classifier and decides, by itself, which examples stand.

An attack proposes; the referee checks that a proposal is finite, in the box and in the set, asks
the classifier afresh, and counts. A proposal outside the set never counts as a success, and an
example that is wrong without an attack is not robust, whatever an attack makes of it.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from advtrain.modes import crafting
from advtrain.precision import full_precision
from advtrain.records import VerdictLog, Verdicts
from advtrain.seeding import stream
from advtrain.types import Attack, Classifier, Threat

Show = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], None]
"""Takes images, proposals, labels, clean logits and logits on the proposals of a batch."""

SLACK = 1e-5  # relative and absolute room for float rounding in "within eps"


class Examples(Protocol):
    """What the referee needs of a split."""

    def __len__(self) -> int: ...

    def batch(self, indices: slice) -> tuple[Tensor, Tensor]:
        """Images (B, C, H, W) in [0, 1] without augmentation, and labels (B,)."""


@dataclass(frozen=True)
class Row:
    """One row of an evaluation. `attack` None: the images as they are. `key`: its fingerprint."""

    name: str
    key: str
    attack: Attack | None

    @property
    def settings(self) -> Mapping[str, Any]:
        return self.attack.keywords if isinstance(self.attack, partial) else {}

    @property
    def threat(self) -> Threat | None:
        return self.settings.get("threat")


class Counting:
    """A classifier that counts its examples, forward and backward."""

    def __init__(self, classifier: Classifier) -> None:
        self.classifier = classifier
        self.forward_passes = 0
        self.backward_passes = 0

    def __call__(self, x: Tensor) -> Tensor:
        logits = self.classifier(x)
        self.forward_passes += len(x)
        if logits.requires_grad:
            logits.register_hook(partial(self._count_backward, len(x)))
        return logits

    def _count_backward(self, examples: int, gradient: Tensor) -> None:
        self.backward_passes += examples


def evaluate(
    model: nn.Module,
    examples: Examples,
    row: Row,
    log: VerdictLog,
    *,
    size: int,
    batch_size: int,
    seed: int,
    stop: Callable[[], None],
    watch: Callable[[Verdicts], None],
    show: Show | None = None,
) -> list[Verdicts]:
    """The verdicts of `row` on the first `size` examples, batch by batch.

    Batches already in `log` are taken from there. Draws come from the stream (seed, row, first
    index), so that each batch comes out the same alone. `show` sees the first batch, unless that
    was in the log. `stop` is called before each batch and may raise.
    """
    verdicts = []
    for start in range(0, size, batch_size):
        end = min(start + batch_size, size)
        found = log.find(row.key, start, end - start)
        if found is None:
            stop()
            x, y = examples.batch(slice(start, end))
            with stream(x.device, seed, row.name, start):
                found = judge(model, x, y, row, start=start, show=show if start == 0 else None)
            log.append(found)
        watch(found)
        verdicts.append(found)
    return verdicts


def judge(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    row: Row,
    *,
    start: int = 0,
    show: Show | None = None,
) -> Verdicts:
    """Attack one batch and judge it, in fp32 whatever the attack computes in.

    Weights are frozen and modules in evaluation mode meanwhile; both are restored.
    """
    began = time.perf_counter()
    counted = Counting(model)
    with crafting(model, mode="eval"):
        with torch.no_grad(), full_precision(model):
            clean_logits = counted(x)
        clean = right(clean_logits, y)
        if row.attack is None:
            adversarial, robust, outside, non_finite = clean, clean, 0, 0
        else:
            x_adv = row.attack(counted, x, y).detach()
            valid = inside(x_adv, x, row.threat)
            with torch.no_grad(), full_precision(model):
                logits = counted(torch.where(_per_image(valid, x), x_adv, x))
            # Logits that are not finite are no success of the attack: they fool nobody.
            finite = torch.isfinite(logits).all(1)
            fooled = valid & finite & (logits.argmax(1) != y)
            adversarial = torch.where(valid, ~fooled, clean)
            robust = clean & ~fooled
            outside, non_finite = int((~valid).sum()), int((valid & ~finite).sum())
            if show is not None:
                show(x, x_adv, y, clean_logits, logits)
    return Verdicts(
        row=row.key,
        start=start,
        clean=_bits(clean),
        adversarial=_bits(adversarial),
        robust=_bits(robust),
        outside=outside,
        non_finite=non_finite,
        forward_passes=counted.forward_passes,
        backward_passes=counted.backward_passes,
        seconds=round(time.perf_counter() - began, 4),
    )


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


def _per_image(mask: Tensor, x: Tensor) -> Tensor:
    return mask.view(-1, *[1] * (x.ndim - 1))


def _bits(mask: Tensor) -> str:
    return "".join("1" if value else "0" for value in mask.tolist())


def rows(attacks: Mapping[str, Attack], keys: Mapping[str, str]) -> Iterator[Row]:
    """`clean` first, then the attacks in their order; `keys` are the fingerprints.

    A row called `pgd` is named for the norm of its threat, pgd_linf or pgd_l2.
    """
    yield Row("clean", keys["clean"], None)
    for name, attack in attacks.items():
        row = Row(name, keys[name], attack)
        yield replace(row, name=f"pgd_{row.threat.norm}") if name == "pgd" and row.threat else row

"""The newest checkpoint of a run that is whole: last.pt, or the one before it, previous.pt."""

import logging
from pathlib import Path
from typing import Any

from advtrain.checkpoints import CheckpointError, Damaged, load
from advtrain.files import keep

PREVIOUS = "previous.pt"

log = logging.getLogger(__name__)


class CheckpointLost(RuntimeError):
    """A run cannot go on from its own checkpoints; the message says what can be done."""


def exists(last: Path) -> bool:
    """Whether there is a checkpoint to go on from."""
    return last.exists() or last.with_name(PREVIOUS).exists()


def remove(last: Path) -> None:
    """Forget both."""
    last.unlink(missing_ok=True)
    last.with_name(PREVIOUS).unlink(missing_ok=True)


def lost_at_once(last: Path) -> bool:
    """Whether last.pt is damaged and the first of its run: then only the beginning is to be made
    again.
    """
    if last.with_name(PREVIOUS).exists() or _epochs(last.parents[1] / "metrics.jsonl") > 1:
        return False
    try:
        load(last)
    except Damaged as error:
        told = "%s is damaged (%s), and was the first of its run: training begins anew."
        log.warning(told, last, error.why)
        return True
    except CheckpointError:  # which `load_newest` tells
        pass
    return False


def _epochs(metrics: Path) -> int:
    """How many epochs the first megabyte tells of, which is enough to know whether it was one."""
    if not metrics.is_file():
        return 0
    with metrics.open("rb") as stream:
        return stream.read(1 << 20).count(b"\n")


def load_newest(last: Path) -> dict[str, Any]:
    """The content of last.pt; where that is damaged, of the one before, which takes its place.

    CheckpointLost: neither can be read. CheckpointError: it is whole, and no checkpoint of ours.
    """
    previous = last.with_name(PREVIOUS)
    if not last.exists():  # killed between two names, on a file system without hard links
        keep(previous, last)
    try:
        return load(last)
    except Damaged as error:
        why = error.why
    try:
        content = load(previous)
    except CheckpointError as error:
        other = error.why if isinstance(error, Damaged) else "it is not there"
        raise CheckpointLost(
            f"{last} is damaged ({why}), and so is the checkpoint before it, {PREVIOUS} ({other}). "
            "Put back a copy of one of them, or train from the beginning with resume=false."
        ) from error
    keep(previous, last)
    log.warning(
        "%s is damaged (%s); training goes on from the checkpoint before it, of epoch %.4g.",
        *(last, why, content.get("epoch", 0)),
    )
    return content

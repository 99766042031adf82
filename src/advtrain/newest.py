"""The newest checkpoint of a run that is whole: last.pt, or the one before it, previous.pt."""

import logging
import os
from pathlib import Path
from typing import Any

from advtrain.checkpoints import CheckpointError, Damaged, load
from advtrain.files import keep

PREVIOUS = "previous.pt"
DAMAGED = "damaged.pt"
"""What last.pt is called once it is damaged, for whoever can save something of it."""

log = logging.getLogger(__name__)


class CheckpointLost(RuntimeError):
    """A run cannot go on from its own checkpoints; the message says what can be done."""


def exists(last: Path) -> bool:
    """Whether there is a checkpoint to go on from."""
    return _is_there(last) or _is_there(last.with_name(PREVIOUS))


def _is_there(path: Path) -> bool:
    """OSError: the machine cannot tell, which Path.exists() of newer Pythons takes for no."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def remove(last: Path) -> None:
    """Forget both."""
    last.unlink(missing_ok=True)
    last.with_name(PREVIOUS).unlink(missing_ok=True)


def set_aside(last: Path) -> None:
    """Let a damaged last.pt be DAMAGED, of which there is one, the newest."""
    os.replace(last, last.with_name(DAMAGED))


def lost_at_once(last: Path) -> bool:
    """Whether last.pt is damaged and the first of its run: then only the beginning is to be made
    again.
    """
    if _is_there(last.with_name(PREVIOUS)) or _epochs(last.parents[1] / "metrics.jsonl") > 1:
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

    The damaged file stays, as DAMAGED. CheckpointLost: neither can be read. CheckpointError: it is
    whole, and no checkpoint of ours. OSError, MemoryError: the machine could not read it now; all
    files are as they were.
    """
    previous = last.with_name(PREVIOUS)
    if not _is_there(last):  # killed between two names, on a file system without hard links
        keep(previous, last)
    try:
        return load(last)
    except Damaged as error:
        why = error.why
    try:
        content = load(previous)
    except CheckpointError as error:
        other = str(error).rstrip(".") if _is_there(previous) else f"there is no {PREVIOUS}"
        raise CheckpointLost(
            f"{last} is damaged ({why}), and the checkpoint before it cannot take its place: "
            f"{other}. Put back a copy of one of them, or train from the beginning with "
            "resume=false."
        ) from error
    set_aside(last)
    keep(previous, last)
    log.warning(
        "%s is damaged (%s), and kept as %s; training goes on from the checkpoint before it, of "
        "epoch %.4g.",
        *(last, why, DAMAGED, content.get("epoch", 0)),
    )
    return content

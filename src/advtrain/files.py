"""Files that are either the old or the new version, whole, whatever interrupts the writing."""

import json
import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO, Any


def write_atomic(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Let `write` fill a file beside `path`, which then takes its place in one step.

    Makes the parent folders. If `write` raises, `path` is as it was and nothing is left beside it.
    The content is on the disk before the name is: a power cut cannot leave an empty file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as stream:
            write(stream)
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(name, 0o666 & ~_umask())  # mkstemp makes files that only the owner reads
        os.replace(name, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(name)
        raise


def remove_leftovers(*folders: Path) -> None:
    """Remove what writers that were killed left behind; only where no other process writes."""
    for folder in folders:
        for path in folder.glob(".*.tmp"):
            path.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, atomically."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content`, atomically."""
    write_atomic(path, lambda stream: stream.write(content))


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically.

    Raises ValueError for a number that JSON has no word for (nan, inf), and TypeError for what is
    not a plain container, before the file is touched.
    """
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask

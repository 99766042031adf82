"""Files that are either the old or the new version, whole, whatever interrupts the writing."""

import errno
import fcntl
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What is answered where there is no room for a file."""
NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK)
"""What file systems answer that have no hard links."""


def write_atomic(
    path: Path, write: Callable[[IO[bytes]], object], *, kept: Path | None = None
) -> None:
    """Let `write` fill a file beside `path`, which then takes its place in one step.

    Makes the parent folders. If `write` raises, `path` is as it was and nothing is left beside it.
    The content is on the disk before the name is, and the name before this returns: a power cut
    leaves the old file or the new one. `kept`: where the old one stays, in the same folder.
    """
    with naming(path):
        _write_beside(path, write, kept)
        _sync_names(path.parent)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """An OSError inside is of `path`: that of a full disk names no file, others a temporary one."""
    try:
        yield
    except OSError as error:
        if error.errno is None:  # of a library, in words of its own
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def _write_beside(path: Path, write: Callable[[IO[bytes]], object], kept: Path | None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)  # by which `remove_leftovers` sees a writer alive
            write(stream)
            stream.flush()
            os.fsync(stream.fileno())
            os.chmod(name, 0o666 & ~_umask())  # mkstemp makes files that only the owner reads
            if kept is not None:
                keep(path, kept)
            os.replace(name, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(name)
        raise


def keep(path: Path, kept: Path) -> None:
    """Let `kept` be the file at `path`, if there is one, which stays where it is.

    Without hard links it leaves `path`, until something is written there.
    """
    if not path.exists():
        return
    beside = kept.with_name(f".{kept.name}.link.tmp")
    try:
        beside.unlink(missing_ok=True)
        os.link(path, beside)
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        os.replace(path, kept)
        return
    os.replace(beside, kept)
    beside.unlink(missing_ok=True)  # which is left where both were one file already


def remove_leftovers(*folders: Path) -> None:
    """Remove what writers that were killed left behind; files that are being written stay."""
    for folder in folders:
        for path in folder.glob(".*.tmp"):
            with suppress(OSError), path.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, atomically."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content`, atomically."""
    write_atomic(path, lambda stream: stream.write(content))


def write_json(path: Path, value: Any, *, kept: Path | None = None) -> None:
    """Write `value` as indented JSON, atomically; `kept` as of `write_atomic`.

    Raises ValueError for a number that JSON has no word for (nan, inf), and TypeError for what is
    not a plain container, before the file is touched.
    """
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_atomic(path, lambda stream: stream.write(text.encode("utf-8")), kept=kept)


def _sync_names(folder: Path) -> None:
    """Have the names of files in `folder` on the disk; some file systems cannot be asked to."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask

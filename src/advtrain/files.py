"""Files that are either the old or the new version, whole, whatever interrupts the writing."""

import errno
import fcntl
import json
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from advtrain.lock import NO_LOCKS, opened

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What is answered where there is no room for a file."""
NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK)
"""What file systems answer that have no hard links."""
BESIDE = ".advtrain.tmp"
"""How the names of files end that are to be renamed; nobody else's do."""


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
        sync_names(path.parent)


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
    handle, name = create(path)
    try:
        with os.fdopen(handle, "wb") as stream:
            _hold(stream)
            write(stream)
            stream.flush()
            os.fsync(stream.fileno())
            if kept is not None:
                keep(path, kept)
            os.replace(name, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(name)
        raise


def _hold(stream: IO[bytes]) -> None:
    """By which `remove_leftovers` sees a writer alive; without locks it removes nothing."""
    try:
        fcntl.flock(stream, fcntl.LOCK_EX)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise


def create(path: Path) -> tuple[int, str]:
    """A new file beside `path` to be written and renamed to it: its descriptor and its name.

    Whom the user's umask lets read may read it, but nobody who may not read what `path` is now.
    """
    name = path.with_name(f".{path.name}.{secrets.token_hex(4)}{BESIDE}")
    handle = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    with suppress(OSError):  # there is none, or a disk that knows no modes
        os.fchmod(handle, os.fstat(handle).st_mode & (path.lstat().st_mode | 0o600) & 0o777)
    return handle, str(name)


def keep(path: Path, kept: Path) -> None:
    """Let `kept` be the file at `path`, if there is one, which stays where it is.

    Without hard links it leaves `path`, until something is written there.
    """
    if not path.exists():
        return
    beside = kept.with_name(f".{kept.name}.link{BESIDE}")
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


def remove_leftovers(folder: Path, *below: Path) -> None:
    """Remove what writers that were killed left behind; files that are being written stay.

    Of `below`, folders in `folder`, those that are links are passed by: they may lead anywhere.
    """
    for each in (folder, *(path for path in below if not path.is_symlink())):
        for path in each.glob(f".*{BESIDE}"):
            with suppress(OSError):
                handle = opened(path)
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    path.unlink()
                finally:
                    os.close(handle)


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


def sync_names(folder: Path) -> None:
    """Have the names of files in `folder` on the disk; some file systems cannot be asked to."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

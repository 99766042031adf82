"""One process at a time, where several would write over each other."""

import errno
import fcntl
import math
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LOOK = 0.05  # seconds between looks at a lock that others hold
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP)
"""What file systems answer that have no locks, as Lustre mounted without `flock`."""
ONLY_READ = (errno.EACCES, errno.EPERM, errno.EROFS, errno.EISDIR)


@contextmanager
def locked(path: Path, *, wait: float = math.inf) -> Iterator[None]:
    """Hold the lock file `path`; the system lets go of it when a process is killed.

    What the file holds stays: whoever unpacks a folder of others has their lock file in it.

    BlockingIOError: another process holds it, after `wait` seconds too. OSError: the file cannot be
    made, is none (a link, a pipe, a folder), or lies on a disk without locks.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = opened(path, os.O_CREAT)
    try:
        _take(handle, path, wait)
        yield
    finally:
        os.close(handle)


def opened(path: Path, flags: int = 0) -> int:
    """A descriptor of the regular file `path`, to be locked; not of what a link there leads to.

    For writing where that is allowed, as NFS wants it of what is locked. OSError: it cannot be
    opened, or is no file.
    """
    flags |= os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # a pipe would be waited for
    try:
        handle = os.open(path, flags | os.O_RDWR, 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise OSError(error.errno, "it is a link; remove it", str(path)) from error
        if error.errno not in ONLY_READ or not path.exists():
            raise
        handle = os.open(path, flags & ~os.O_CREAT)  # of another user, say
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "it is no file; remove what is there", str(path))
    return handle


def _take(handle: int, path: Path, wait: float) -> None:
    until = time.monotonic() + wait
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait == math.inf else fcntl.LOCK_NB))
            return
        except BlockingIOError:
            if time.monotonic() >= until:
                raise
            time.sleep(LOOK)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            told = f"its disk has no file locks: {error.strerror}"
            raise OSError(error.errno, told, str(path)) from error

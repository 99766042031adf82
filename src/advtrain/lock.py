"""One process at a time, where several would write over each other."""

import fcntl
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

LOOK = 0.05  # seconds between looks at a lock that others hold


@contextmanager
def locked(path: Path, *, wait: float = math.inf) -> Iterator[None]:
    """Hold the lock file `path`; the system lets go of it when a process is killed.

    BlockingIOError: another process holds it, after `wait` seconds too. OSError: the file cannot be
    written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as file:
        _take(file, wait)
        yield


def _take(file: IO[str], wait: float) -> None:
    if wait == math.inf:
        fcntl.flock(file, fcntl.LOCK_EX)
        return
    until = time.monotonic() + wait
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() >= until:
                raise
            time.sleep(LOOK)

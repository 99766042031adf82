"""Lines for whoever reads them; a reader that has gone, as `| head` does, takes no work with it."""

import os
import sys
from contextlib import suppress
from typing import TextIO


def tell(text: str, stream: TextIO | None = None) -> None:
    """Print one line, on standard error unless told otherwise, if it can be printed."""
    stream = stream or sys.stderr
    try:
        print(text, file=stream, flush=True)
    except OSError:  # nobody reads, or the file that it goes to is on a full disk
        release(stream)


def release(stream: TextIO) -> None:
    """Let a stream that cannot be written lead nowhere, so that what is left in it ends there."""
    with suppress(OSError):  # of a stream without a file
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def flush() -> None:
    """Write what both streams still hold: at its own end Python would make an error of it."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            release(stream)

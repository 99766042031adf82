"""How the process of a command ends: its exit code holds, whatever is still at work beside it.

Python that ends stops a daemon thread where it next asks for the interpreter. In a frame of C++ or
Rust that lets no exception through, this aborts the process (before Python 3.14).
"""

import os
import sys
import threading
from collections.abc import Callable
from typing import NoReturn


class Beside(threading.Thread):
    """A daemon thread that may be in such a frame whenever the process ends; not started yet."""

    def __init__(self, target: Callable[[], object], name: str) -> None:
        super().__init__(target=target, name=name, daemon=True)


def end(code: int) -> NoReturn:
    """End with that exit code; what streams still hold is to be written before.

    At once where a `Beside` is alive: what is registered for the end of Python is not done then.
    """
    if any(isinstance(each, Beside) for each in threading.enumerate()):
        os._exit(code)
    sys.exit(code)

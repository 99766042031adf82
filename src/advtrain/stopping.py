"""Ctrl-C and SIGTERM as a request that the work answers at its next safe point.

Of several processes all answer at the same point, whichever of them was asked.

A second signal stops at once. Outside the main thread signals cannot be caught and nothing changes.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from advtrain.exchange import largest


class Stopped(Exception):
    """The work was asked to stop and has reached a safe point."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}")
        self.exit_code = 128 + signum


class StopRequest:
    """Call it between steps: it raises `Stopped` once a signal has come."""

    def __init__(self) -> None:
        self.signum: int | None = None

    def __call__(self) -> None:
        asked = largest(self.signum or 0)
        if asked:
            self.signum = asked
            raise Stopped(asked)

    def receive(self, signum: int, frame: FrameType | None) -> None:
        if self.signum is not None:
            raise KeyboardInterrupt
        self.signum = signum


@contextmanager
def listening() -> Iterator[StopRequest]:
    """While inside, SIGINT and SIGTERM are requests; afterwards the handlers are as before."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    signals = (signal.SIGINT, signal.SIGTERM)
    previous = {each: signal.signal(each, request.receive) for each in signals}
    try:
        yield request
    finally:
        for each, handler in previous.items():
            signal.signal(each, handler)

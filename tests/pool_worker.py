"""A worker of the pool without torch, whose jobs do what their overrides say."""

import os
import signal
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path

from advtrain import status
from advtrain.messages import Begun, Ended


def main(descriptor: int) -> None:
    pool = Connection(descriptor)
    folder = Path(pool.recv().config.hydra.sweep.dir)
    while True:
        try:
            task = pool.recv()
        except EOFError:
            return
        here = folder / str(task.number)
        status.write(here, "running", process=os.getpid())
        pool.send(Begun(here))
        ended = do(task.overrides[0], here)
        status.write(here, "done" if ended.code == 0 else "failed", exit_code=ended.code)
        pool.send(ended)


def do(what: str, here: Path) -> Ended:
    first = not (here / "tried").exists()
    (here / "tried").touch()
    match what:
        case "exit":
            os._exit(7)
        case "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        case "fail" | "twice":
            return Ended(1 if what == "fail" or first else 0)
        case "hang":
            signal.signal(signal.SIGTERM, lambda *_: sys.exit())
            try:
                time.sleep(60)
            except SystemExit:
                return Ended(143)
        case "deaf":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            time.sleep(60)
    return Ended(0, value=float(len(what)))


if __name__ == "__main__":
    main(int(sys.argv[1]))

"""A worker of the pool without torch, whose jobs do what their overrides say."""

import json
import os
import signal
import subprocess
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
        if "DIES_EARLY" in os.environ:  # as one whose imports take too much memory
            os._exit(7)
        here, what = folder / str(task.number), task.overrides[0]
        note(here, what, "running")
        pool.send(Begun(here))
        ended = do(what, here)
        note(here, what, "done" if ended.code == 0 else "failed", exit_code=ended.code)
        pool.send(ended)


def note(here: Path, what: str, state: str, **facts: int) -> None:
    """A status that nobody reads meanwhile: no disk is waited for, which may take a second."""
    here.mkdir(exist_ok=True)
    told = {"process": os.getpid(), "identity": what, "state": state, "error": None, **facts}
    (here / status.FILE).write_text(json.dumps(told))


def do(what: str, here: Path) -> Ended:
    first = not (here / "tried").exists()
    (here / "tried").touch()
    if what in ("deaf", "exit"):
        child = subprocess.Popen(["sleep", "60"])
        (here / "child").write_text(str(child.pid))
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

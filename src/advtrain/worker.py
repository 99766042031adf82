"""A process of the pool: does one job after another, as it is told through a connection.

Started as `python -m advtrain.worker FD`. What a job prints goes to `output.log` in its folder.
When the pool is gone, the job that runs is asked to stop: it saves its state.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

from hydra import version
from hydra._internal.callbacks import Callbacks
from hydra.core.utils import JobRuntime, JobStatus, run_job, setup_globals
from hydra.types import HydraContext
from omegaconf import DictConfig

from advtrain.composing import Composer
from advtrain.ending import end
from advtrain.foreign import brief
from advtrain.messages import Begun, Ended, Grid
from advtrain.places import place
from advtrain.telling import flush

OUTPUT = "output.log"
LOOK = 0.5  # seconds between looks at the pool


def main(descriptor: int) -> None:
    """Answer tasks until the pool closes the connection."""
    os.set_inheritable(descriptor, False)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    version.setbase("1.3")
    pool = Connection(descriptor)
    try:
        grid: Grid = pool.recv()
    except EOFError:
        return
    setup_globals()
    JobRuntime.instance().set("name", grid.config.hydra.job.name)
    composer = Composer(grid.loader, grid.config)
    context = HydraContext(config_loader=grid.loader, callbacks=Callbacks(grid.config))
    import advtrain.job  # noqa: F401  (torch, before the clock of a job runs)

    watch = Watch(pool)
    while True:
        try:
            task = pool.recv()
            try:
                config = composer(task.overrides)
                folder = place(config, task.number)
                folder.mkdir(parents=True, exist_ok=True)
            except Exception as error:
                pool.send(Ended(1, error=_sentence(error)))
                continue
            pool.send(Begun(folder))
            with watch:
                ended = _do(config, folder, context)
            pool.send(ended)
        except (EOFError, BrokenPipeError, ConnectionResetError, KeyboardInterrupt):
            return  # the pool is gone, or was asked to stop before the job listened


def _sentence(error: Exception) -> str:
    from advtrain.mishaps import told

    return told(error) or f"{type(error).__name__}: {brief(error)}"


def _do(config: DictConfig, folder: Path, context: HydraContext) -> Ended:
    from advtrain.grid import Locate
    from advtrain.main import app

    try:
        with _printing(folder / OUTPUT):
            found = run_job(
                hydra_context=context,
                task_function=app.__wrapped__,
                config=config,
                job_dir_key="hydra.sweep.dir",
                job_subdir_key="hydra.sweep.subdir",
            )
    except SystemExit as stop:
        return Ended(stop.code if isinstance(stop.code, int) else 1)
    except Exception as error:  # of Hydra, which could not begin the job
        return Ended(1, error=_sentence(error))
    value = found._return_value
    if found.status != JobStatus.COMPLETED:
        return Ended(1, error=_sentence(value))
    return Ended(Locate.codes.get(folder, 1), value)


@contextmanager
def _printing(path: Path) -> Iterator[None]:
    """Both streams go to the end of a file, whoever in this process writes to them."""
    kept = {1: os.dup(1), 2: os.dup(2)}
    with path.open("ab") as file:
        for stream in kept:
            os.dup2(file.fileno(), stream)
    try:
        yield
    finally:
        flush()
        for stream, before in kept.items():
            os.dup2(before, stream)
            os.close(before)


class Watch:
    """While a job runs, the end of the pool is a SIGTERM to this process."""

    def __init__(self, pool: Connection) -> None:
        self.pool, self.busy, self.lock = pool, False, threading.Lock()
        threading.Thread(target=self._follow, name="pool", daemon=True).start()

    def __enter__(self) -> None:
        self.busy = True

    def __exit__(self, *error: object) -> None:
        with self.lock:
            self.busy = False

    def _follow(self) -> None:
        while True:
            time.sleep(LOOK)
            with self.lock:
                gone = self.busy and self.pool.poll()  # it sends nothing meanwhile but its end
                self.busy = self.busy and not gone
            if gone:
                os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main(int(sys.argv[1]))
    flush()
    end(0)

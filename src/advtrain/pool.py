"""A pool of processes on this machine, one per slot; a job that goes wrong takes no other with it.

A process does job after job, so that starting one costs nothing. It is replaced when it crashes,
when a job takes too long, and after a job that failed, whose GPU may be left in any state. SIGINT
and SIGTERM are passed on to the jobs that run, no further one is begun, and the pool waits until
they have saved their state.
"""

import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import FrameType
from typing import Any

from hydra.core.hydra_config import HydraConfig

from advtrain import status
from advtrain.composing import Composer
from advtrain.grid import ours
from advtrain.messages import Begun, Ended, Grid, Task
from advtrain.places import facts, place
from advtrain.telling import tell

LOOK = 0.2  # seconds between looks at clocks, and at processes that may have died
MERCY = 1.0  # seconds that what a process leaves behind has to end by itself
DONE, FAILED, INVALID = 0, 1, 2


@dataclass(frozen=True)
class Rules:
    """`timeout`: seconds a job may take, None for any; `grace`: seconds it then has to save its
    state. `retries`: how often a job that failed is tried again at once."""

    timeout: float | None
    grace: float
    retries: int


@dataclass
class Slot:
    """A share of the machine, and the process that works there: `module`, run by Python."""

    environment: Mapping[str, str]
    module: str = "advtrain.worker"
    process: subprocess.Popen[bytes] | None = None
    pipe: Connection | None = None
    task: Task | None = None
    folder: Path | None = None
    began: float | None = None
    late: float | None = None  # since when the job should have ended

    def give(self, task: Task, grid: Grid) -> None:
        """Start a task, in a new process if there is none."""
        if self.pipe is None or self.process is None or self.process.poll() is not None:
            self.stop()
            self._start(grid)
        assert self.pipe is not None
        self.task, self.folder, self.began, self.late = task, None, None, None
        with suppress(OSError):  # it has died already: its silence will tell
            self.pipe.send(task)

    def _start(self, grid: Grid) -> None:
        ours, theirs = Pipe()
        self.process = subprocess.Popen(
            [sys.executable, "-m", self.module, str(theirs.fileno())],
            env={**os.environ, **self.environment},
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C reaches it through the pool alone
        )
        theirs.close()
        self.pipe = ours
        with suppress(OSError):
            ours.send(grid)

    def stop(self) -> None:
        """End the process; one that is between jobs ends by itself."""
        if self.pipe is not None:
            self.pipe.close()
        if self.process is not None:
            try:
                self.process.wait(timeout=5)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
            _clear(self.process.pid)
        self.process = self.pipe = None

    def signal(self, signum: int) -> None:
        """Pass a signal on. Before the job begins nothing would hear Ctrl-C but the interpreter."""
        if self.task is not None and self.process is not None:
            early = self.began is None and signum == signal.SIGINT
            self.process.send_signal(signal.SIGTERM if early else signum)


def _clear(group: int) -> None:
    """End what a process has started and left: decoders, or what may hold the GPU of the slot."""
    until = time.monotonic() + MERCY
    with suppress(ProcessLookupError):  # none is left
        os.killpg(group, signal.SIGTERM)
        while time.monotonic() < until:
            time.sleep(0.02)
            os.killpg(group, 0)
        os.killpg(group, signal.SIGKILL)


@dataclass
class Pool:
    """Does tasks in its slots; `told` says in a line what became of each."""

    grid: Grid
    slots: Sequence[Slot]
    rules: Rules
    ended: dict[int, Ended] = field(default_factory=dict)
    tries: dict[int, int] = field(default_factory=dict)
    signum: int | None = None
    total: int = 0

    def run(self, tasks: Sequence[Task]) -> dict[int, Ended]:
        """How each task ended, by its number; those that were not begun are missing.

        SystemExit: the pool was asked to stop by a signal, and its jobs have ended.
        """
        waiting, self.total = deque(tasks), len(tasks)
        with self._forwarding():
            try:
                while any(slot.task for slot in self.slots) or (waiting and self.signum is None):
                    for slot in self.slots:
                        if slot.task is None and waiting and self.signum is None:
                            slot.give(waiting.popleft(), self.grid)
                    for slot, ended in self._answers():
                        task = slot.task
                        assert task is not None
                        slot.task = None
                        if ended.code != DONE:
                            slot.stop()
                        if self._again(task, ended):
                            waiting.append(task)
                        else:
                            self.ended[task.number] = ended
                            self._tell(task, slot, ended)
            finally:
                for slot in self.slots:
                    if slot.task is not None and slot.process is not None:  # an error of our own
                        slot.process.terminate()
                    slot.stop()
        if self.signum is not None:
            name, folder = signal.Signals(self.signum).name, self.grid.config.hydra.sweep.dir
            again = f"the same command with hydra.sweep.dir={folder} goes on"
            tell(f"advtrain: stopped by {name}; {again}.")
            raise SystemExit(128 + self.signum)
        return self.ended

    def _answers(self) -> Iterator[tuple[Slot, Ended]]:
        """Wait a moment; the slots whose job has ended in the meantime, and how."""
        busy = {slot.pipe: slot for slot in self.slots if slot.task is not None and slot.pipe}
        for pipe in wait(list(busy), timeout=LOOK):
            slot = busy[pipe]  # type: ignore[index]
            try:
                answer = slot.pipe.recv()  # type: ignore[union-attr]
            except (EOFError, OSError):
                yield slot, self._died(slot)
                continue
            if isinstance(answer, Begun):
                slot.folder, slot.began = answer.folder, time.monotonic()
            else:
                yield slot, self._judged(slot, answer)
        for slot in busy.values():
            if slot.task is not None and slot.process is not None:
                if slot.process.poll() is not None and not slot.pipe.poll():  # type: ignore[union-attr]
                    yield slot, self._died(slot)
                elif self._hangs(slot):
                    slot.process.kill()

    def _hangs(self, slot: Slot) -> bool:
        """Ask a job that takes too long to stop; whether it has not, in the time to do so."""
        now, limit = time.monotonic(), self.rules.timeout
        if limit is None or slot.began is None or now - slot.began < limit:
            return False
        if slot.late is None:
            slot.late = now
            slot.signal(signal.SIGTERM)
        return now - slot.late > self.rules.grace

    def _judged(self, slot: Slot, ended: Ended) -> Ended:
        if ended.error is not None:
            return self._failed(slot, ended.error)
        if slot.late is None or ended.code == DONE or self.signum is not None:
            return ended
        return self._failed(slot, f"{self._too_long()} What it had by then is saved.")

    def _died(self, slot: Slot) -> Ended:
        assert slot.process is not None
        code = slot.process.wait()
        if self.signum is not None:
            return Ended(128 + self.signum)
        if slot.late is not None:
            return self._failed(slot, f"{self._too_long()} It did not answer SIGTERM.")
        if code < 0:
            name = signal.Signals(-code).name
            memory = "; perhaps memory ran out" if name == "SIGKILL" else ""
            return self._failed(slot, f"its process was ended by {name}{memory}.")
        return self._failed(slot, f"its process ended with exit code {code} in the middle of it.")

    def _too_long(self) -> str:
        return f"it took longer than hydra.launcher.timeout={self.rules.timeout:g} seconds."

    def _failed(self, slot: Slot, reason: str) -> Ended:
        """Record what the job itself can no longer say."""
        assert slot.task is not None
        unsaid: dict[str, Any] = {}
        if slot.folder is None or "identity" not in status.read(slot.folder):
            slot.folder, unsaid = self._named(slot.task)
        with suppress(OSError):
            status.write(slot.folder, "failed", reason, exit_code=FAILED, **unsaid)
        return Ended(FAILED, error=reason)

    def _named(self, task: Task) -> tuple[Path, dict[str, Any]]:
        """Folder and facts of a job that could not tell them."""
        before = HydraConfig.instance().cfg
        try:
            config = Composer(self.grid.loader, self.grid.config)(task.overrides)
            folder = place(config, task.number)
            return folder, facts(ours(config), config.hydra)
        except Exception:  # of a search, whose jobs were not composed before, and are numbered
            return Path(self.grid.config.hydra.sweep.dir) / str(task.number), {}
        finally:
            HydraConfig.instance().cfg = before

    def _again(self, task: Task, ended: Ended) -> bool:
        if ended.code != FAILED or self.signum is not None:
            return False
        self.tries[task.number] = self.tries.get(task.number, 0) + 1
        return self.tries[task.number] <= self.rules.retries

    def _tell(self, task: Task, slot: Slot, ended: Ended) -> None:
        took = "" if slot.began is None else f" after {time.monotonic() - slot.began:.1f} s"
        known = status.read(slot.folder) if slot.folder is not None else {}
        state = str(known.get("state", "failed"))
        reason = ended.error or known.get("error")
        why = f": {reason}" if state != "done" and reason else ""
        name = slot.folder.name if slot.folder is not None else str(task.number)
        tell(f"advtrain: {len(self.ended)} of {self.total}: job {name} {state}{took}{why}")

    @contextmanager
    def _forwarding(self) -> Iterator[None]:
        """SIGINT and SIGTERM go to the jobs; a third signal ends their processes at once."""
        received = 0

        def receive(signum: int, frame: FrameType | None) -> None:
            nonlocal received
            received += 1
            self.signum = self.signum or signum
            for slot in self.slots:
                slot.signal(signum if received < 3 else signal.SIGKILL)

        signals = (signal.SIGINT, signal.SIGTERM)
        previous = {each: signal.signal(each, receive) for each in signals}
        try:
            yield
        finally:
            for each, handler in previous.items():
                signal.signal(each, handler)

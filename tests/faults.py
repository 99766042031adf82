"""Jobs that are killed at random points, cut off and starved, and given again until they are done.

An attempt is a process forked from a server that has imported all that a job needs, so it costs
what its work costs. It is the command itself, with a `Fault`: a signal after so many seconds or at
the n-th step of writing a file (a new file, a sync, a name), or an error of the disk from there on.
A power cut is SIGKILL and a newest file that has lost its end, or holds zeros there.
"""

import ctypes
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cache
from multiprocessing import forkserver
from pathlib import Path
from typing import Any, NamedTuple

import torch
from outcomes import differences, finished

from advtrain import files

KINDS = ("training", "evaluation", "certification", "soundness", "sweep")
OWN = "pool"  # a sweep whose jobs are in processes of their own, which takes longer to start
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
DATA = ("dataset.train_size=48", "dataset.validation=20", "model=linear", "device=cpu")
QUIET = ("logger=none", "batch_size=16", "attack.steps=2", "validate.attack.steps=2")
GRID = (*DATA, *QUIET, "dataset.test_size=20", "epochs=2", "eval=quick", "eval.batch_size=5")
COMMANDS: dict[str, tuple[str, ...]] = {
    "training": (*DATA, *QUIET, "job=train", "epochs=8", "average=ema", "watchdog.action=back"),
    "evaluation": ("eval=quick", "eval.batch_size=4", "eval.size=60", "eval.attacks.pgd.steps=10"),
    "certification": ("eval=certify", "eval.certify.n=400", "eval.certify.n0=20"),
    "soundness": (  # of certificates that are adaptive
        *("eval=soundness", "eval.certify.n=400", "eval.certify.n0=20"),
        *("eval.certify.radii=[0.1,0.25]", "eval.certify.attack_draws=20"),
        *("eval.certify.attack.steps=4", "eval.certify.attack.restarts=1"),
    ),
    "sweep": ("-m", *GRID, "seed=0,1", "eval.attacks.pgd.steps=3"),
    "pool": ("-m", *GRID, "seed=0,1", "hydra/launcher=pool", "hydra.launcher.slots=2"),
}
JUDGING = ("evaluation", "certification", "soundness")  # of a network that is trained once
CERTIFYING = ("eval.certify.size=80", "eval.certify.batch_size=400", "eval.certify.alpha=0.01")
FOLDER = {"sweep": "hydra.sweep.dir", "pool": "hydra.sweep.dir"}


class Fault(NamedTuple):
    """What happens to an attempt: `signum` after `seconds`, or else at step `write` of its files.

    `error`: an errno that every such step answers with from there on, in place of a signal. `cut`:
    the newest file has then lost its end, or `zeros` are there.
    """

    signum: int = 0
    seconds: float | None = None
    write: int | None = None
    error: int = 0
    cut: bool = False
    zeros: bool = False


class Ended(NamedTuple):
    """An attempt: `code` is negative where a signal ended it; what it said; how long it took, and
    how many writes, where a fault waited for one."""

    code: int
    said: str
    seconds: float
    writes: int


@cache
def server() -> Any:
    """A context whose processes are forked from one that has imported torch and all the rest."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["forked"])
    before = os.environ.get("PYTHONPATH")
    paths = [str(Path(__file__).parent), *([before] if before else [])]
    os.environ["PYTHONPATH"] = os.pathsep.join(paths)
    try:
        forkserver.ensure_running()
    finally:
        os.environ.pop("PYTHONPATH")
        if before is not None:
            os.environ["PYTHONPATH"] = before
    return context


def attempt(arguments: Sequence[str], output: Path, fault: Fault | None = None) -> Ended:
    """One process of the command, which meets the fault; what it says goes beside `output`."""
    fault = fault or Fault()
    log, writes = (output.with_name(f"{output.name}.{each}") for each in ("log", "writes"))
    for each in (log, writes):
        each.unlink(missing_ok=True)
    process = server().Process(target=_work, args=(list(arguments), log, fault), daemon=True)
    began = time.monotonic()
    process.start()
    try:
        if fault.seconds is not None:
            while not log.exists() and process.is_alive():  # until it is at work
                time.sleep(0.005)
            process.join(fault.seconds)
            if process.exitcode is None:
                with suppress(ProcessLookupError):  # it has ended just now
                    os.kill(process.pid, fault.signum)
        process.join(600)  # a job that hangs
    finally:
        process.kill()
        process.join()
    took = time.monotonic() - began
    said, counted = (each.read_text() if each.exists() else "" for each in (log, writes))
    return Ended(process.exitcode, said, took, int(counted or 0))


def _work(arguments: list[str], log: Path, fault: Fault) -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: none outlives the tests
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # before the command can answer it
    torch.set_num_threads(1)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(output, stream)
    seen = Counter[str]()
    if fault.write is not None:
        set_trap(fault.write, fault, seen)
    from advtrain.main import main

    sys.argv = ["advtrain", *arguments]
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        main()
    finally:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # the command has answered
        log.with_suffix(".writes").write_text(str(seen["steps"]))


def set_trap(step: int, fault: Fault, seen: Counter[str]) -> None:
    """Let the fault come before the `step`-th write of this process, counted from 0."""

    def trapped(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            seen["steps"] += 1
            if fault.error and seen["steps"] > step:
                raise OSError(fault.error, os.strerror(fault.error))
            if not fault.error and seen["steps"] == step + 1:
                os.kill(os.getpid(), fault.signum)
            return real(*args, **kwargs)

        return call

    for module, name in ((files, "create"), (os, "fsync"), (os, "replace"), (os, "link")):
        setattr(module, name, trapped(getattr(module, name)))


@dataclass(frozen=True)
class Job:
    """A kind of job, its command without a folder, and what it leaves where nothing disturbs it."""

    kind: str
    arguments: tuple[str, ...]
    whole: Path
    seconds: float
    writes: int

    def line(self, folder: Path) -> list[str]:
        return [*self.arguments, f"{FOLDER.get(self.kind, 'hydra.run.dir')}={folder}"]


def undisturbed(kind: str, here: Path, more: Sequence[str] = ()) -> Job:
    """The job of that kind, done once without a fault in the folder `here`."""
    arguments = (*COMMANDS[kind], *more)
    if kind in JUDGING:
        network = here / "network"
        if not network.exists():
            made = attempt([*COMMANDS["training"], f"hydra.run.dir={network}"], network)
            assert made.code == 0, made.said
        arguments = ("job=eval", f"checkpoint={network}", "logger=none", "device=cpu", *arguments)
    arguments += CERTIFYING if kind in ("certification", "soundness") else ()
    job = Job(kind, arguments, here / f"{kind}-whole", 0.0, 0)
    attempt(["--version"], job.whole)  # after which the server is ready
    found = attempt(job.line(job.whole), job.whole, Fault(write=1_000_000))
    assert found.code == 0, found.said
    return replace(job, seconds=found.seconds, writes=found.writes)


@dataclass
class Tally:
    """What happened to the jobs of a kind."""

    kills: Counter[str] = field(default_factory=Counter)
    attempts: int = 0
    finished: int = 0
    faults: list[str] = field(default_factory=list)


def kill_and_repeat(job: Job, here: Path, kills: int, seed: int) -> Tally:
    """Give the job again and again, each time with a random fault, until there were `kills`.

    `faults` of the tally: each thing that was lost, done again, or came out otherwise.
    """
    chance, tally = random.Random(f"{job.kind} {seed}"), Tally()
    while sum(tally.kills.values()) < kills:
        folder = here / f"{job.kind}-{tally.finished}"
        left = kills - sum(tally.kills.values())
        wrong = [*_until_done(job, folder, min(left, chance.randint(2, 6)), chance, tally)]
        tally.finished += 1
        tally.faults += wrong
        if not wrong:  # else it is left to be looked at
            shutil.rmtree(folder)
    return tally


def _until_done(
    job: Job, folder: Path, kills: int, chance: random.Random, tally: Tally
) -> Iterator[str]:
    seen: set[tuple[str, str]] = set()
    for left in range(kills, -1, -1):
        fault = _drawn(job, chance) if left else None
        ended = attempt(job.line(folder), folder, fault)
        tally.attempts += 1
        if "Traceback" in ended.said:
            yield f"{fault}: a traceback: {ended.said[-600:]}"
        if ended.code == 0:
            break
        if fault is None or (-ended.code not in SIGNALS and ended.code not in (130, 143)):
            yield f"{fault}: exit code {ended.code}: {ended.said[-600:]}"
            return
        tally.kills["power cut" if fault.cut else signal.Signals(fault.signum).name] += 1
        before = finished(folder)
        damaged = cut_newest(folder, chance, zeros=fault.zeros) if fault.cut else None
        after = finished(folder, damaged)
        seen = (seen | after) - (before - after)
    for place, line in sorted(seen - finished(folder)):
        yield f"{place}: done and lost, or done again: {line[:200]}"
    yield from differences(job.whole, folder)


def _drawn(job: Job, chance: random.Random) -> Fault:
    cut = chance.random() < 0.25 and job.kind != OWN  # whose processes write on for a moment
    signum = signal.SIGKILL if cut else chance.choice(SIGNALS)
    more = {"cut": cut, "zeros": chance.random() < 0.3}
    if chance.random() < 0.5:
        return Fault(signum, write=chance.randrange(job.writes), **more)
    return Fault(signum, seconds=chance.uniform(0.05, 1.0) * job.seconds, **more)


def cut_newest(folder: Path, chance: random.Random, *, zeros: bool) -> Path | None:
    """Take the end off the newest file in `folder`, or let zeros be there; the file, if any.

    Files of Hydra and logs of messages, which nothing reads, are passed by.
    """
    files = [path for path in folder.rglob("*") if path.is_file() and path.stat().st_size]
    files = [path for path in files if path.suffix not in (".log", ".yaml", ".lock")]
    if not files:
        return None
    # Within a tick of a coarse clock by name: last.pt is written right after best.pt.
    newest = max(files, key=lambda path: (path.stat().st_mtime_ns, path.name))
    content = newest.read_bytes()
    at = chance.randrange(len(content))
    newest.write_bytes(content[:at] + bytes(len(content) - at if zeros else 0))
    return newest


def fill_disks(job: Job, here: Path, disks: int, seed: int, tally: Tally) -> None:
    """Give the job on a disk (tmpfs) that is too small for it, then with room.

    Needs the right to mount. Where the job fits, nothing is counted.
    """
    chance = random.Random(f"disk {job.kind} {seed}")
    for number in range(disks):
        disk = here / f"{job.kind}-disk-{number}"
        disk.mkdir()
        room = f"size={chance.randrange(8, 200)}k"
        subprocess.run(["mount", "-t", "tmpfs", "-o", room, "tmpfs", disk], check=True)
        try:
            tally.faults += _on_full_disk(job, disk, tally)
        finally:
            subprocess.run(["umount", "-l", disk], check=True)
        tally.finished += 1


def _on_full_disk(job: Job, disk: Path, tally: Tally) -> Iterator[str]:
    folder = disk / f"{job.kind}-full"
    full = attempt(job.line(folder), disk)
    seen = finished(folder)
    if full.code != 0:
        tally.kills["full disk"] += 1
        yield from sentences(full, 1)
    subprocess.run(["mount", "-o", "remount,size=64m", disk], check=True)
    again = attempt(job.line(folder), disk)
    tally.attempts += 2
    if again.code != 0:
        yield f"with room: exit code {again.code}: {again.said[-600:]}"
        return
    for place, line in sorted(seen - finished(folder)):
        yield f"{place}: done and lost, or done again: {line[:200]}"
    yield from differences(job.whole, folder)


def sentences(ended: Ended, code: int) -> Iterator[str]:
    """What is wrong with the words of an attempt that should have ended with `code`."""
    if ended.code != code:
        yield f"exit code {ended.code}, not {code}: {ended.said[-600:]}"
    told = [line for line in ended.said.splitlines() if line.startswith("advtrain: ")]
    if "Traceback" in ended.said or not told:
        yield f"no sentence: {ended.said[-900:]}"

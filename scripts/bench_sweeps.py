"""What the pool costs beside bare processes: many short jobs, on a few slots.

    python scripts/bench_sweeps.py --jobs 200 --slots 2 --seconds 1

A bare process does nothing but wait so long. A job is a whole job of advtrain (configuration, data,
an epoch on 48 digits, checkpoints, report) that lasts as long by itself: it waits for what is left
beside the processor time that it takes where everything is loaded, which is measured first. With
--beside it waits the full time beside all that. Both run on as many slots, one after the other. The
wall time of the pool includes the checks of all jobs, the start of processes, the grid's table.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path

import torch
from benchmark import machine

import advtrain

FACTORY = """
import time
from torch import nn

def waiting(shape, classes, *, seconds=SECONDS):
    time.sleep(seconds)
    return nn.Sequential(nn.Flatten(), nn.Linear(shape[0] * shape[1] * shape[2], classes))
"""
JOB = (
    *("job=train", "logger=none", "device=cpu", "epochs=1", "batch_size=16", "attack.steps=1"),
    *("dataset.train_size=48", "dataset.validation=20", "validate.attack.steps=1"),
    *("model=custom", "model.factory=bench_waiting.waiting"),
)
WARM = (2, 10)  # jobs in one process: the difference is what a job takes once all is loaded


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        own = one_job(here) if options.own is None else options.own
        wait = options.seconds if options.beside else max(0.0, options.seconds - own)
        print(f"{date.today()}, {machine(torch.device('cpu'))}, torch {torch.__version__}")
        print(f"{options.jobs} jobs on {options.slots} slots; a job takes {own:.2f} s of a core")
        print(f"and waits {wait:.2f} s; a bare process waits {options.seconds:g} s", flush=True)
        bare = of_processes(options.jobs, options.slots, options.seconds)
        clock: list[float] = []
        spent = cpu_of(lambda: clock.append(of_pool(here, options.jobs, options.slots, wait)))
        (pool,) = clock
    print(f"bare processes {bare:.1f} s, pool {pool:.1f} s: ratio {pool / bare:.2f}")
    print(f"processor time of the pool {spent:.1f} s, of its jobs {options.jobs * own:.1f} s")
    print(f"load of the machine meanwhile, means of 5 and 15 minutes: {os.getloadavg()[1:]}")


def one_job(here: Path) -> float:
    """Processor seconds of a job that does not wait, in a process where everything is loaded."""
    few, many = (cpu_of(lambda n=n: grid(here, f"warm{n}", n, 0.0)) for n in WARM)
    return (many - few) / (WARM[1] - WARM[0])


def cpu_of(action: Callable[[], object]) -> float:
    """Processor seconds of the processes that `action` starts and waits for."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    action()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def of_pool(here: Path, jobs: int, slots: int, wait: float) -> float:
    """Seconds of a grid on the pool, from its command to its table."""
    return grid(here, "pool", jobs, wait, "hydra/launcher=pool", f"hydra.launcher.slots={slots}")


def grid(here: Path, name: str, jobs: int, wait: float, *more: str) -> float:
    (here / "bench_waiting.py").write_text(FACTORY.replace("SECONDS", str(wait)))
    line = [*JOB, f"seed=range(0,{jobs})", f"hydra.sweep.dir={here / name}", *more]
    began = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "advtrain", "-m", *line],
        cwd=here,
        env={**os.environ, "PYTHONPATH": str(Path(advtrain.__file__).parents[1])},
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    return time.perf_counter() - began


def of_processes(jobs: int, slots: int, seconds: float) -> float:
    """Seconds of as many Python processes that only wait, `slots` at a time."""
    command = [sys.executable, "-c", f"import time; time.sleep({seconds})"]
    began, running, left = time.perf_counter(), [], jobs
    while left or running:
        running = [process for process in running if process.poll() is None]
        while left and len(running) < slots:
            running.append(subprocess.Popen(command))
            left -= 1
        time.sleep(0.005)
    return time.perf_counter() - began


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=200)
    parser.add_argument("--slots", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--own", type=float, help="processor seconds of a job, if known")
    parser.add_argument("--beside", action="store_true")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()

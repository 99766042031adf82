"""What the command costs beside the loops that it runs: its start, and all else that is no pass.

    python scripts/bench_runner.py --rounds 7 --epochs 60

Start: the time until the first training step of `advtrain` begins, less that of `import torch` in a
process of its own, in turns; by the clock, and in processor time of one thread, which waiting for a
core does not lengthen. Overhead: processor time of a whole run, beside what a bare loop over the
same data would take as well: batches, training steps, attacks, the passes by which they are judged,
and the noisy passes of certificates. Everything else counts as overhead: composing and checking,
reading data, logs, checkpoints, tables, figures, the report, W&B. The passes by which the network
is looked at for masked gradients are told apart, and counted in one figure and not in the other.
What comes with each step and epoch is told apart from what comes once, so that a run of any length
is known. All on the processor, whatever else is there: time of a GPU is nobody's processor time.
"""

import argparse
import atexit
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import date
from functools import wraps
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

KINDS = ("batch", "step", "validation", "attack", "pass", "noise", "check")
HERE = "device=cpu"
LONG = 300.0  # seconds of the run that the bar is about
TORCH = "import time; import torch; print(time.process_time())"


class Patched(MetaPathFinder):
    """Changes a module as soon as it is imported, and imports nothing sooner for that."""

    def __init__(self, name: str, change: Callable[[Any], None]) -> None:
        self.name, self.change = name, change

    def find_spec(self, name: str, path: Any, target: Any = None) -> ModuleSpec | None:
        if name != self.name:
            return None
        sys.meta_path.remove(self)
        spec = find_spec(name)
        assert spec is not None and spec.loader is not None
        execute = spec.loader.exec_module

        def executed(module: Any) -> None:
            execute(module)
            self.change(module)

        spec.loader.exec_module = executed  # type: ignore[method-assign]
        return spec


class Clock:
    """Processor time of this thread within functions, by name; what they call is counted once."""

    def __init__(self) -> None:
        self.spent: dict[str, float] = {}
        self.inside = False

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def called(*given: Any, **more: Any) -> Any:
            if self.inside:
                return function(*given, **more)
            began, self.inside = time.thread_time(), True
            try:
                return function(*given, **more)
            finally:
                self.inside = False
                self.spent[name] = self.spent.get(name, 0.0) + time.thread_time() - began

        return called


def main() -> None:
    options = parse()
    import torch
    from benchmark import machine

    print(f"{date.today()}, {machine(torch.device('cpu'))}, torch {torch.__version__}, one thread")
    with tempfile.TemporaryDirectory() as folder:
        starts(Path(folder), options.rounds)
        overhead(Path(folder), options.epochs, options.overrides)


def starts(folder: Path, rounds: int) -> None:
    """Print by how much the first step comes later than the end of `import torch`."""
    kinds = {"import torch": [], "advtrain": [], "advtrain logger=none": ["logger=none"]}
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in kinds}
    for number in range(rounds):
        for name, given in kinds.items():
            began = time.perf_counter()
            if name == "import torch":
                spent = float(run(["-c", TORCH]))
                found[name].append((time.perf_counter() - began, spent))
            else:
                where = folder / f"{len(given)}{number}"
                words = run([__file__, "--first", HERE, f"hydra.run.dir={where}", *given]).split()
                found[name].append((float(words[-2]) - began, float(words[-1])))
    base, *others = found
    for name in others:
        pairs = list(zip(found[name], found[base], strict=True))
        clock, own = (median(a[i] - b[i] for a, b in pairs) for i in (0, 1))
        torch_clock, torch_own = (median(each[i] for each in found[base]) for i in (0, 1))
        print(
            f"{name}: the first step begins {clock:.2f} s after `import torch` ({torch_clock:.2f} "
            f"s), {own:.2f} s of processor time ({torch_own:.2f} s); {rounds} rounds",
            flush=True,
        )


def overhead(folder: Path, epochs: int, overrides: Sequence[str]) -> None:
    """Print what of a run's processor time is no step, attack or pass, and its share."""
    report = folder / "spent.json"
    given = [f"epochs={epochs}", HERE, f"hydra.run.dir={folder / 'whole'}", *overrides]
    run([__file__, "--inside", str(report), *given])
    spent = json.loads(report.read_text())
    training = spent["batch"] + spent["step"] + spent["validation"]
    evaluation = spent["attack"] + spent["pass"] + spent["noise"]
    beside = spent["training"] - training
    checks = spent["check"]
    once = spent["whole"] - spent["torch"] - spent["training"] - evaluation - checks
    loops = training + evaluation + checks
    print(f"advtrain {' '.join([given[0], *overrides])}: {spent['whole']:.1f} s")
    print(f"batches, training steps and validation {training:.1f} s, beside them {beside:.2f} s")
    print(f"attacks, passes and noise of the evaluation {evaluation:.1f} s")
    print(f"passes that look for masked gradients {checks:.2f} s")
    print(f"import torch {spent['torch']:.2f} s, everything else, once a run, {once:.2f} s")
    print(f"overhead {(beside + once) / loops:.2%} of the loops of this run")
    share = beside / training
    rest = LONG - evaluation - checks - once - spent["torch"]
    long = once + rest * share / (1 + share)
    print(
        f"of a run of {LONG:.0f} s with this evaluation, trained as long as is left: "
        f"{long / LONG:.2%}, with the look for masked gradients {(long + checks) / LONG:.2%}"
    )


def run(arguments: Sequence[str]) -> str:
    """Standard output of this Python with `arguments`, on one thread."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *arguments], env=environment, capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    return done.stdout


def first(overrides: list[str]) -> None:
    """Run the command until its first training step begins; print the clock and what was spent."""

    def stop(*_: Any, **__: Any) -> None:
        print(time.perf_counter(), time.process_time(), flush=True)
        os._exit(0)

    sys.meta_path.insert(
        0, Patched("advtrain.training", lambda it: setattr(it, "train_step", stop))
    )
    command(overrides)


def inside(report: Path, overrides: list[str]) -> None:
    """Run the command whole; write what was spent within each kind of work."""
    import torch  # noqa: F401

    clock, torch_spent = Clock(), time.process_time()
    loops: list[float] = []

    def of_training(module: Any) -> None:
        module.train_step = clock.timed("step", module.train_step)

    def of_run_training(module: Any) -> None:
        train = module.train
        module.validate = clock.timed("validation", module.validate)

        def whole(*given: Any, **more: Any) -> Any:
            began = time.thread_time()
            try:
                return train(*given, **more)
            finally:
                loops.append(time.thread_time() - began)

        module.train = whole

    def of_evaluation(module: Any) -> None:
        judge = module.judge

        def judged(subject: Any, x: Any, y: Any, attack: Any, *given: Any, **more: Any) -> Any:
            within = attack if attack is None else clock.timed("attack", attack)
            return judge(subject, x, y, within, *given, **more)

        module.judge, module.asked = judged, clock.timed("pass", module.asked)

    def of_run_evaluation(module: Any) -> None:
        module.probe = clock.timed("check", module.probe)

    def of_smoothing(module: Any) -> None:
        module.Smoothed.tally = clock.timed("noise", module.Smoothed.tally)

    def of_loader(module: Any) -> None:
        epoch = module.Batches.epoch

        def batches(*given: Any, **more: Any) -> Any:
            step = clock.timed("batch", epoch(*given, **more).__next__)
            while True:
                try:
                    yield step()
                except StopIteration:
                    return

        module.Batches.epoch = batches

    changes = {
        "advtrain.data.loader": of_loader,
        "advtrain.training": of_training,
        "advtrain.run_training": of_run_training,
        "advtrain.evaluation": of_evaluation,
        "advtrain.run_evaluation": of_run_evaluation,
        "advtrain.certification.smoothing": of_smoothing,
    }
    sys.meta_path[:0] = [Patched(name, change) for name, change in changes.items()]

    def write() -> None:
        kinds = dict.fromkeys(KINDS, 0.0) | clock.spent
        whole = {"torch": torch_spent, "training": sum(loops), "whole": time.process_time()}
        report.write_text(json.dumps(kinds | whole))

    atexit.register(write)
    command(overrides)


def command(overrides: list[str]) -> None:
    from advtrain.main import main as advtrain

    sys.argv[1:] = overrides
    advtrain()


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7, help="starts of each kind")
    parser.add_argument("--epochs", type=int, default=60, help="of the run that is measured")
    parser.add_argument("overrides", nargs="*", help="more of the line of that run")
    return parser.parse_args()


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["--first", *overrides]:
            first(overrides)
        case ["--inside", report, *overrides]:
            inside(Path(report), overrides)
        case _:
            main()

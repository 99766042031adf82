"""Training, attacks and certificates on a GPU, in ten minutes, into docs/benchmarks.md.

    python scripts/bench_gpu.py            # or make bench-gpu
    python scripts/bench_gpu.py --smoke    # the same commands on a processor, tiny, to the terminal
    python scripts/bench_gpu.py --checkout fast_adversarial --root DATA    # four minutes more

Each line of the plan is a command of one of the scripts beside this one, in a process of its own,
so that none sees the memory of another. Of the time that is left each may take the share that it is
expected to need of all that are to come, so that a late one takes nothing from the others; what it
spares is theirs. One that fails or runs out of time is told in its place, the others run, and the
exit code is 1 in the end. The page is written after each: stopped by Ctrl-C, it has those that were
done. Without a GPU nothing is written, and the exit code is 1.

Whole trainings beside a released loop, and the time to a robust accuracy, are measured only where
--checkout and --root tell where that loop and MNIST are. Other libraries are those of the extra
`bench`, which make installs into .venv-bench; one that is missing is told on the page. Not among
the commands are bench_runner.py and bench_sweeps.py, whose figures are those of a processor,
bench_lwta.py, which takes --device by itself, and certificates by the authors' code.
"""

import argparse
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from datetime import date
from pathlib import Path
from typing import NamedTuple

import bench_released
import torch
from benchmark import machine

from advtrain.files import write_text

BUDGET = 570.0  # seconds for all commands
HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "benchmarks.md"
TITLE = "## On a GPU"


class Job(NamedTuple):
    """A command, and the seconds that it is expected to take: on paper, most of them for the
    compiler, and for float32, which the limits of attacks and the bare loops of training are in."""

    seconds: float
    line: str


class Part(NamedTuple):
    """What came of a command, for the page, and whether it ran to its end."""

    text: str
    done: bool


STEPS = "--defenses pgd_at,trades,fast,nuat"
IMAGES = "--images 40 --n 1000"  # in one call, as evaluations have it: one size for all programs
PLAN = (  # what compiles for long comes last
    Job(40, f"bench_training.py --model resnet18 --batch 512 --precision bf16 --rounds 3 {STEPS}"),
    Job(
        45,
        "bench_attacks.py --model resnet18 --batch 512 --precision bf16 --rounds 3 "
        "--attacks pgd,apgd",
    ),
    Job(
        60,  # a twentieth of AutoAttack's steps and queries, for the rates of FAB and Square
        "bench_attacks.py --model resnet18 --batch 256 --precision bf16 --rounds 1 "
        "--attacks autoattack --steps 5 --queries 250 --peers ''",
    ),
    Job(
        20,
        f"bench_certification.py --model resnet110 --precision bf16 --batch 4000 {IMAGES} "
        "--rounds 3",
    ),
    Job(
        60,
        "bench_training.py --model resnet18 --batch 128 --precision bf16 --rounds 3 "
        "--compile reduce-overhead --defenses pgd_at",
    ),
    Job(
        125,
        "bench_training.py --model resnet18 --batch 512 --precision bf16 --rounds 3 --compile true "
        f"{STEPS}",
    ),
    Job(
        50,
        "bench_attacks.py --model resnet18 --batch 512 --precision bf16 --rounds 3 "
        "--attacks pgd,apgd --compile true --peers ''",
    ),
    Job(
        80,
        f"bench_certification.py --model resnet110 --precision bf16 --batch 4000 {IMAGES} "
        "--rounds 3 --compile true",
    ),
    Job(
        90,
        "bench_training.py --model wrn_34_10 --batch 256 --precision bf16 --rounds 2 "
        "--compile true --defenses pgd_at",
    ),
)
SMOKE = (
    Job(
        4,
        "bench_training.py --model mnist_cnn --batch 4 --steps 2 --precision bf16 --rounds 1 "
        "--compile true --defenses pgd_at,oat",
    ),
    Job(
        2,
        "bench_attacks.py --model mnist_cnn --batch 4 --steps 2 --rounds 1 --attacks pgd "
        "--peers '' --compile true",
    ),
    Job(
        1,
        "bench_attacks.py --model mnist_cnn --batch 4 --precision bf16 --rounds 1 "
        "--attacks autoattack --steps 2 --queries 10 --peers ''",
    ),
    Job(
        2,
        "bench_certification.py --model mnist_cnn --n0 5 --n 40 --batch 16 --rounds 1 "
        "--compile true",
    ),
)
REACH = "--methods fgsm --reach 70"
RELEASED = (  # most of the seconds for the starts of twelve programs
    Job(240, f"bench_released.py --images 20000 --epochs 4,8,12 --rounds 2 {REACH}"),
    Job(3, f"bench_released.py --images 200 --judged 20 --epochs 1 --rounds 1 {REACH}"),  # smoke
)
LEFT_OUT = (
    "Not among the commands: `bench_runner.py` and `bench_sweeps.py`, whose figures are those of a "
    "processor; `bench_lwta.py --device cuda`; certificates by the authors' code (`--cohen`)"
)


def main(arguments: Sequence[str] | None = None) -> None:
    form = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    form.add_argument("--smoke", action="store_true", help="tiny, on a processor, to the terminal")
    form.add_argument(
        "--page", type=Path, default=PAGE, help="the page that is written, a new one if need be"
    )
    form.add_argument("--checkout", help="of locuslab/fast_adversarial: trainings beside it, too")
    form.add_argument("--root", help="the folder with MNIST, for these")
    options = form.parse_args(arguments)
    if (options.checkout is None) != (options.root is None):
        form.error(
            "--checkout and --root go together: a released loop, and the MNIST it trains on."
        )
    extra = released(options)
    budget = BUDGET + sum(job.seconds for job in extra)
    parts = []
    if options.smoke:
        for part in measured((*SMOKE, *extra), "cpu", budget):
            parts.append(part)
            print(part.text, end="\n\n", flush=True)
    else:
        if not torch.cuda.is_available():
            raise SystemExit(
                "bench_gpu: no CUDA device is here, so nothing was measured or written."
            )
        page = options.page.read_text(encoding="utf-8") if options.page.exists() else ""
        top = header(left_out=not extra)
        for part in measured((*PLAN, *extra), "cuda", budget):
            parts.append(part)
            write_text(options.page, put(page, "\n\n".join([top, *(one.text for one in parts)])))
        print(options.page)
    broken = sum(not part.done for part in parts)
    if broken:
        raise SystemExit(f"bench_gpu: {broken} of {len(parts)} commands did not come to their end.")


def released(options: argparse.Namespace) -> tuple[Job, ...]:
    """Whole trainings beside the loop of `--checkout`, where it is given."""
    if options.checkout is None:
        return ()
    where = shlex.join(["--checkout", options.checkout, "--root", options.root])
    seconds, line = RELEASED[options.smoke]
    job = Job(seconds, f"{line} {where}")
    bench_released.parse(shlex.split(job.line)[1:])  # else a wrong folder is told in ten minutes
    return (job,)


def header(*, left_out: bool) -> str:
    """What the figures depend on and what is not among them; `left_out`: nor is a released loop."""
    device = torch.device("cuda")
    memory = torch.cuda.get_device_properties(device).total_memory / 2**30
    versions = f"torch {torch.__version__}, CUDA {torch.version.cuda}"
    versions += f", cuDNN {torch.backends.cudnn.version()}"
    top = f"{date.today()}, {machine(device)}, {memory:.0f} GiB; {versions}. By `make bench-gpu`."
    other = "; a released loop (`bench_gpu.py --checkout ... --root ...`)" if left_out else ""
    return f"{top}\n\n{LEFT_OUT}{other}."


def measured(plan: Sequence[Job], device: str, budget: float = BUDGET) -> Iterator[Part]:
    """Of each command itself and its table, or why there is none, in `budget` seconds."""
    end = time.monotonic() + budget
    for number, (seconds, line) in enumerate(plan):
        script, *given = [*shlex.split(line), "--device", device, "--markdown"]
        command = f"python scripts/{line} --device {device} --markdown"
        began = time.monotonic()
        share = seconds / sum(job.seconds for job in plan[number:])
        done = False
        try:
            ran = subprocess.run(
                [sys.executable, str(HERE / script), *given],
                capture_output=True,
                text=True,
                timeout=max(share * (end - began), 1),
            )
            told, done = tables(ran.stdout), not ran.returncode
            if not done:
                told += f"\n\nIt failed: {(ran.stderr.strip().splitlines() or ['?'])[-1]}"
        except subprocess.TimeoutExpired as late:
            told = f"{tables(_text(late.stdout))}\n\nIt was not done when its time was over."
        print(f"{line}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
        yield Part(f"```\n{command}\n```\n\n{told.strip()}", done)


def _text(output: bytes | str | None) -> str:
    return output.decode() if isinstance(output, bytes) else output or ""


def tables(output: str) -> str:
    """Of what a script printed: what it skipped, its rates, its rows and what it told after."""
    lines = output.splitlines()
    first = next((at for at, line in enumerate(lines) if line.startswith("|")), len(lines))
    told = [line for line in lines[:first] if line.startswith(("skipped:", "matrix rate"))]
    return "\n\n".join([*told, "\n".join(lines[first:])]).strip()


def put(page: str, section: str) -> str:
    """`page` with `section` under TITLE, in the place of what was there, or at the end."""
    text = f"{TITLE}\n\n{section}\n"
    old = re.search(rf"^{re.escape(TITLE)}\n.*?(?=^## |\Z)", page, re.M | re.S)
    if old is None:
        return f"{page.rstrip()}\n\n{text}".lstrip()
    rest = page[old.end() :]
    return page[: old.start()] + text + (f"\n{rest}" if rest else "")


if __name__ == "__main__":
    main()

"""All that a GPU is measured on, in ten minutes, into docs/benchmarks.md.

    python scripts/bench_gpu.py            # or make bench-gpu
    python scripts/bench_gpu.py --smoke    # the same commands on a processor, tiny, to the terminal

Each line of the plan is a command of one of the scripts beside this one, in a process of its own,
so that none sees the memory of another. One that fails or runs out of time is told in its place,
and the others run. Without a GPU nothing is written, and the exit code is 1.
"""

import argparse
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from datetime import date
from pathlib import Path

import torch
from benchmark import machine

BUDGET = 570.0  # seconds for all commands
HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "benchmarks.md"
TITLE = "## On a GPU"

STEPS = "--defenses pgd_at,trades,fast,nuat"
PLAN = (
    f"bench_training.py --model resnet18 --batch 512 --precision bf16 --rounds 3 {STEPS}",
    "bench_training.py --model resnet18 --batch 512 --precision bf16 --rounds 3 --compile true "
    f"{STEPS}",
    "bench_training.py --model resnet18 --batch 128 --precision bf16 --rounds 3 "
    "--compile reduce-overhead --defenses pgd_at",
    "bench_training.py --model wrn_34_10 --batch 256 --precision bf16 --rounds 2 --compile true "
    "--defenses pgd_at",
    "bench_attacks.py --model resnet18 --batch 512 --precision bf16 --rounds 3 --attacks pgd,apgd",
    "bench_certification.py --model resnet110 --precision bf16 --batch 4000 --n 40000 --rounds 3",
)
SMOKE = (
    "bench_training.py --model mnist_cnn --batch 4 --steps 2 --precision bf16 --rounds 1 "
    "--compile true --defenses pgd_at,oat",
    "bench_attacks.py --model mnist_cnn --batch 4 --steps 2 --rounds 1 --attacks pgd --peers ,",
    "bench_certification.py --model mnist_cnn --n0 5 --n 40 --batch 16 --rounds 1",
)


def main(arguments: Sequence[str] | None = None) -> None:
    form = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    form.add_argument("--smoke", action="store_true", help="tiny, on a processor, to the terminal")
    form.add_argument("--page", type=Path, default=PAGE, help="the page that is written")
    options = form.parse_args(arguments)
    if options.smoke:
        print("\n\n".join(measured(SMOKE, "cpu")))
        return
    if not torch.cuda.is_available():
        raise SystemExit("bench_gpu: no CUDA device is here, so nothing was measured or written.")
    parts = list(measured(PLAN, "cuda"))
    page = options.page.read_text(encoding="utf-8")
    options.page.write_text(put(page, "\n\n".join([header(), *parts])), encoding="utf-8")
    print(options.page)


def header() -> str:
    device = torch.device("cuda")
    memory = torch.cuda.get_device_properties(device).total_memory / 2**30
    versions = f"torch {torch.__version__}, CUDA {torch.version.cuda}"
    versions += f", cuDNN {torch.backends.cudnn.version()}"
    return f"{date.today()}, {machine(device)}, {memory:.0f} GiB; {versions}. By `make bench-gpu`."


def measured(plan: Sequence[str], device: str) -> Iterator[str]:
    """Of each command itself and its table, or why there is none."""
    end = time.monotonic() + BUDGET
    for line in plan:
        script, *given = [*line.split(), "--device", device, "--markdown"]
        command = f"python scripts/{line} --device {device} --markdown"
        left = end - time.monotonic()
        try:
            done = subprocess.run(
                [sys.executable, str(HERE / script), *given],
                capture_output=True,
                text=True,
                timeout=max(left, 1),
            )
            told = tables(done.stdout)
            if done.returncode:
                told += f"\n\nIt failed: {(done.stderr.strip().splitlines() or ['?'])[-1]}"
        except subprocess.TimeoutExpired as late:
            told = f"{tables(_text(late.stdout))}\n\nIt was not done when its time was over."
        print(f"{line}: {BUDGET - end + time.monotonic():.0f} s", file=sys.stderr, flush=True)
        yield f"```\n{command}\n```\n\n{told.strip()}"


def _text(output: bytes | str | None) -> str:
    return output.decode() if isinstance(output, bytes) else output or ""


def tables(output: str) -> str:
    """The rows of Markdown in what a script printed, and the rate that it measured."""
    lines = output.splitlines()
    rates = [line for line in lines if line.startswith("matrix rate")]
    return "\n".join([*rates, *([""] if rates else []), *(x for x in lines if x.startswith("|"))])


def put(page: str, section: str) -> str:
    """`page` with `section` under TITLE, in the place of what was there, or at the end."""
    text = f"{TITLE}\n\n{section}\n"
    old = re.search(rf"^{re.escape(TITLE)}\n.*?(?=^## |\Z)", page, re.M | re.S)
    if old is None:
        return f"{page.rstrip()}\n\n{text}"
    rest = page[old.end() :]
    return page[: old.start()] + text + (f"\n{rest}" if rest else "")


if __name__ == "__main__":
    main()

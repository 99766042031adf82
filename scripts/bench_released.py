"""Whole trainings by `advtrain` beside the loop that authors released, and what both reach.

    git clone https://github.com/locuslab/fast_adversarial
    python scripts/bench_released.py --checkout fast_adversarial --root DATA --reach 80

Their MNIST script (Wong et al. 2020) runs as it is, in a process of its own, on a GPU; with
`--device cpu` neither sees one, and `.cuda()` leaves everything where it is. Both train the same
network on the same images with the same settings of the paper, in turns, a whole schedule of each
number of epochs, from another seed in each round; seconds are those of training as each of them
tells, without start, validation and saving. All networks are then attacked by our PGD on the same
test images. The time to a robust accuracy is that of the shortest schedule whose median over the
rounds reaches it. On a GPU theirs convolves in TF32, PyTorch's default, and ours in float32.
Their loops for CIFAR-10 and ImageNet need NVIDIA's apex, which no registry has.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np
import torch
from benchmark import Table, count, heading, one_sentence, ratio
from torch import Tensor, nn

from advtrain import checkpoints
from advtrain.attacks.pgd import pgd
from advtrain.data import readers
from advtrain.models.small import mnist_cnn
from advtrain.modes import crafting
from advtrain.threat import Linf

EPS = 0.3
COLUMNS = {
    "method": 8,
    "epochs": 7,
    "by": 9,
    "training, s": 12,
    "of theirs": 20,
    "clean, %": 20,
    "PGD-20, %": 20,
}
THEIRS = """
import runpy, sys, torch
if not torch.cuda.is_available():
    torch.Tensor.cuda = torch.nn.Module.cuda = lambda self, *a, **k: self
sys.path.insert(0, sys.argv.pop(1))
runpy.run_path("{script}", run_name="__main__")
"""


class Method(NamedTuple):
    """One of their attacks and how it is called here."""

    theirs: Sequence[str]
    ours: Sequence[str]


METHODS = {
    "fgsm": Method(("--attack", "fgsm", "--alpha", "0.375"), ("defense=fast",)),
    "pgd": Method(
        ("--attack", "pgd", "--alpha", "0.01", "--attack-iters", "40"),
        (
            "defense=pgd_at",
            "defense.warmup=0",
            "attack.steps=40",
            "attack.step_size=0.01",
            "optimizer=adam",
            "optimizer.lr=5e-3",
            "schedule=cyclic",
            "batch_size=100",
        ),
    ),
}


class Trained(NamedTuple):
    seconds: float
    model: nn.Module


class Schedule(NamedTuple):
    """What whole trainings of so many epochs take and reach, medians over the rounds."""

    epochs: int
    seconds: float
    robust: float  # percent


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    heading(options, f"MNIST, {options.images} images, eps {EPS}, {options.threads} threads each")
    with one_sentence():
        train, test, _ = readers.read(readers.mnist(), options.root, download=False)
    if options.images > len(train.images):
        raise SystemExit(
            f"--images is {options.images}; MNIST has {len(train.images)} to train on."
        )
    chosen = torch.randperm(len(test.images), generator=torch.Generator().manual_seed(0))
    x, y = (each[chosen[: options.judged]] for each in test)
    table = Table(COLUMNS, markdown=options.markdown)
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        keep(Path(folder), train.only(torch.arange(options.images)), test)
        for name in options.methods.split(","):
            found: dict[str, list[Schedule]] = {by: [] for by in TRAININGS}
            for epochs in options.epochs:
                pair = compare(table, name, epochs, Path(folder), x.float() / 255, y, options)
                for by, schedule in pair.items():
                    found[by].append(schedule)
            if options.reach is not None:
                lines.append(f"{name}: {told(options.reach, found)}")
    if lines:
        print("", *lines, sep="\n")


def compare(
    table: Table,
    name: str,
    epochs: int,
    folder: Path,
    x: Tensor,
    y: Tensor,
    options: argparse.Namespace,
) -> dict[str, Schedule]:
    """Two rows: a schedule of so many epochs by both, in turns."""
    found: dict[str, list[Trained]] = {by: [] for by in TRAININGS}
    for number in range(options.rounds):
        for by in sorted(TRAININGS, reverse=number % 2 == 1):
            where = folder / f"{name}{epochs}{by}{number}"
            where.mkdir()
            found[by].append(TRAININGS[by](name, epochs, number, where, options))
    base = [each.seconds for each in found["theirs"]]
    schedules = {}
    for by, each in found.items():
        seconds = [one.seconds for one in each]
        reached = [accuracies(one.model, x, y) for one in each]
        clean, robust = ([100 * one for one in kind] for kind in zip(*reached, strict=True))
        schedules[by] = Schedule(epochs, median(seconds), median(robust))
        cells = [name, str(epochs), by, f"{median(seconds):.1f}", str(ratio(seconds, base))]
        table.add([*cells, spread(clean), spread(robust)])
    return schedules


def spread(values: Sequence[float]) -> str:
    return f"{median(values):.1f} ({min(values):.1f} to {max(values):.1f})"


def told(reach: float, found: Mapping[str, Sequence[Schedule]]) -> str:
    """The time of both to `reach` percent under PGD-20."""
    parts, times = [], {}
    for by, schedules in found.items():
        enough = [each for each in schedules if each.robust >= reach]
        if enough:
            best = min(enough, key=lambda each: each.seconds)
            times[by] = best.seconds
            parts.append(f"{by} {best.seconds:.1f} s ({best.epochs} epochs)")
        else:
            parts.append(f"{by} not within {max(each.epochs for each in schedules)} epochs")
    both = f", ratio {times['ours'] / times['theirs']:.2f}" if len(times) == 2 else ""
    return f"to {reach:g} % under PGD-20: {', '.join(parts)}{both}"


def theirs(name: str, epochs: int, seed: int, where: Path, options: argparse.Namespace) -> Trained:
    folder = options.checkout.absolute() / "MNIST"
    script = THEIRS.format(script=folder / "train_mnist.py")
    given = [str(folder), "--epochs", str(epochs), "--seed", str(seed), *METHODS[name].theirs]
    done = started([sys.executable, "-c", script, *given], where, options)
    seconds = re.findall(r"- \d+ \t ([\d.]+) \t", done.stderr)
    if len(seconds) != epochs:
        raise SystemExit(f"{folder}: its script told the time of {len(seconds)} epochs of {epochs}")
    model = mnist_cnn((1, 28, 28), 10, mean=None, std=None)
    weights = checkpoints.load(where / "mnist_model")
    names = dict(zip(weights, model.state_dict(), strict=True))  # the same layers in their order
    model.load_state_dict({names[key]: value for key, value in weights.items()})
    return Trained(sum(map(float, seconds)), model.eval())


def ours(name: str, epochs: int, seed: int, where: Path, options: argparse.Namespace) -> Trained:
    given = ["dataset=mnist", "model=mnist_cnn", f"dataset.root={where.parent / 'mnist-data'}"]
    given += ["dataset.validation=0", "watchdog.action=warn", "watchdog.patience=null"]
    given += ["eval=none", "logger=none", f"device={options.device}", "hydra.run.dir=run"]
    given += [f"epochs={epochs}", f"seed={seed}"]
    command = [sys.executable, "-m", "advtrain", *METHODS[name].ours, *given]
    started(command, where, options)
    lines = (where / "run" / "metrics.jsonl").read_text().splitlines()
    model = mnist_cnn((1, 28, 28), 10, mean=None, std=None)
    last = where / "run" / "checkpoints" / "last.pt"
    checkpoints.restore(model, checkpoints.weights(checkpoints.load(last), last), last)
    return Trained(sum(json.loads(line)["seconds"] for line in lines), model.eval())


TRAININGS: dict[str, Callable[[str, int, int, Path, argparse.Namespace], Trained]] = {
    "theirs": theirs,
    "ours": ours,
}


def started(
    command: Sequence[str], where: Path, options: argparse.Namespace
) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads)}
    if options.device == "cpu":
        environment["CUDA_VISIBLE_DEVICES"] = ""
    done = subprocess.run(command, cwd=where, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command[:4])}: {done.stderr[-2000:]}")
    return done


def accuracies(model: nn.Module, x: Tensor, y: Tensor) -> tuple[float, float]:
    """Of `model`, clean and under PGD with 20 steps from a random start."""
    generator = torch.Generator().manual_seed(0)
    with crafting(model, "eval"):
        adversarial = pgd(
            model, x, y, threat=Linf(EPS), steps=20, step_size=EPS / 4, generator=generator
        )
    with torch.no_grad():
        right = [(model(each).argmax(1) == y).float().mean() for each in (x, adversarial)]
    return float(right[0]), float(right[1])


def keep(folder: Path, train: readers.Raw, test: readers.Raw) -> None:
    """Write `mnist-data` in `folder`, where their script looks for it, as MNIST's files are."""
    raw = folder / "mnist-data" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part, (x, y) in (("train", train), ("t10k", test)):
        for kind, values in (("images-idx3", x[:, 0].numpy()), ("labels-idx1", y.numpy())):
            head = bytes((0, 0, 8, values.ndim)) + np.array(values.shape, ">u4").tobytes()
            (raw / f"{part}-{kind}-ubyte").write_bytes(head + values.astype(np.uint8).tobytes())


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    form = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    form.add_argument("--checkout", type=Path, required=True, help="of locuslab/fast_adversarial")
    form.add_argument("--root", required=True, help="the folder with MNIST")
    form.add_argument("--methods", default="fgsm,pgd")
    form.add_argument("--epochs", type=_counts, default="3,6,10", help="lengths of schedules")
    form.add_argument("--reach", type=float, help="a robust accuracy in percent: the time to it")
    form.add_argument("--images", type=count, default=12_000, help="to train on")
    form.add_argument("--judged", type=count, default=1_000, help="test images")
    form.add_argument("--rounds", type=count, default=3)
    form.add_argument("--threads", type=count, default=1)
    here = torch.cuda.is_available()
    form.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if here else "cpu")
    form.add_argument("--markdown", action="store_true")
    options = form.parse_args(arguments)
    options.clock = "wall"
    for name in options.methods.split(","):
        if name not in METHODS:
            form.error(f"--methods: there is no {name}; allowed are {', '.join(METHODS)}")
    if options.device == "cuda" and not here:
        form.error("--device=cuda: no CUDA device is here. Use --device cpu.")
    if not (options.checkout / "MNIST" / "train_mnist.py").is_file():
        form.error(f"--checkout={options.checkout}: no MNIST/train_mnist.py is there")
    return options


def _counts(text: str) -> list[int]:
    return [count(each) for each in text.split(",")]


if __name__ == "__main__":
    main()

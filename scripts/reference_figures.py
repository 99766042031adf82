"""Our attacks beside figures of the authors' own code, on a public network.

    python scripts/reference_figures.py --checkpoint fgsm.pth --root DATA

The network is `MNIST/models/fgsm.pth` of https://github.com/locuslab/fast_adversarial, its images
are the first of MNIST's test split, the radius is 0.3. Figures of others are for these 1,000
images (200 where a row says so), most of them over several seeds; ours are for one. Its gradients
are masked, so that one start of PGD overstates by ten points what AutoAttack leaves, and small
differences between implementations show. The whole takes ten minutes on two cores.
"""

import argparse
from collections.abc import Iterator, Sequence
from functools import partial
from typing import NamedTuple

import torch
from bench_subject import Subject, subject
from torch import Generator, Tensor

from advtrain.attacks import objectives
from advtrain.attacks.apgd import apgd
from advtrain.attacks.autoattack import AutoAttack
from advtrain.attacks.gama import gama_fw, gama_pgd
from advtrain.attacks.pgd import pgd
from advtrain.attacks.square import SPAN, square
from advtrain.inference import swift
from advtrain.threat import L2, Linf
from advtrain.types import Attack

EPS = 0.3
BALL = Linf(EPS)
LONG = L2(2.0)
STAGES = ("85.0", "83.1", "82.8", "79.7")


class Row(NamedTuple):
    """A figure of someone's code, and the attack of ours that should give the same."""

    name: str
    settings: str
    theirs: str
    images: int
    attack: Attack
    starts: int = 1  # runs with other draws, of which an example must survive all


def attacks() -> Iterator[Row]:
    """In percent of images that are still classified right."""
    steps = partial(pgd, threat=BALL, step_size=0.01)
    gama = partial(gama_pgd, threat=BALL, steps=100)
    digits = {"weight": 5.0, "ramp": 0.5, "step": 1.0, "drops": (0.5, 0.75)}
    yield Row("PGD", "40 steps of 0.01, last", "90.0 to 91.2", 1000, partial(steps, steps=40))
    yield Row(
        "PGD", "the same, 5 starts", "88.0", 1000, partial(steps, steps=40, restarts=5, keep="any")
    )
    yield Row(
        "PGD, margin",
        "40 steps of 0.01, last",
        "91.2",
        1000,
        partial(steps, steps=40, objective=objectives.margin),
    )
    yield Row(
        "PGD",
        "50 steps of 0.01, 10 starts",
        "86.2 to 86.5",
        1000,
        partial(steps, steps=50, restarts=10, keep="any"),
    )
    yield Row("GAMA-PGD", "MNIST's, last", "84.7 to 85.2", 1000, partial(gama, **digits))
    yield Row("GAMA-PGD", "the same, 5 starts", "82.6", 1000, partial(gama, **digits), 5)
    yield Row("GAMA-PGD", "CIFAR-10's, last", "86.7 to 87.2", 1000, gama)
    yield Row(
        "GAMA-FW", "100 steps, last", "85.0 to 85.8", 1000, partial(gama_fw, threat=BALL, steps=100)
    )
    climb = partial(apgd, threat=BALL, steps=100)
    yield Row("APGD-CE", "100 steps", "84.5 to 85.0", 1000, climb)
    yield Row("APGD-DLR", "100 steps", "84.7 to 85.4", 1000, partial(climb, loss="dlr"))
    yield Row("APGD-T", "100 steps, 9 targets", "83.8", 1000, partial(climb, loss="dlr_targeted"))
    search = partial(square, queries=1000, schedule=SPAN)
    yield Row("Square", "1,000 queries", "86.7", 200, partial(search, threat=BALL))
    yield Row("Square", "1,000 queries, l2 2.0", "38.8", 200, partial(search, threat=LONG))


def standing(target: Subject, row: Row) -> float:
    """The share of the first images that survive every start, in percent, on the plain network."""
    x, y = target.x[: row.images], target.y[: row.images]
    fast, draws = swift(target.model, x[:16]), Generator().manual_seed(0)
    stand = right(target, x, y)
    for _ in range(row.starts):
        stand &= right(target, row.attack(fast, x, y, generator=draws), y)
    return 100 * stand.float().mean().item()


def right(target: Subject, x: Tensor, y: Tensor) -> Tensor:
    with torch.no_grad():
        return target.model(x).argmax(1) == y


def stages(target: Subject, images: int) -> Iterator[tuple[str, float]]:
    """AutoAttack's accuracy after each of its members, which get those that stand."""
    x, y = target.x[:images], target.y[:images]
    fast, draws = swift(target.model, x[:16]), Generator().manual_seed(0)
    stand = right(target, x, y)
    for name, member in AutoAttack(BALL).members(10).items():
        rows = stand.nonzero().squeeze(1)
        stand[rows] = right(target, member(fast, x[rows], y[rows], generator=draws), y[rows])
        yield name, 100 * stand.float().mean().item()


def main(arguments: Sequence[str] | None = None) -> None:
    form = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    form.add_argument("--checkpoint", required=True, help="fgsm.pth")
    form.add_argument("--root", required=True, help="folder of MNIST")
    form.add_argument("--threads", type=int, default=2)
    options = form.parse_args(arguments)
    torch.set_num_threads(options.threads)
    target = subject("mnist_cnn", 1000, options.root, options.checkpoint)
    target.model.requires_grad_(False)
    print("| attack | settings | images | others | ours |\n| --- | --- | --- | --- | --- |")
    for row in attacks():
        show(row.name, row.settings, row.images, row.theirs, f"{standing(target, row):.1f}")
    for (name, found), theirs in zip(stages(target, 1000), STAGES, strict=True):
        show("AutoAttack", f"standard, after {name}", 1000, theirs, f"{found:.1f}")


def show(*cells: object) -> None:
    print("| " + " | ".join(str(cell) for cell in cells) + " |", flush=True)


if __name__ == "__main__":
    main()

"""What winner-takes-all activations cost beside ReLU: the same network with either, taking turns.

    python scripts/bench_lwta.py --markdown

Ratios of a forward pass without gradients, of a forward pass and a backward one to the images, and
of a training pass (to the weights), within rounds. Evaluation mode but for the last.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from statistics import median

import torch
import torch.nn.functional as F
from benchmark import (
    CLOCKS,
    Table,
    chosen_device,
    count,
    heading,
    interleaved,
    ratio,
    require_clock,
)
from torch import Tensor, nn

from advtrain.memory import keep_freed
from advtrain.models.lwta_networks import lwta_cnn, lwta_mnist_cnn, lwta_wide_resnet
from advtrain.models.small import mnist_cnn, small_cnn
from advtrain.models.wide_resnet import wide_resnet

RAW = {"mean": None, "std": None}
DRAWS = {"train_temperature": 0.67, "test_temperature": 0.01}
COLUMNS = {"network": 10, "pass": 15, "ReLU, ms": 9, "LWTA, ms": 9, "LWTA over ReLU": 22}
SUBJECTS: dict[str, tuple[tuple[int, int, int], Callable, Callable]] = {
    "wrn_34_1": (
        (3, 32, 32),
        partial(wide_resnet, depth=34, width=1, dropout=0.0, initialisation="he"),
        partial(lwta_wide_resnet, depth=34, width=1),
    ),
    "mnist_cnn": ((1, 28, 28), mnist_cnn, lwta_mnist_cnn),
    "small_cnn": ((1, 28, 28), small_cnn, lwta_cnn),
}


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    keep_freed()
    torch.set_num_threads(options.threads)
    chosen_device(options)
    heading(options, f"batch {options.batch}, {options.competitors} competitors")
    table = Table(COLUMNS, markdown=options.markdown)
    for name in options.models:
        for row in measure(name, options):
            table.add(row)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    form = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    form.add_argument("--models", default=",".join(SUBJECTS), help="default: all there are")
    form.add_argument("--batch", type=count, default=64)
    form.add_argument("--competitors", type=int, default=2)
    form.add_argument("--rounds", type=count, default=11)
    form.add_argument("--threads", type=count, default=1)
    form.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu: this process alone")
    form.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    form.add_argument("--compile", action="store_true", help="both networks, by torch.compile")
    form.add_argument("--channels-last", action="store_true", help="weights and images so")
    form.add_argument("--markdown", action="store_true")
    options = form.parse_args(arguments)
    require_clock(form, options)
    options.models = [name for name in options.models.split(",") if name]
    for name in options.models:
        if name not in SUBJECTS:
            form.error(f"--models: there is no {name}; allowed are {', '.join(SUBJECTS)}")
    return options


def measure(name: str, options: argparse.Namespace) -> list[list[str]]:
    """The rows of one network."""
    shape, plain, lwta = SUBJECTS[name]
    torch.manual_seed(0)
    x = torch.rand((options.batch, *shape), device=options.device)
    y = torch.randint(10, (options.batch,), device=options.device)
    draws = {"competitors": options.competitors, **DRAWS}
    networks = {"ReLU": plain(shape, 10, **RAW), "LWTA": lwta(shape, 10, **draws, **RAW)}
    for network in networks.values():
        network.to(options.device)
        if options.channels_last:
            network.to(memory_format=torch.channels_last)
        if options.compile:
            network.compile()
    rows = []
    for what, run in PASSES.items():
        for network in networks.values():
            network.train(run is to_weights)
        runs: Mapping[str, Callable[[], object]] = {
            key: partial(run, network, x, y) for key, network in networks.items()
        }
        device = torch.device(options.device)
        seconds = interleaved(runs, rounds=options.rounds, clock=options.clock, device=device)
        times = [f"{1000 * median(seconds[key]):.2f}" for key in networks]
        rows.append([name, what, *times, str(ratio(seconds["LWTA"], seconds["ReLU"]))])
    return rows


@torch.no_grad()
def forward(network: nn.Module, x: Tensor, y: Tensor) -> None:
    network(x)


def to_images(network: nn.Module, x: Tensor, y: Tensor) -> None:
    leaf = x.detach().requires_grad_()
    torch.autograd.grad(F.cross_entropy(network(leaf), y), leaf)


def to_weights(network: nn.Module, x: Tensor, y: Tensor) -> None:
    torch.autograd.grad(F.cross_entropy(network(x), y), list(network.parameters()))


PASSES = {"forward": forward, "and to images": to_images, "and to weights": to_weights}


if __name__ == "__main__":
    main()

"""Timing side by side: contestants take turns in random order, ratios are taken within a round.

On a machine that others use too, minutes differ by more than programs do; within a round of a few
seconds they differ less, and the median over rounds is steadier still. `cpu` counts the time of
this process instead, which waiting for a core does not lengthen; for one thread only.
"""

import argparse
import gc
import os
import platform
import random
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from datetime import date
from functools import partial
from math import ceil
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from advtrain.channels import channels_last
from advtrain.checkpoints import CheckpointError
from advtrain.config import ConfigError
from advtrain.data.errors import DataError
from advtrain.footprint import Height
from advtrain.precision import TENSOR_FLOAT, full_precision, inner
from advtrain.programs import at_rest, compiled
from advtrain.runs import choose_device, require_able

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
SHORTEST = 0.03  # seconds; what takes less is repeated within its turn


class Pass(NamedTuple):
    """One call of a network: how many images, whether a gradient was taken back to them, and in
    what precision, fp32, bf16 or tf32."""

    images: int
    backward: bool
    precision: str = "fp32"

    @property
    def units(self) -> int:
        """Forward 1, back to the images 1, for each image."""
        return self.images * (1 + self.backward)


class Ratio(NamedTuple):
    middle: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.middle:.2f} ({self.low:.2f} to {self.high:.2f})"


class Table:
    """Rows as they come, in columns of these widths or for Markdown."""

    def __init__(self, columns: Mapping[str, int], *, markdown: bool) -> None:
        self.widths, self.markdown = list(columns.values()), markdown
        self.add(list(columns))
        if markdown:
            self.add(["---"] * len(columns))

    def add(self, cells: Sequence[str]) -> None:
        padded = [f"{cell:{width}}" for cell, width in zip(cells, self.widths, strict=True)]
        line = f"| {' | '.join(cells)} |" if self.markdown else "  ".join(padded).rstrip()
        print(line, flush=True)


class Tape:
    """A classifier that writes down its passes; attacks find its network under `model`."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.calls: list[tuple[int, str]] = []
        self.backward: set[int] = set()

    def __call__(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model(x)
        number = len(self.calls)
        self.calls.append((len(x), precision_now(self.model, x.device)))
        if logits.requires_grad:
            logits.register_hook(lambda gradient: self.backward.add(number))
        return logits

    def passes(self) -> list[Pass]:
        return [
            Pass(images, number in self.backward, precision)
            for number, (images, precision) in enumerate(self.calls)
        ]


class Taped(nn.Module):
    """The same as a module, for libraries that ask for one."""

    def __init__(self, tape: Tape) -> None:
        super().__init__()
        self.model = tape.model
        self.tape = tape
        self.train(tape.model.training)

    def forward(self, x: Tensor) -> Tensor:
        return self.tape(x)


def precision_now(model: nn.Module, device: torch.device) -> str:
    """What a pass of `model` computes in; no processor has TF32."""
    tensor_float = "tf32" if device.type == "cuda" else "fp32"
    return {None: "fp32", TENSOR_FLOAT: tensor_float}.get(inner(model), "bf16")


def limit(model: nn.Module, x: Tensor, passes: Sequence[Pass]) -> Callable[[], None]:
    """The passes of an attack through the network as it was given, and nothing else.

    In float32, whatever the attack computes in. Parameters are frozen, and gradients are taken to
    the images alone.
    """
    frozen = deepcopy(model).requires_grad_(False)
    batches = {
        size: x[torch.arange(size, device=x.device) % len(x)]
        for size in {each.images for each in passes if each.images}
    }

    def run() -> None:
        with full_precision(frozen):
            for size, backward, _ in passes:
                if not size:
                    continue
                if backward:
                    leaf = batches[size].detach().requires_grad_()
                    torch.autograd.grad(frozen(leaf).sum(), leaf)
                else:
                    with torch.no_grad():
                        frozen(batches[size])

    return run


def beside_tf32(
    name: str, run: Callable[[], None], device: torch.device
) -> dict[str, Callable[[], None]]:
    """A bare loop in float32 under `name`; on a GPU under `name, TF32`, too, by PyTorch's defaults.

    These have convolutions in TF32 and all else in float32, so that is what a loop of somebody who
    sets nothing costs.
    """
    runs = {name: run}
    if device.type == "cuda":
        runs[f"{name}, TF32"] = partial(_in_tf32, run)
    return runs


def _in_tf32(run: Callable[[], None]) -> None:
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = True
    try:
        run()
    finally:
        torch.backends.cudnn.allow_tf32 = before


def interleaved(
    contestants: Mapping[str, Callable[[], object]],
    *,
    rounds: int,
    clock: str,
    device: torch.device,
) -> dict[str, list[float]]:
    """Seconds per call of each contestant in each round; everyone runs before, to warm up: on a GPU
    three times, for graphs are recorded at the second."""

    def timed(run: Callable[[], object], times: int) -> float:
        torch.manual_seed(0)
        _wait(device)
        began = CLOCKS[clock]()
        for _ in range(times):
            run()
        _wait(device)
        return (CLOCKS[clock]() - began) / times

    times = {}
    for name, run in contestants.items():
        for _ in range(3 if device.type == "cuda" else 1):
            times[name] = ceil(SHORTEST / max(timed(run, 1), SHORTEST / 100))
    order, draws = list(contestants), random.Random(0)
    found: dict[str, list[float]] = {name: [] for name in order}
    enabled = gc.isenabled()
    gc.disable()
    try:
        for _ in range(rounds):
            gc.collect()
            draws.shuffle(order)
            for name in order:
                found[name].append(timed(contestants[name], times[name]))
    finally:
        if enabled:
            gc.enable()
    return found


def ratio(seconds: Sequence[float], base: Sequence[float]) -> Ratio:
    """Of the two in each round: the median, the least and the largest."""
    each = [a / b for a, b in zip(seconds, base, strict=True)]
    return Ratio(median(each), min(each), max(each))


def matrix_rate(device: torch.device, dtype: torch.dtype, clock: str) -> float:
    """FLOP per second of square matrix products, 2 per multiplication and sum: the best of five."""
    side, times = (8192, 20) if device.type == "cuda" else (1024, 1)
    left = torch.randn(side, side, device=device, dtype=dtype)
    right, seconds = left.clone(), []
    for _ in range(6):  # the first sets up
        _wait(device)
        began = CLOCKS[clock]()
        for _ in range(times):
            torch.mm(left, right)
        _wait(device)
        seconds.append((CLOCKS[clock]() - began) / times)
    return 2 * side**3 / min(seconds[1:])


def told_rate(device: torch.device, precision: str, clock: str) -> float:
    """`matrix_rate` in fp32, bf16 or tf32, printed."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    try:
        rate = matrix_rate(device, torch.bfloat16 if precision == "bf16" else torch.float32, clock)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
    print(f"matrix rate in {precision}: {rate / 1e12:.2f} TFLOP/s", end="\n\n", flush=True)
    return rate


def flop(model: nn.Module, x: Tensor, *more: object) -> int:
    """FLOP of one image in a forward pass, counted on `x`; its other passes are multiples."""
    with FlopCounterMode(display=False) as counter, torch.no_grad(), full_precision(model):
        model(x, *more)
    return int(counter.get_total_flops()) // len(x)


def peak(run: Callable[[], object], device: torch.device) -> int:
    """Bytes at the height of `run`, beyond what was there before.

    So weights, the state of an optimizer, other contestants and what CUDA graphs keep between calls
    are left out. On a processor tensors are counted as they are made, and compiled networks run as
    they are written: the figure is that of the plain network.
    """
    if device.type == "cuda":
        gc.collect()  # what is freed within would count for `run`
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        run()
        return int(torch.cuda.max_memory_allocated(device)) - before
    with at_rest(), Height() as height:
        run()
    return height.most


def count(text: str) -> int:
    """An option that is a whole number from 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}; allowed is a whole number from 1")
    return int(text)


def add_options(form: argparse.ArgumentParser) -> None:
    """Options of how a bench runs, the same for attacks, training and certificates."""
    form.add_argument("--rounds", type=count, default=9, help="turns of each contestant")
    form.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    form.add_argument(
        "--precision", choices=("fp32", "bf16"), default="fp32", help="of inner layers"
    )
    form.add_argument("--compile", choices=("true", "reduce-overhead"), help="as the key compile")
    form.add_argument("--threads", type=count, default=1)
    form.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu: this process alone")
    form.add_argument("--markdown", action="store_true", help="a table for the documentation")


def require_clock(form: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """End with a message where processor time would tell nothing."""
    if options.clock == "cpu" and (options.threads > 1 or options.device != "cpu"):
        form.error("--clock cpu adds up threads and sees no accelerator. Use --clock wall.")


def chosen_device(options: argparse.Namespace) -> torch.device:
    """`--device`, able to do what `--precision` and `--compile` ask; `options` get its name.

    SystemExit: it is not here, or not able.
    """
    precision = getattr(options, "precision", "fp32")
    with one_sentence():
        device = choose_device(options.device)
        require_able(device, precision, options.compile or False)
    options.device = str(device)
    return device


@contextmanager
def one_sentence() -> Iterator[None]:
    """What is wrong with a device, data or weights that were named, without a traceback."""
    try:
        yield
    except (CheckpointError, ConfigError, DataError) as error:
        raise SystemExit(str(error)) from error


def as_in_a_run(model: nn.Module, x: Tensor, choice: str | None) -> nn.Module:
    """A copy of `model` for images like `x`, laid and, if so chosen, compiled as in a run."""
    copy = channels_last(deepcopy(model), tuple(x.shape[1:]))
    return copy if choice is None else compiled(copy, graphs=choice == "reduce-overhead")


def heading(
    options: argparse.Namespace, *subject: str, others: Mapping[str, str | None] | None = None
) -> None:
    """What the figures depend on, with a line or more on the subject.

    `others`: versions of other libraries; one that is not installed, None, is named as skipped.
    """
    versions = {"torch": torch.__version__, **(others or {})}
    lines = [
        f"{date.today()}, {machine(torch.device(options.device))}",
        ", ".join(f"{name} {found}" for name, found in versions.items() if found),
        *subject,
        f"{options.rounds} rounds, medians (and extremes), {options.clock} time",
        "python " + " ".join(sys.argv),
        *(f"skipped: {name} is not installed" for name, found in versions.items() if not found),
    ]
    print("\n".join(lines), end="\n\n", flush=True)


def machine(device: torch.device) -> str:
    """The processor, its cores and the threads in use; the accelerator, if that does the work."""
    cores, threads = os.cpu_count(), torch.get_num_threads()
    host = f"{_processor()}, {cores} cores, {threads} thread{'s' if threads > 1 else ''}"
    return f"{torch.cuda.get_device_name(device)}; {host}" if device.type == "cuda" else host


def _processor() -> str:
    listing = Path("/proc/cpuinfo")
    lines = listing.read_text().splitlines() if listing.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)

"""What certificates cost beside a bare loop over noisy images, and beside other code.

    python scripts/bench_certification.py --model mnist_cnn --cohen core.py --markdown

The bare loop draws noise into a buffer, adds it to the images, and calls the network without
gradients: the same network and batch size, as many noisy images; it counts and decides nothing.
All contestants take turns. `speed` is noisy images per second over those of the bare loop in the
same round. Ours is on a copy whose kernels lie channels last where a run lays them so, with
--compile a compiled one; the others have the network as PyTorch stores it. Of the rate and MiB are
those of bench_attacks. The guess and radius of the first image are shown, for each draws noise of
its own.

`--cohen` names core.py of https://github.com/locuslab/smoothing, whose device is changed as it is
read; it is left out where no file is named, and so is ART where it is not installed. Both ask
statsmodels for the interval, and the former an old SciPy for the test: where these are missing,
functions of SciPy stand in for them.
"""

import argparse
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from statistics import median
from types import ModuleType
from typing import Any
from unittest.mock import patch

import torch
from bench_peers import installed
from bench_subject import KINDS, Subject, subject
from benchmark import (
    Table,
    add_options,
    as_in_a_run,
    chosen_device,
    count,
    flop,
    heading,
    interleaved,
    peak,
    ratio,
    require_clock,
    told_rate,
)
from scipy import stats
from torch import nn

from advtrain.certification.noise import KINDS as NOISES
from advtrain.certification.smoothing import Smoothed
from advtrain.memory import keep_freed
from advtrain.precision import low_precision

Certificate = tuple[int, float]
Run = Callable[[], Certificate | None]

COLUMNS = {
    "by": 10,
    "ms": 10,
    "noisy images/s": 14,
    "speed, of the bare loop": 24,
    "first image": 16,
    "of the rate": 11,
    "MiB": 7,
}


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    if options.keep_freed:
        keep_freed()
    torch.set_num_threads(options.threads)
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    warnings.filterwarnings("ignore")  # the others' own
    device = chosen_device(options)
    target = subject(options.model, options.images, options.root, options.checkpoint, device)
    if options.precision == "bf16":
        low_precision(target.model)
    heading(
        options,
        f"{options.model}, {target.story}; {options.images} images, n0 {options.n0}, n {options.n}",
        *(["skipped: cohen, as --cohen names no file"] if options.cohen is None else []),
        others={"art": installed("art")},
    )
    with supplied():
        rate = told_rate(device, options.precision, options.clock)
        table = Table(COLUMNS, markdown=options.markdown)
        for row in compare(target, options, rate):
            table.add(row)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    form = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    form.add_argument("--model", choices=KINDS, default="mnist_cnn")
    form.add_argument("--images", type=count, default=1, help="certified in one call")
    form.add_argument("--n0", type=count, default=100)
    form.add_argument("--n", type=count, default=10_000)
    form.add_argument("--alpha", type=float, default=0.001)
    form.add_argument("--sigma", type=float, default=0.25)
    form.add_argument("--noise", choices=NOISES, default="gaussian", help="of ours and the loop")
    form.add_argument("--batch", type=count, default=1000)
    form.add_argument("--cohen", type=Path, help="core.py of the paper's authors")
    add_options(form)
    form.add_argument("--keep-freed", action="store_true", help="as advtrain does, see its memory")
    form.add_argument("--checkpoint", help="weights; without it, a brief training or none")
    form.add_argument("--root", help="folder of MNIST or CIFAR-10; without it, small digits")
    options = form.parse_args(arguments)
    require_clock(form, options)
    if options.cohen is not None and not options.cohen.is_file():
        form.error(f"--cohen: {options.cohen} is no file. Name the core.py of the authors.")
    if options.noise != "gaussian" and options.cohen:
        form.error("the authors' code knows Gaussian noise only. Leave out --cohen.")
    return options


def compare(target: Subject, options: argparse.Namespace, rate: float) -> Iterator[Sequence[str]]:
    """A row per contestant."""
    runs: dict[str, Run] = {"bare loop": bare(target, options), "ours": ours(target, options)}
    if options.cohen is not None:
        runs["cohen"] = cohen(target, options)
    if installed("art") and options.noise == "gaussian":
        runs["art"] = art(target, options)
    first = {name: run() for name, run in runs.items()}
    seconds = interleaved(runs, rounds=options.rounds, clock=options.clock, device=target.x.device)
    total = options.images * (options.n0 + options.n)
    floor = total * flop(target.model, target.x[:1]) / rate
    for name, each in seconds.items():
        found = first[name]
        yield [
            name,
            f"{1000 * median(each):.1f}",
            f"{total / median(each):.0f}",
            str(ratio(seconds["bare loop"], each)),
            f"{found[0]}, {found[1]:.3f}" if found else "",
            f"{floor / median(each):.2f}",
            f"{peak(runs[name], target.x.device) / 2**20:.0f}",
        ]


def bare(target: Subject, options: argparse.Namespace) -> Run:
    """As many noisy images, in batches that hold draws of one image or of several."""
    model, x, noise = target.model, target.x, NOISES[options.noise]
    total = options.images * (options.n0 + options.n)
    images = x[torch.arange(options.batch, device=x.device) % len(x)]
    drawn, noisy = torch.empty_like(images), torch.empty_like(images)
    stream = torch.Generator(x.device).manual_seed(0)

    def run() -> None:
        with torch.inference_mode():
            for done in range(0, total, options.batch):
                size = min(options.batch, total - done)
                noise.fill(drawn[:size], stream)
                torch.add(images[:size], drawn[:size], alpha=options.sigma, out=noisy[:size])
                model(noisy[:size])

    return run


def ours(target: Subject, options: argparse.Namespace) -> Run:
    model = as_in_a_run(target.model, target.x, options.compile)
    smoothed = Smoothed(model, 10, options.sigma, options.batch, NOISES[options.noise])
    seeds = range(len(target.x))

    def run() -> Certificate:
        classes, radii = smoothed.certify(
            target.x, options.n0, options.n, options.alpha, seeds=seeds
        )
        return int(classes[0]), float(radii[0])

    return run


def cohen(target: Subject, options: argparse.Namespace) -> Run:
    smooth = published(options.cohen, options.device).Smooth(target.model, 10, options.sigma)
    settings = options.n0, options.n, options.alpha, options.batch

    def run() -> Certificate:
        found = [smooth.certify(image, *settings) for image in target.x]
        return found[0]

    return run


def published(path: Path, device: str) -> Any:
    """The authors' module, with what it misses today."""
    text = re.sub(r"device='cuda'", f"device={device!r}", path.read_text())
    module = ModuleType("core")
    exec(compile(text, str(path), "exec"), module.__dict__)
    return module


@contextmanager
def supplied() -> Iterator[None]:
    """Inside, others find the statistics that they ask for."""
    lacking = ModuleType("statsmodels.stats.proportion")
    lacking.proportion_confint = _interval  # type: ignore[attr-defined]
    homes = ("statsmodels", "statsmodels.stats")
    stand_ins = {name: ModuleType(name) for name in homes} | {lacking.__name__: lacking}
    known = installed("statsmodels") is not None
    with (
        patch.dict(sys.modules, {} if known else stand_ins),
        patch.object(stats, "binom_test", _binom_test, create=True),
    ):
        yield


def _interval(count: int, trials: int, alpha: float, method: str) -> tuple[float, float]:
    assert method == "beta"
    low = stats.beta.ppf(alpha / 2, count, trials - count + 1) if count else 0.0
    high = stats.beta.isf(alpha / 2, count + 1, trials - count) if count < trials else 1.0
    return float(low), float(high)


def _binom_test(hits: int, trials: int, p: float) -> float:
    return float(stats.binomtest(int(hits), int(trials), p).pvalue)


def art(target: Subject, options: argparse.Namespace) -> Run:
    library = import_module("art.estimators.certification.randomized_smoothing")
    smooth = library.PyTorchRandomizedSmoothing(
        model=target.model,
        loss=nn.CrossEntropyLoss(),
        input_shape=tuple(target.x.shape[1:]),
        nb_classes=10,
        device_type="gpu" if target.x.is_cuda else "cpu",
        sample_size=options.n0,
        scale=options.sigma,
        alpha=options.alpha,
    )
    x = target.x.cpu().numpy()

    def run() -> Certificate:
        classes, radii = smooth.certify(x, n=options.n, batch_size=options.batch)
        return int(classes[0]), float(radii[0])

    return run


if __name__ == "__main__":
    main()

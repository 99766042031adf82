"""What a training step costs beside a bare loop that makes the same passes.

    python scripts/bench_training.py --model mnist_cnn --defenses pgd_at,trades,free --markdown

The passes of a step are written down as the method makes them: forward alone, forward and back to
the images with frozen weights, or forward and back to the weights. The bare loop makes them again,
in that order and at those batch sizes, then takes the same optimizer's step; it crafts nothing,
logs nothing and averages nothing. It is in float32 whatever the method computes in, its network
stored as PyTorch stores it. On a GPU there is one with convolutions in TF32, too, as PyTorch has
them for those who set nothing. `of one that draws` is beside a bare loop in float32 that also draws
the random numbers that the method draws, by the same calls of PyTorch, and throws them away; empty
where it draws none. All take turns. Every method is the one of its YAML, on random images.

Units: forward 1, back to the images 1, to the weights 2. Of the rate: the FLOP of all units over
those that square matrix products of this device make in the same time, in the same precision. MiB:
the height of memory in a step, gradients among it, but not what was there before (weights, the
optimizer's state); on a processor it is that of the network as written, compiled or not.
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from functools import partial
from math import ceil
from statistics import median
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from bench_subject import KINDS
from benchmark import (
    Table,
    add_options,
    beside_tf32,
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
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from advtrain.averages import Last
from advtrain.channels import channels_last
from advtrain.conditions import Condition
from advtrain.config import build, conf_dir, make, plain
from advtrain.grid import composed, ours
from advtrain.memory import keep_freed
from advtrain.optimizers import lay_moments
from advtrain.precision import full_precision, low_precision
from advtrain.programs import compiled
from advtrain.strided import sooner
from advtrain.training import Method, TrainState, train_step
from advtrain.types import Moment

COLUMNS = {
    "method": 14,
    "passes": 34,
    "units": 6,
    "ms": 9,
    "images/s": 9,
    "epoch of 50,000, s": 18,
    "of the rate": 11,
    "MiB": 7,
    "of the bare loop": 20,
    "of one that draws": 20,
}
OF_TF32 = {"of the bare loop, TF32": 21}  # on a GPU
EPOCH = 50_000  # images, as CIFAR has them for training
LAYERS = (nn.Conv2d, nn.Linear)
STAND_INS = {
    "oat": {"mnist_cnn": "oat_small_cnn", "resnet18": "oat_resnet34"},
    "lwta": {"mnist_cnn": "lwta_mnist_cnn"},
}
"""What stands in for a network where the method asks for one of a kind."""
NOW = Moment(step=101, epoch=1.01, progress=0.505, batch=1)  # GAT and NuAT guide their attack here


class Pass(NamedTuple):
    """One call of the network in a step.

    `back`: how far the gradient goes: `nowhere`, to the `images`, to the `weights`, to `both`, or
    to the weights through the gradient of the images (`twice`).
    """

    images: int
    training: bool
    back: str
    condition: Condition | None = None  # what a conditional network was told

    @property
    def units(self) -> int:
        return 1 + {"nowhere": 0, "images": 1, "weights": 2, "both": 2, "twice": 5}[self.back]


class Draws(TorchDispatchMode):
    """Inside, calls that draw random numbers are written down, but those of the network itself."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Callable[[], object]] = []
        self.within = False  # a pass of the network

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if torch.Tag.nondeterministic_seeded in func.tags and not self.within:
            self.calls.append(partial(func, *args, **kwargs))
        return func(*args, **kwargs)


class Step(NamedTuple):
    """A network with a method and its state, and a batch."""

    state: TrainState
    method: Method
    x: Tensor
    y: Tensor

    def __call__(self) -> None:
        train_step(self.state, self.x, self.y, NOW, self.method)


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    keep_freed()
    torch.set_num_threads(options.threads)
    device = chosen_device(options)
    heading(
        options,
        f"{options.model}, batch {options.batch}, {options.precision}, attacks of {options.steps} "
        "steps",
    )
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    rate = told_rate(device, options.precision, options.clock)
    table = Table(columns(device), markdown=options.markdown)
    for name in options.defenses:
        table.add(measure(name, options, rate))


def columns(device: torch.device) -> dict[str, int]:
    return COLUMNS | (OF_TF32 if device.type == "cuda" else {})


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    known = sorted(path.stem for path in (conf_dir() / "defense").glob("*.yaml"))
    form = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    form.add_argument("--model", choices=KINDS, default="mnist_cnn")
    form.add_argument("--defenses", default=",".join(known), help="default: all there are")
    form.add_argument("--batch", type=count, default=128)
    form.add_argument("--steps", type=count, default=10, help="of attacks that have a choice")
    add_options(form)
    options = form.parse_args(arguments)
    require_clock(form, options)
    options.defenses = [name for name in options.defenses.split(",") if name]
    for name in options.defenses:
        if name not in known:
            form.error(f"--defenses: there is no {name}; allowed are {', '.join(known)}")
    return options


def measure(name: str, options: argparse.Namespace, rate: float) -> list[str]:
    """The row of one method; of one that refuses this network, why."""
    device = torch.device(options.device)
    try:
        step = prepared(name, options)
        with recorded(step.state.model) as (passes, draws):
            step()
    except ValueError as error:
        return [name, str(error).split(". ")[0], *[""] * (len(columns(device)) - 2)]
    loops = beside_tf32("bare", bare(step, passes), device)
    runs: dict[str, Callable[[], None]] = {name: step, **loops}
    if draws:
        runs["drawing"] = bare(step, passes, draws)
    images = len(step.x)
    units = sum(each.units for each in passes)
    of_passes = sum(each.units * each.images for each in passes)
    floor = of_passes * flop_of(step, passes[0]) / rate
    if options.compile:
        compiled(step.state.model, graphs=options.compile == "reduce-overhead")
    with sooner(step.state.model):  # as `epochs` does; the bare loops have plain networks
        seconds = interleaved(runs, rounds=options.rounds, clock=options.clock, device=device)
        step.state.optimizer.zero_grad()  # else those of the last step make room for the next ones
        height = peak(step, device)
    return [
        name,
        words(passes),
        str(units),
        f"{1000 * median(seconds[name]):.1f}",
        f"{images / median(seconds[name]):.0f}",
        f"{EPOCH * median(seconds[name]) / images:.1f}",
        f"{floor / median(seconds[name]):.2f}",
        f"{height / 2**20:.0f}",
        str(ratio(seconds[name], seconds["bare"])),
        str(ratio(seconds[name], seconds["drawing"])) if draws else "",
        *(str(ratio(seconds[name], seconds[other])) for other in loops if other != "bare"),
    ]


def flop_of(step: Step, first: Pass) -> int:
    """FLOP of an image in a forward pass of the network."""
    given = () if first.condition is None else (first.condition,)
    return flop(deepcopy(step.state.model).eval(), step.x[: first.images], *given)


def prepared(name: str, options: argparse.Namespace) -> Step:
    """A step of `defense=name` on this network, with the optimizer that it comes with.

    ValueError: the method is not for such a network.
    """
    kind = KINDS[options.model]
    dataset = "mnist" if options.model == "mnist_cnn" else "cifar10"
    own = STAND_INS.get(name, {}).get(options.model, options.model)
    overrides = [f"defense={name}", f"dataset={dataset}", f"model={own}"]
    with composed([*overrides, f"attack.steps={options.steps}"]) as composition:
        config = plain(ours(composition))
    torch.manual_seed(0)
    model = make(config["model"], kind.shape, 10, path="model").to(options.device)
    if options.precision == "bf16":
        low_precision(model)
    channels_last(model, kind.shape)  # as `make_model` does
    optimizer = make(config["optimizer"], model.parameters(), path="optimizer")
    defense = build(config["defense"], path="defense")
    defense.requires(model)
    state = TrainState(model.train(), optimizer, Last(model, 1), defense)
    method = Method(build(config["descent"], path="descent"), {}, {}, seed=0)
    x = torch.rand((options.batch, *kind.shape), device=options.device)
    y = torch.randint(10, (options.batch,), device=options.device)
    return Step(state, method, x, y)


@contextmanager
def recorded(model: nn.Module) -> Iterator[tuple[list[Pass], list[Callable[[], object]]]]:
    """Inside, passes of `model` are written down, with how far gradients went; and draws.

    Passes are seen at the first layer, for some methods call `features` or `forward` itself.
    """
    calls: list[tuple[int, bool, bool, bool, Condition | None]] = []
    twice: set[int] = set()
    gradient = torch.autograd.grad

    def called(layer: nn.Module, given: Any, output: Tensor) -> None:
        weights = output.requires_grad and any(p.requires_grad for p in model.parameters())
        calls.append((len(output), layer.training, weights, given[0].requires_grad, told[0]))

    def watched(*args: Any, **more: Any) -> Any:
        if more.get("create_graph"):
            twice.add(len(calls) - 1)
        return gradient(*args, **more)

    def asked(network: nn.Module, given: Any, more: Any) -> None:
        told[:] = [more.get("condition", given[1] if len(given) > 1 else None)]
        drawn.within = True

    def answered(network: nn.Module, given: Any, output: Tensor) -> None:
        drawn.within = False

    drawn = Draws()
    told: list[Condition | None] = [None]
    passes: list[Pass] = []
    first = next(layer for layer in model.modules() if isinstance(layer, LAYERS))
    handles = (
        model.register_forward_pre_hook(asked, with_kwargs=True),
        model.register_forward_hook(answered),
        first.register_forward_hook(called),
    )
    torch.autograd.grad = watched
    try:
        with drawn:
            yield passes, drawn.calls
    finally:
        for handle in handles:
            handle.remove()
        torch.autograd.grad = gradient
        for number, (images, training, weights, leaf, condition) in enumerate(calls):
            back = "both" if weights and leaf else "weights" if weights else "images"
            if number in twice:
                back = "twice"
            elif not weights and not leaf:
                back = "nowhere"
            passes.append(Pass(images, training, back, condition))


def bare(
    step: Step, passes: Sequence[Pass], draws: Sequence[Callable[[], object]] = ()
) -> Callable[[], None]:
    """The same passes and the optimizer's step on a network of its own, and nothing but `draws`."""
    (model, optimizer) = deepcopy((step.state.model, step.state.optimizer))
    model.to(memory_format=torch.contiguous_format)
    lay_moments(optimizer)
    frozen = deepcopy(model).requires_grad_(False)
    for mine, theirs in zip(frozen.parameters(), model.parameters(), strict=True):
        mine.data = theirs.data  # one set of weights, seen with and without a wish for gradients
    copies = ceil(max(each.images for each in passes) / len(step.x))  # of an image in a pass
    x, y = torch.cat([step.x] * copies), torch.cat([step.y] * copies)

    def run() -> None:
        with full_precision(model), full_precision(frozen):
            passed()

    def passed() -> None:
        for draw in draws:
            draw()
        losses = []
        for images, training, back, condition in passes:
            net, given, labels = frozen, x[:images], y[:images]
            more = () if condition is None else (condition,)
            if back in ("weights", "both", "twice"):
                net = model
            if back in ("images", "both", "twice"):
                given = given.detach().requires_grad_()
            if net.training != training:
                net.train(training)
            if back == "nowhere":
                with torch.no_grad():
                    net(given, *more)
                continue
            loss = F.cross_entropy(net(given, *more), labels)
            if back == "images":
                torch.autograd.grad(loss, given)
                continue
            losses.append(loss)
            if back == "twice":
                (gradient,) = torch.autograd.grad(loss, given, create_graph=True)
                losses.append(gradient.square().sum())
        optimizer.zero_grad()
        torch.stack(losses).sum().backward()
        optimizer.step()

    return run


def words(passes: Sequence[Pass]) -> str:
    """As `1 F, 10 F+images, 2 F+weights`."""
    names = {"nowhere": "F", **{each: f"F+{each}" for each in ("images", "weights", "both")}}
    counts = {
        back: sum(each.back == back for each in passes)
        for back in ("nowhere", "images", "weights", "both", "twice")
    }
    return ", ".join(f"{n} {names.get(back, 'F+' + back)}" for back, n in counts.items() if n)


if __name__ == "__main__":
    main()

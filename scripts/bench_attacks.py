"""What our attacks cost beside their passes through the network, and beside other libraries.

    python scripts/bench_attacks.py --model mnist_cnn --attacks fgsm,pgd --markdown

The limit of an attack is the time of its own passes through the network as it was given, with
frozen parameters, forward alone or forward and back to the images, at the batch sizes that it had.
Ours run on a faster copy of the network, made once, as evaluations do; `as is` without it.
All contestants of an attack run in turns. Read ratios of one table with each other, never times of
two. Verdicts are taken afresh on the plain network in float32, and so is the limit; on a GPU there
is one with convolutions in TF32, too, which PyTorch computes by default. With --compile
ours run on a compiled copy instead, as evaluations do, and all others as before; passes are counted
without it, and images that a program fills its batch up with are none.

Of the rate: the FLOP of all passes over those that square matrix products of this device make in
the same time, each pass in its own precision: under bf16 FAB stays in float32, and so does Square,
on a GPU in TF32. MiB: the height of memory in a run beyond what was there before, of the plain
network on a processor.
"""

import argparse
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from copy import deepcopy
from functools import partial
from statistics import median
from typing import Any

import torch
from bench_peers import PEERS, Settings, bound, installed
from bench_subject import KINDS, Subject, subject
from benchmark import (
    Pass,
    Table,
    Tape,
    Taped,
    add_options,
    as_in_a_run,
    beside_tf32,
    chosen_device,
    count,
    flop,
    heading,
    interleaved,
    limit,
    peak,
    ratio,
    require_clock,
    told_rate,
)
from torch import Tensor, nn

from advtrain.attacks.apgd import apgd
from advtrain.attacks.autoattack import PROBES, AutoAttack, autoattack
from advtrain.attacks.mim import mim
from advtrain.attacks.pgd import fgsm, pgd
from advtrain.attacks.worst_of import worst_of
from advtrain.inference import swift
from advtrain.memory import keep_freed
from advtrain.precision import full_precision, is_low, low_precision
from advtrain.threat import L2, Linf
from advtrain.types import Attack, Threat

Make = Callable[[Any], Callable[[], Tensor] | None]
"""Prepares an attack on a network or a tape; what that returns is run and timed, None: no such."""

ATTACKS = ("fgsm", "pgd", "pgd_l2", "mim", "apgd", "autoattack")
COLUMNS = {
    "attack": 10,
    "by": 13,
    "passes F/B": 12,
    "ms": 9,
    "of the limit": 19,
    "of ours": 19,
    "images/s": 9,
    "of the rate": 11,
    "MiB": 7,
    "robust": 7,
    "differ": 6,
}
OURS, AS_IS, FULL = "ours", "ours, as is", "ours, fp32"
PLAIN = {"cpu": ["fp32"], "cuda": ["fp32", "tf32"]}  # precisions of the limits


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    keep_freed()
    torch.set_num_threads(options.threads)
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    warnings.filterwarnings("ignore")  # the peers' own
    device = chosen_device(options)
    target = subject(options.model, options.batch, options.root, options.checkpoint, device)
    if options.precision == "bf16":
        low_precision(target.model)
    fast = faster(target, options.compile)
    peers = {peer: installed(peer) for peer in options.peers}
    right = f"{accuracy(target, target.x):.1%} of {len(target.x)} right"
    heading(options, f"{options.model}, {target.story}; {right}", others=peers)
    rates = {
        precision: told_rate(device, precision, options.clock)
        for precision in sorted({options.precision, *PLAIN[device.type]})
    }
    table = Table(COLUMNS, markdown=options.markdown)
    for attack in options.attacks:
        present = [peer for peer, known in peers.items() if known]
        for row in compare(attack, target, fast, present, options, rates):
            table.add(row)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    form = argparse.ArgumentParser(description=__doc__, formatter_class=_Formatter)
    attacks, peers = partial(_chosen, allowed=ATTACKS), partial(_chosen, allowed=PEERS)
    form.add_argument("--model", choices=KINDS, default="mnist_cnn")
    form.add_argument("--attacks", type=attacks, default="fgsm,pgd,pgd_l2,mim,apgd")
    form.add_argument("--peers", type=peers, default=",".join(PEERS), help="'' for none")
    form.add_argument("--batch", type=count, default=128, help="images, attacked together")
    form.add_argument("--steps", type=count, default=10, help="of all but fgsm and autoattack")
    form.add_argument(
        "--queries", type=count, help="of autoattack, which then takes --steps and has no peers"
    )
    add_options(form)
    form.add_argument("--checkpoint", help="weights; without it, a brief training")
    form.add_argument("--root", help="folder of MNIST or CIFAR-10; without it, small digits")
    options = form.parse_args(arguments)
    require_clock(form, options)
    if options.queries and options.peers:
        form.error("--queries makes another autoattack than the peers'. Add --peers ''.")
    return options


class _Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    pass


def _chosen(text: str, allowed: Collection[str]) -> list[str]:
    names = [name for name in text.split(",") if name]
    unknown = [name for name in names if name not in allowed]
    if unknown:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r}; allowed are {', '.join(allowed)}")
    return names


def faster(target: Subject, choice: str | None) -> nn.Module:
    """The network that an evaluation attacks; a compiled one has no swift copy."""
    if choice is None:
        return swift(target.model, target.x[:PROBES])
    return as_in_a_run(target.model, target.x, choice)


def compare(
    attack: str,
    target: Subject,
    fast: nn.Module,
    peers: Sequence[str],
    options: argparse.Namespace,
    rates: Mapping[str, float],
) -> Iterator[Sequence[str]]:
    """One row per contestant of `attack`; `rates` by precision, in FLOP per second."""
    model, x, y, *_ = target
    threat, settings = setting(attack, target, options)
    run = ours(attack, threat, settings, options.queries)
    makes: dict[str, Make] = {
        OURS: lambda net: partial(run, fast if net is model else net, x, y),
        AS_IS: lambda net: partial(run, net, x, y),
    }
    if attack == "autoattack":  # which takes a copy by itself
        del makes[AS_IS]
    if is_low(model):
        makes[FULL] = lambda net: partial(_fully, run, net, x, y)
    for peer in peers:
        makes[peer] = lambda net, peer=peer: bound(PEERS[peer](attack, net, settings), x, y)
    found = {name: taped(make, model, module=name in peers) for name, make in makes.items()}
    passes = {name: each for name, each in found.items() if each is not None}
    runs = {name: makes[name](deepcopy(model) if name in peers else model) for name in passes}
    stands = {name: standing(target, seeded(run)) for name, run in runs.items()}
    limits = beside_tf32("limit", limit(model, x, passes[OURS]), x.device)
    contestants = {**limits, **runs}
    for name, precision in zip(limits, ("fp32", "tf32"), strict=False):
        passes[name] = [each._replace(precision=precision) for each in passes[OURS]]
    seconds = interleaved(
        contestants,
        rounds=options.rounds,
        clock=options.clock,
        device=x.device,
    )
    of_image = flop(model, x[:2])
    for name, each in seconds.items():
        floor = sum(made.units * of_image / rates[made.precision] for made in passes[name])
        yield [
            attack,
            name,
            shown(passes[name], len(x)),
            f"{1000 * median(each):.1f}",
            str(ratio(each, seconds["limit"])),
            str(ratio(each, seconds[OURS])),
            f"{len(x) / median(each):.0f}",
            f"{floor / median(each):.2f}",
            f"{peak(contestants[name], x.device) / 2**20:.0f}",
            f"{stands[name].float().mean():.1%}" if name in stands else "",
            str(int((stands[name] != stands[OURS]).sum())) if name in stands else "",
        ]


def _fully(run: Attack, net: Any, x: Tensor, y: Tensor) -> Tensor:
    """`run` on the network in float32."""
    with full_precision(net if isinstance(net, nn.Module) else net.model):
        return run(net, x, y)


def setting(attack: str, target: Subject, options: argparse.Namespace) -> tuple[Threat, Settings]:
    threat = L2(target.eps["l2"]) if attack == "pgd_l2" else Linf(target.eps["linf"])
    step_size = (1.0 if attack == "mim" else 2.5) * threat.eps / options.steps
    return threat, Settings(threat.eps, options.steps, step_size, options.batch)


def ours(attack: str, threat: Threat, settings: Settings, queries: int | None) -> Attack:
    steps = {"steps": settings.steps, "step_size": settings.step_size}
    if attack == "autoattack" and queries:  # a quicker one of the same build
        members = AutoAttack(threat, steps=settings.steps, queries=queries).members
        return partial(worst_of, threat=threat, members=members, batch_size=settings.batch)
    known: dict[str, Attack] = {
        "fgsm": partial(fgsm, threat=threat),
        "pgd": partial(pgd, threat=threat, **steps),
        "pgd_l2": partial(pgd, threat=threat, **steps),
        "mim": partial(mim, threat=threat, decay=1.0, **steps),
        "apgd": partial(apgd, threat=threat, steps=settings.steps),
        "autoattack": partial(autoattack, threat=threat, batch_size=settings.batch),
    }
    return known[attack]


def taped(make: Make, model: nn.Module, *, module: bool) -> list[Pass] | None:
    """The passes of one run; None where a peer lacks the attack."""
    tape = Tape(deepcopy(model))
    run = make(Taped(tape) if module else tape)
    if run is None:
        return None
    seeded(run)
    return tape.passes()


def seeded(run: Callable[[], Tensor]) -> Tensor:
    torch.manual_seed(0)
    return run()


def shown(passes: Sequence[Pass], images: int) -> str:
    """Forward and backward passes per image."""
    forward = sum(each.images for each in passes) / images
    backward = sum(each.images for each in passes if each.backward) / images
    return f"{forward:.4g}/{backward:.4g}"


def standing(target: Subject, x_adv: Tensor) -> Tensor:
    """Which images the plain network gets right after an attack, (B,); NaN fools nobody."""
    with torch.no_grad(), full_precision(target.model):
        logits = target.model(x_adv)
    return (logits.argmax(1) == target.y) | ~torch.isfinite(logits).all(1)


def accuracy(target: Subject, x: Tensor) -> float:
    return float(standing(target, x).float().mean())


if __name__ == "__main__":
    main()

"""One certificate per test example, into certify.tsv; goes on after the last line that is there."""

import logging
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from math import ceil, prod
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn

from advtrain.certification.adaptive import Answers, settle
from advtrain.certification.draws import DRAWS, Drawn
from advtrain.certification.lines import claim
from advtrain.certification.log import CERTIFICATES, Certificate, Writer, read, repair
from advtrain.certification.noise import KINDS, Noise, linf, norm
from advtrain.certification.premises import doubts
from advtrain.certification.smoothing import Smoothed, streams_of
from advtrain.certification.summary import default_radii, summarise
from advtrain.channels import lying_well
from advtrain.exchange import divided, of_leader
from advtrain.fingerprints import fingerprint
from advtrain.modes import crafting
from advtrain.plans import Certification
from advtrain.portions import Room
from advtrain.precision import computing_in
from advtrain.progress import Progress
from advtrain.runs import Setting
from advtrain.seeding import derive, stream
from advtrain.world import here, leads

logger = logging.getLogger(__name__)

AT_ONCE = 10  # images between two looks at signals and lines on disk, or as many as fill a batch
POOLED = 250  # images that share their forward passes, where each takes only the draws it needs


def certify(
    model: nn.Module,
    setting: Setting,
    plan: Certification,
    seen: str,
    stop: Callable[[], None],
    room: Room,
) -> dict[str, Any]:
    """Certify the first `plan.size` test examples; the entry `certified` of results.json.

    Certificates are those of the network as it is, in `plan.precision`, not of a faster copy with
    other rounding. idx is the place of an image among the test images of its data set; its noise
    depends on that and on the seed alone, so several processes divide the images. `seen` names
    network and examples; certificates of others, told by certify.json, are replaced.

    Where radii are asked for, acr is None: an image may have more than the largest it is certified
    for, so their mean is no average radius. draws is the mean number that an example took.
    """
    config, examples = setting.config, setting.data.test
    size = min(len(examples), plan.size or len(examples))
    noise, radii = KINDS[plan.noise], plan.asked
    kind = {"norm": norm(noise), "noise": plan.noise, "precision": plan.precision}
    asked = {"sigma": plan.sigma, "n0": plan.n0, "n": plan.n, "alpha": plan.alpha, **kind}
    if radii is not None:
        asked["radii"] = radii
    key = fingerprint(seen, asked, config["seed"])
    log, drawn = setting.directory / "certify.tsv", setting.directory / "draws.tsv"
    header = partial(claim, log.with_suffix(".json"), key, {**asked, "seed": config["seed"]})
    classes = len(setting.data.classes)
    smoothed = Smoothed(model, classes, plan.sigma, plan.batch_size, noise, room)
    source = examples.source[:size].tolist()

    def done_before() -> set[int]:
        header([log, drawn])
        known = repair(log).certificates
        if radii is not None:  # lines whose numbers of draws are lost are made once more
            counted = {each.index for each in DRAWS.repair(drawn).lines}
            lost = [each for each in known if each.index not in counted]
            known = tuple(each for each in known if each.index in counted)
            if lost:
                CERTIFICATES.rewrite(log, known)
        return {each.index for each in known}

    def certified(places: Sequence[int]) -> Iterator[list[tuple[Certificate, Drawn]]]:
        began = time.perf_counter()
        indices = examples.source[list(places)].tolist()
        x, y = examples.batch(torch.tensor(places))
        seeds = [derive(config["seed"], "certify", index) for index in indices]
        for settled, answers in answered(smoothed, plan, x, seeds):
            each = (time.perf_counter() - began) / max(1, len(settled))
            names = [indices[place] for place in settled]
            labels, classes = y[settled].tolist(), answers.predictions.tolist()
            columns = zip(names, labels, classes, answers.radii.tolist(), strict=True)
            counts = zip(names, answers.draws.tolist(), strict=True)
            lines = [Certificate(*values, each) for values in columns]
            yield list(zip(lines, (Drawn(*values) for values in counts), strict=True))
            began = time.perf_counter() if settled else began

    done = of_leader(done_before)
    missing = [place for place in range(size) if source[place] not in done]
    at_once = POOLED if radii is not None else max(AT_ONCE, ceil(plan.batch_size / plan.n))
    if here().size > 1:  # one piece each, and soon another look at signals
        at_once = at_once if radii is not None else ceil(plan.batch_size / plan.n)
        at_once = min(at_once, ceil(len(missing) / here().size))
    pieces = [missing[i : i + at_once] for i in range(0, len(missing), max(1, at_once))]
    bar = Progress(size, "certify", "img", done=size - len(missing))
    with (
        computing_in(model, plan.precision),
        lying_well(model, setting.data.shape),
        DRAWS.writer(drawn) if leads() and radii is not None else nullcontext() as tally,
        Writer(log) if leads() else nullcontext() as writer,
        bar,
    ):
        for settled in divided(pieces, certified, stop):
            if tally is not None:
                tally.write(draws for _, draws in settled)
            if writer is not None:
                writer.write(line for line, _ in settled)
            bar.advance(len(settled))
            stop()
        found = of_leader(partial(summary, plan, setting, log, drawn, set(source)))
        bar.say(_line(found))
        bar.say(_in_linf(found["linf"]))
    return found


def answered(
    smoothed: Smoothed, plan: Certification, x: Tensor, seeds: Sequence[int]
) -> Iterator[tuple[list[int], Answers]]:
    """What `plan` asks about the images, as it is known: places of some, answers on these."""
    if plan.asked is not None:
        streams = streams_of(x, seeds, None)
        yield from settle(smoothed, x, plan.asked, plan.n0, plan.n, plan.alpha, streams=streams)
    else:
        predictions, radii = smoothed.certify(
            x, n0=plan.n0, n=plan.n, alpha=plan.alpha, seeds=seeds
        )
        drawn = torch.full_like(predictions, plan.n0 + plan.n)
        yield list(range(len(x))), Answers(predictions, radii, drawn)


def doubted(model: nn.Module, setting: Setting, found: Collection[str]) -> list[dict[str, str]]:
    """Warnings beside those `found` by the probes, said at once: of what keeps certificates of the
    network from holding, or from holding as one may think.
    """
    x, _ = setting.data.test.batch(slice(0, 1))
    with crafting(model, "eval"), stream(x.device, setting.config["seed"], "doubts"):
        warnings = [
            {"check": check, "row": "certified", "message": message}
            for check, message in doubts(model, x, found)
        ]
    for warning in warnings:
        logger.warning("certified, %s: %s", warning["check"], warning["message"])
    return warnings


def summary(
    plan: Certification, setting: Setting, log: Path, drawn: Path, wanted: Collection[int]
) -> dict[str, Any]:
    """`certified` of results.json, of the images `wanted`, from the lines on disk alone."""
    noise = KINDS[plan.noise]
    largest = noise.largest(plan.sigma, plan.n, plan.alpha)
    chosen = [each for each in read(log).certificates if each.index in wanted]
    found = summarise(
        chosen,
        sigma=plan.sigma,
        n0=plan.n0,
        n=plan.n,
        alpha=plan.alpha,
        radii=plan.asked or default_radii(largest),
    )
    acr = found["acr"] if plan.asked is None else None
    taken = dict.fromkeys(wanted, plan.n0 + plan.n)
    if plan.asked is not None:
        taken |= {each.index: each.draws for each in DRAWS.read(drawn).lines}
    return {
        **found,
        "acr": acr,
        "norm": norm(noise),
        "noise": plan.noise,
        "precision": plan.precision,
        "radii": plan.asked,
        "draws": fmean(taken[index] for index in wanted),
        "linf": in_linf(setting, noise, largest, acr),
        "seconds": round(sum(each.seconds for each in chosen), 3),
    }


def in_linf(setting: Setting, noise: Noise, largest: float, acr: float | None) -> dict[str, Any]:
    """What radii say in linf; `vacuous` where none reaches the data set's usual eps in it."""
    dimensions, eps = prod(setting.data.shape), setting.build("threats")["linf"].eps
    reach = linf(largest, noise, dimensions)
    return {
        "largest_radius": reach,
        "acr": None if acr is None else linf(acr, noise, dimensions),
        "eps": eps,
        "vacuous": reach < eps,
    }


def _line(found: Mapping[str, Any]) -> str:
    told = (
        f"ACR {found['acr']:.3f}" if found["radii"] is None else f"{found['draws']:,.0f} draws each"
    )
    precision = f"  in {found['precision']}" if found["precision"] != "fp32" else ""
    share = f"{'certified':<12} {100 * found['accuracy']:6.2f} %  at radius 0"
    return f"{share}  {told} in {found['norm']}  n {found['examples']}{precision}"


def _in_linf(lower: Mapping[str, Any]) -> str:
    nothing = f", nothing at eps {lower['eps']:.2g}" if lower["vacuous"] else ""
    return f"{'':<12} in linf at most {lower['largest_radius']:.2g}{nothing}"

"""One certificate per test example, into certify.tsv; goes on after the last line that is there."""

import json
import logging
import time
@@OURS
from collections.abc import Callable, Collection
from math import ceil, prod
@@THEIRS
from collections.abc import Callable, Iterator, Sequence
@@END
from typing import Any

import torch
from torch import Tensor, nn

from advtrain.certification import draws
from advtrain.certification.adaptive import Answers, settle
from advtrain.certification.log import Certificate, Writer, read, repair
@@OURS
from advtrain.certification.noise import KINDS, Noise, linf, norm
from advtrain.certification.premises import doubts
from advtrain.certification.smoothing import Smoothed
from advtrain.certification.summary import default_radii, summarise
@@THEIRS
from advtrain.certification.smoothing import Smoothed, streams_of
from advtrain.certification.summary import summarise
@@END
from advtrain.digests import fingerprint
from advtrain.files import write_json
from advtrain.modes import crafting
from advtrain.precision import computing_in
from advtrain.progress import Progress
from advtrain.runs import Certification, Setting
from advtrain.seeding import derive, stream

@@OURS
logger = logging.getLogger(__name__)

AT_ONCE = 10  # images between two looks at signals and lines on disk, or as many as fill a batch
@@THEIRS
AT_ONCE = 10  # images between two lines on disk, and between two looks at signals
POOLED = 250  # images that share their forward passes, where each takes only the draws it needs
@@END


def certify(
    model: nn.Module,
    setting: Setting,
    plan: Certification,
    seen: str,
    stop: Callable[[], None],
) -> dict[str, Any]:
    """Certify the first `plan.size` test examples; the entry `certified` of results.json.

@@OURS
    Certificates are those of the network as it is, in `plan.precision`, not of a faster copy with
    other rounding. idx is the place of an image among the test images of its data set; its noise
    depends on that and on the seed alone. `seen` names network and examples; certificates of
    others, told by certify.json, are replaced.
    """
    config, examples = setting.config, setting.data.test
    size = min(len(examples), plan.size or len(examples))
    noise = KINDS[plan.noise]
    kind = {"norm": norm(noise), "noise": plan.noise, "precision": plan.precision}
    asked = {"sigma": plan.sigma, "n0": plan.n0, "n": plan.n, "alpha": plan.alpha, **kind}
@@THEIRS
    Certificates are those of the network in fp32. idx is the place of an image among the test
    images of its data set; its noise depends on that and on the seed alone. `seen` names network
    and examples; certificates of others, told by certify.json, are replaced.

    Where radii are asked for, acr is None: an image may have more than the largest it is certified
    for, so their mean is no average radius. draws is the mean number that an example took.
    """
    config, examples = setting.config, setting.data.test
    size = min(len(examples), plan.size or len(examples))
    asked: dict[str, Any] = {"sigma": plan.sigma, "n0": plan.n0, "n": plan.n, "alpha": plan.alpha}
    radii = plan.asked
    if radii is not None:
        asked |= {"radii": radii}
@@END
    key = fingerprint(seen, asked, config["seed"])
    log, tally = setting.directory / "certify.tsv", setting.directory / "draws.tsv"
    header = setting.directory / "certify.json"
    if not header.exists() or json.loads(header.read_text()).get("key") != key:
        log.unlink(missing_ok=True)
        tally.unlink(missing_ok=True)
        write_json(header, {"key": key, **asked, "seed": config["seed"]})
    smoothed = Smoothed(model, len(setting.data.classes), plan.sigma, plan.batch_size, noise)
    at_once = max(AT_ONCE, ceil(plan.batch_size / plan.n))
    source = examples.source[:size].tolist()
    done = {each.index for each in repair(log).certificates}
    if radii is not None and not done <= draws.read(tally).keys():
        log.unlink()  # somebody removed the numbers of draws: all of it once more
        done = set()
    at_once = AT_ONCE if radii is None else POOLED
    missing = [place for place in range(size) if source[place] not in done]
    bar = Progress(size, "certify", "img", done=size - len(missing))
@@OURS
    with computing_in(model, plan.precision), Writer(log) as writer, bar:
@@THEIRS
    with full_precision(model), Writer(log) as writer, bar:
@@END
        for first in range(0, len(missing), at_once):
            stop()
            began = time.perf_counter()
            places = torch.tensor(missing[first : first + at_once])
            indices = examples.source[places].tolist()
            x, y = examples.batch(places)
            seeds = [derive(config["seed"], "certify", index) for index in indices]
            for settled, answers in answered(smoothed, plan, x, seeds):
                each = (time.perf_counter() - began) / max(1, len(settled))
                names = [indices[place] for place in settled]
                if radii is not None:
                    draws.append(tally, dict(zip(names, answers.draws.tolist(), strict=True)))
                labels, classes = y[settled].tolist(), answers.predictions.tolist()
                columns = zip(names, labels, classes, answers.radii.tolist(), strict=True)
                writer.write(Certificate(*values, each) for values in columns)
                began = time.perf_counter() if settled else began
                bar.advance(len(settled))
                stop()
        wanted = set(source)
        chosen = [each for each in read(log).certificates if each.index in wanted]
@@OURS
        largest = noise.largest(plan.sigma, plan.n, plan.alpha)
        summary = summarise(
            chosen,
            sigma=plan.sigma,
            n0=plan.n0,
            n=plan.n,
            alpha=plan.alpha,
            radii=default_radii(largest),
        )
        lower = in_linf(setting, noise, largest, summary["acr"])
        bar.say(
            f"{'certified':<12} {100 * summary['accuracy']:6.2f} %  at radius 0  "
            f"ACR {summary['acr']:.3f} in {kind['norm']}  n {size}"
            + (f"  in {plan.precision}" if plan.precision != "fp32" else "")
        )
        bar.say(
            f"{'':<12} in linf at most {lower['largest_radius']:.2g}"
            + (f", nothing at eps {lower['eps']:.2g}" if lower["vacuous"] else "")
        )
    seconds = round(sum(each.seconds for each in chosen), 3)
    return {**summary, **kind, "linf": lower, "seconds": seconds}


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


def in_linf(setting: Setting, noise: Noise, largest: float, acr: float) -> dict[str, Any]:
    """What radii say in linf; `vacuous` where none reaches the data set's usual eps in it."""
    dimensions, eps = prod(setting.data.shape), setting.build("threats")["linf"].eps
    reach = linf(largest, noise, dimensions)
    return {
        "largest_radius": reach,
        "acr": linf(acr, noise, dimensions),
        "eps": eps,
        "vacuous": reach < eps,
    }
@@THEIRS
        summary = summarise(
            chosen, sigma=plan.sigma, n0=plan.n0, n=plan.n, alpha=plan.alpha, radii=radii
        )
        taken = draws.read(tally) or dict.fromkeys(wanted, plan.n0 + plan.n)
        mean = sum(taken[index] for index in wanted) / len(wanted)
        acr = f"ACR {summary['acr']:.3f}" if radii is None else f"{mean:,.0f} draws each"
        bar.say(
            f"{'certified':<12} {100 * summary['accuracy']:6.2f} %  at radius 0  {acr}  n {size}"
        )
    return {
        **summary,
        "acr": summary["acr"] if radii is None else None,
        "radii": radii,
        "draws": mean,
        "seconds": round(sum(each.seconds for each in chosen), 3),
    }


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
@@END

"""One certificate per test example, into certify.tsv; goes on after the last line that is there."""

import json
import logging
import time
from collections.abc import Callable, Collection
from math import ceil, prod
from typing import Any

import torch
from torch import nn

from advtrain.certification.log import Certificate, Writer, read, repair
from advtrain.certification.noise import KINDS, Noise, linf, norm
from advtrain.certification.premises import doubts
from advtrain.certification.smoothing import Smoothed
from advtrain.certification.summary import default_radii, summarise
from advtrain.digests import fingerprint
from advtrain.files import write_json
from advtrain.modes import crafting
from advtrain.precision import computing_in
from advtrain.progress import Progress
from advtrain.runs import Certification, Setting
from advtrain.seeding import derive, stream

logger = logging.getLogger(__name__)

AT_ONCE = 10  # images between two looks at signals and lines on disk, or as many as fill a batch


def certify(
    model: nn.Module,
    setting: Setting,
    plan: Certification,
    seen: str,
    stop: Callable[[], None],
) -> dict[str, Any]:
    """Certify the first `plan.size` test examples; the entry `certified` of results.json.

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
    key = fingerprint(seen, asked, config["seed"])
    log = setting.directory / "certify.tsv"
    header = setting.directory / "certify.json"
    if not header.exists() or json.loads(header.read_text()).get("key") != key:
        log.unlink(missing_ok=True)
        write_json(header, {"key": key, **asked, "seed": config["seed"]})
    smoothed = Smoothed(model, len(setting.data.classes), plan.sigma, plan.batch_size, noise)
    at_once = max(AT_ONCE, ceil(plan.batch_size / plan.n))
    source = examples.source[:size].tolist()
    done = {each.index for each in repair(log).certificates}
    missing = [place for place in range(size) if source[place] not in done]
    bar = Progress(size, "certify", "img", done=size - len(missing))
    with computing_in(model, plan.precision), Writer(log) as writer, bar:
        for first in range(0, len(missing), at_once):
            stop()
            began = time.perf_counter()
            places = torch.tensor(missing[first : first + at_once])
            indices = examples.source[places].tolist()
            x, y = examples.batch(places)
            seeds = [derive(config["seed"], "certify", index) for index in indices]
            predictions, radii = smoothed.certify(
                x, n0=plan.n0, n=plan.n, alpha=plan.alpha, seeds=seeds
            )
            each = (time.perf_counter() - began) / len(indices)
            columns = zip(indices, y.tolist(), predictions.tolist(), radii.tolist(), strict=True)
            writer.write(Certificate(*values, each) for values in columns)
            bar.advance(len(indices))
        wanted = set(source)
        chosen = [each for each in read(log).certificates if each.index in wanted]
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

"""Attacks on certificates, into soundness.tsv; goes on after the last line that is there."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn

from advtrain.answers import attacking
from advtrain.certification.lines import claim
from advtrain.certification.log import Certificate, read
from advtrain.certification.smoothing import Smoothed
from advtrain.certification.soundness import ATTEMPTS, LEVEL, Attempt, challenge, report
from advtrain.exchange import divided, of_leader
from advtrain.fingerprints import fingerprint
from advtrain.inference import swift
from advtrain.models.views import smoothed
from advtrain.modes import crafting
from advtrain.plans import Certification
from advtrain.portions import Portioned
from advtrain.precision import computing_in, full_precision
from advtrain.progress import Progress
from advtrain.results import spelled
from advtrain.rooms import Rooms
from advtrain.runs import Setting
from advtrain.seeding import derive, stream
from advtrain.world import leads

logger = logging.getLogger(__name__)

PROBES = 16  # images on which the network that is attacked is held against the one judged


def soundness(
    model: nn.Module,
    setting: Setting,
    plan: Certification,
    seen: str,
    stop: Callable[[], None],
    rooms: Rooms,
) -> dict[str, Any]:
    """Attack every certificate of certify.tsv with a radius; `certified.soundness` of results.json.

    Those of the first `plan.size` test examples, with `plan.attack`. Broken ones are logged as
    errors. What is attacked is a faster copy of the network, what is asked the network
    itself. Draws depend on the seed and the place of the image alone. A line of soundness.tsv
    counts as long as network, certificates and attack, told by soundness.json, are the same.
    """
    challenger = plan.attack
    assert challenger is not None
    config, examples = setting.config, setting.data.test
    size = min(len(examples), plan.size or len(examples))
    places = {index: place for place, index in enumerate(examples.source[:size].tolist())}
    certificates = [
        each
        for each in of_leader(partial(read, setting.directory / "certify.tsv")).certificates
        if each.index in places and each.radius > 0
    ]
    attack, log = spelled(challenger), setting.directory / "soundness.tsv"
    claims = [(each.index, each.prediction, each.radius) for each in certificates]
    asked = {"attack": attack, "draws": plan.attack_draws, "n": plan.n, "level": LEVEL}
    asked["precision"] = plan.precision
    key = fingerprint(seen, asked, plan.sigma, claims, config["seed"])
    header = partial(claim, log.with_suffix(".json"), key, {**asked, "seed": config["seed"]})
    of_leader(partial(header, [log]))
    classes = len(setting.data.classes)
    g = Smoothed(model, classes, plan.sigma, plan.batch_size, room=rooms.noise)
    done = of_leader(lambda: {each.index for each in ATTEMPTS.repair(log).lines})
    missing = [each for each in certificates if each.index not in done]
    bar = Progress(len(claims), "soundness", "img", done=len(done))
    fast = swift(model, examples.batch(slice(0, min(size, PROBES)))[0])

    def attempted(each: Certificate) -> Iterator[Attempt]:
        began = time.perf_counter()
        x, _ = examples.batch(torch.tensor([places[each.index]]))
        look, judge, noise = (
            derive(config["seed"], "soundness", part, each.index)
            for part in ("look", "judge", "view")
        )
        attacked = Portioned(fast, rooms.attacks)
        view = smoothed(attacked, sigma=plan.sigma, draws=plan.attack_draws, seed=noise)
        with stream(x.device, config["seed"], "soundness", each.index), attacking(x):
            found = partial(
                challenge,
                g,
                view,
                x,
                each.prediction,
                each.radius,
                attack=challenger,
                draws=plan.n,
                seeds=(look, judge),
            )
            distance, answer, p_value = rooms.attacks.within(found, x)
        claimed = (each.index, each.label, each.prediction, each.radius)
        yield Attempt(*claimed, distance, answer, p_value, time.perf_counter() - began)

    with (
        ExitStack() as stack,
        ATTEMPTS.writer(log) if leads() else nullcontext() as writer,
        bar,
    ):
        stack.enter_context(full_precision(fast))  # first: it may be the network itself
        stack.enter_context(computing_in(model, plan.precision))
        for network in (model, fast):
            stack.enter_context(crafting(network, "eval"))
        for attempt in divided(missing, attempted, stop):
            if writer is not None:
                writer.write([attempt])
            if attempt.broken:
                logger.error(
                    "certificate of image %d is broken: class %d at distance %.4g, where class %d "
                    "is certified up to %.4g (p-value %.1g)",
                    *(attempt.index, attempt.answer, attempt.distance),
                    *(attempt.prediction, attempt.radius, attempt.p_value),
                )
            bar.advance()
        lines = of_leader(partial(ATTEMPTS.read, log)).lines
        found = report(lines, attack, plan.attack_draws)
        bar.say(
            f"{'soundness':<12} {len(found['broken'])} of {found['examples']} certificates broken"
        )
    return found

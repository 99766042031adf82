"""What a job would take: hours, disk and memory, from a few steps and batches that are measured.

Steps of training are those of the run, timed one by one. A row of the evaluation runs on a few test
images that are labelled as the network says, so that every attack has work to do; the attacks of a
combination each run on all of them, where in the run they see those that still stand. Certificates
are scaled from a share of their draws. So the time of an evaluation is an upper estimate. Of
compiled networks all is measured after its programs are made; what these took is said.
"""

import io
import resource
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from math import ceil
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

import torch
from torch import nn

from advtrain.averaged import passes, rewrapped, single
from advtrain.certification.noise import KINDS
from advtrain.certification.smoothing import Smoothed
from advtrain.channels import lying_well
from advtrain.data.loader import Batches
from advtrain.evaluation import Row, Subject, judge, rows
from advtrain.fitting import for_evaluation, for_training
from advtrain.inference import swift
from advtrain.modes import crafting
from advtrain.planning import fitted, named, viewed
from advtrain.plans import Evaluation, Validation
from advtrain.precision import computing_in
from advtrain.programs import at_rest
from advtrain.ranges import Count, Positive
from advtrain.reporting.wording import duration
from advtrain.run_training import begun, method_of
from advtrain.run_validation import validate
from advtrain.runs import Setting, make_model, setting, start_weights
from advtrain.seeding import stream
from advtrain.stopwatch import Stopwatch
from advtrain.training import TrainState, epochs
from advtrain.types import Attack, Logs

FEW = 8  # images on which a row is tried first, and of validation
DRAWS = 200  # of noise that are timed for certificates first; then twice as many at least


@dataclass(frozen=True)
class Plan:
    """`job`: what is planned. `steps`: of training that are timed, after one that is not (compiled:
    after as many).

    `seconds`: that the sample of a row may take.
    """

    job: Literal["train_eval", "train", "eval"]
    steps: Count
    seconds: Positive


@dataclass
class Forecast:
    """Of one job: seconds, bytes, and sentences about what was not measured."""

    steps: int = 0
    per_step: float = 0.0
    training: float = 0.0
    evaluation: float = 0.0
    disk: int = 0
    memory: int = 0
    missing: list[str] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        return self.training + self.evaluation


class Enough(Exception):
    """The steps that are timed are done."""


def forecast(config: Mapping[str, Any], plan: Plan, allowed: tuple[str, ...]) -> Forecast:
    """Measure the job of a plain configuration; nothing is left on the disk.

    ConfigError, DataError, CheckpointError: the job could not begin.
    """
    found = Forecast()
    with tempfile.TemporaryDirectory() as folder:
        here = setting({**config, "job": plan.job}, Path(folder), allowed)
        if here.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(here.device)
        watch = Stopwatch(here.device, plan.seconds, bool(config["compile"]))
        evaluation = here.build("eval") if config["eval"] and plan.job != "train" else None
        weights = _training(here, plan, found, watch) if plan.job != "eval" else None
        if evaluation is not None or weights is None:
            data = here.data
            model = make_model(config, data.shape, len(data.classes), here.device, allowed)
            if weights is None:
                start_weights(model, config["checkpoint"])
            else:
                model.load_state_dict(weights)
        if evaluation is not None:
            evaluation = for_evaluation(here, model).build("eval")
            _evaluation(model.eval(), here, evaluation, found, watch)
        if watch.compiled:
            found.missing.append(f"compiling ({duration(watch.compiling)} here)")
        found.memory = _peak(here.device)
    return found


def _training(
    here: Setting, plan: Plan, found: Forecast, watch: Stopwatch
) -> Mapping[str, torch.Tensor]:
    """Time steps, a validation and a checkpoint; the weights that are judged.

    Of a compiled network as many steps are made before: some methods take turns.
    """
    here = for_training(here)
    config = here.config
    batches = Batches(
        here.data.train, config["batch_size"], config["seed"], config["dataset"]["replays"]
    )
    total, each = config["epochs"], len(batches)
    state, freezing, _ = begun(here, total * each, anew=True)
    method = method_of(here, state, freezing)
    found.steps = total * each
    untimed = max(1, min(plan.steps if watch.compiled else 1, found.steps - 1))
    clock = [time.perf_counter()]

    def stop() -> None:
        if len(clock) > untimed + plan.steps:
            raise Enough

    def note(logs: Logs, examples: int) -> None:
        clock.append(time.perf_counter())

    try:
        for _ in epochs(state, batches, method, total=total, stop=stop, watch=note, check_every=1):
            pass
    except Enough:
        pass
    marks = clock[untimed:] if len(clock) > untimed + 1 else clock
    found.per_step = fmean(later - sooner for sooner, later in pairwise(marks))
    if watch.compiled:
        watch.compiling += max(0.0, clock[untimed] - clock[0] - untimed * found.per_step)
    saving, found.disk = _saved(state)
    found.training = found.steps * found.per_step + total * saving
    _validation(state, here, found, watch)
    if state.average.model is not state.model:
        found.missing.append("statistics of the averaged weights after an epoch")
    return state.average.model.state_dict()


def _validation(state: TrainState, here: Setting, found: Forecast, watch: Stopwatch) -> None:
    """Time that after an epoch, and count the epochs that have one."""
    wanted: Validation = here.build("validate")
    size = min(len(here.data.validation), wanted.size)
    few = min(FEW, size)

    def judge_all(images: int) -> None:
        sample = replace(wanted, size=images)
        validate(state.average.model, here, sample, state.defense, watch.room)

    if size:
        seconds = watch.each(judge_all, few, size)
        judged = ceil(here.config["epochs"] / wanted.every)
        found.training += judged * size * _known(seconds, f"validation: {few} images", found, watch)


def _known(seconds: float | None, what: str, found: Forecast, watch: Stopwatch) -> float:
    """`seconds`, or nothing where they are not known, which is said."""
    if seconds is None:
        found.missing.append(f"{what} took over plan.seconds={watch.seconds:g}")
    return seconds or 0.0


def _saved(state: TrainState) -> tuple[float, int]:
    """Seconds that last.pt takes, and bytes of it, of the one before it and of best.pt."""
    weights = state.average.model.state_dict()
    began, last, best = time.perf_counter(), io.BytesIO(), io.BytesIO()
    torch.save({"model": weights, "training": state.state_dict()}, last)
    seconds = time.perf_counter() - began
    torch.save({"model": weights}, best)
    return seconds, 2 * len(last.getbuffer()) + len(best.getbuffer())


def _evaluation(
    model: nn.Module, here: Setting, evaluation: Evaluation, found: Forecast, watch: Stopwatch
) -> None:
    size = min(len(here.data.test), evaluation.size or len(here.data.test))
    batch = min(evaluation.at_once, size)
    names = {"clean": "", **{name: "" for name in evaluation.attacks}}
    classes = len(here.data.classes)
    few, _ = here.data.test.batch(slice(0, min(FEW, size)))
    views = viewed(model, named(evaluation.views))
    stochastic = _draws(model, few)
    evaluation, views, _ = fitted(evaluation, views, stochastic)
    if stochastic:
        found.missing.append("single draws of the network beside each row")
    for view, judged in views.items():
        subject = Subject(judged, rewrapped(judged, swift(single(judged), few)), watch.room)
        for row in rows(evaluation.attacks, names, classes, view, passes(judged)):
            where = row.name if view == "identity" else f"{row.name} ({view})"
            try:
                attacked = partial(_attacked, subject, row, here)
                seconds = watch.each(attacked, min(FEW, batch), batch)
            except ValueError as error:
                found.missing.append(f"row {where}: {error}")
                continue
            what = f"row {where}: {min(FEW, batch)} images"
            found.evaluation += size * _known(seconds, what, found, watch)
    first = single(next(iter(views.values())))
    _certificates(first, here, evaluation, size, found, watch)
    if evaluation.exact is not None:
        found.missing.append("exact distances")
    if evaluation.certify is not None and evaluation.certify.attack is not None:
        found.missing.append("attacks on certificates")


def _draws(model: nn.Module, x: torch.Tensor) -> bool:
    """Whether the network answers differently each time."""
    with torch.no_grad(), crafting(model, "eval"), at_rest():
        return not torch.equal(model(x), model(x))


def _attacked(subject: Subject, row: Row, here: Setting, images: int) -> None:
    """Every attack of the row on the first images, labelled as the network says.

    With the same draws each time, so that attacks drop images at the same places.
    """
    x, _ = here.data.test.batch(slice(0, images))
    with torch.no_grad(), crafting(subject.model, "eval"):
        y = subject.room.ask(subject.model, x).argmax(1)
    at, stands = tuple(range(images)), torch.ones_like(y, dtype=torch.bool)
    attacks: list[Attack | None] = list(row.members.values()) or [row.plain]
    with stream(x.device, here.config["seed"], row.name):
        for attack in attacks:
            judge(subject, x, y, attack, row.threat, key=row.name, at=at, clean=stands)


def _certificates(
    model: nn.Module,
    here: Setting,
    evaluation: Evaluation,
    size: int,
    found: Forecast,
    watch: Stopwatch,
) -> None:
    """Time all draws of noise, those of the PREDICT study among them."""
    classes = len(here.data.classes)
    if evaluation.certify is not None:
        ask = evaluation.certify
        images, draws = min(size, ask.size or size), ask.n0 + ask.n
        with computing_in(model, ask.precision), lying_well(model, here.data.shape):
            noise = KINDS[ask.noise]
            smoothed = Smoothed(model, classes, ask.sigma, ask.batch_size, noise, watch.room)
            each = _per_draw(smoothed, here, "certificates", found, watch)
            found.evaluation += images * draws * each
    if evaluation.predict is not None:
        study = evaluation.predict
        images, draws = min(size, study.size or size), sum(study.n) + study.gold_draws
        with computing_in(model, "fp32"):
            smoothed = Smoothed(model, classes, study.sigma, study.batch_size, room=watch.room)
            each = _per_draw(smoothed, here, "the PREDICT study", found, watch)
            found.evaluation += images * draws * each


def _per_draw(
    smoothed: Smoothed, here: Setting, what: str, found: Forecast, watch: Stopwatch
) -> float:
    x, batch = here.data.test.batch(slice(0, 1))[0], smoothed.batch_size
    few, more = min(DRAWS, batch), batch * max(2, ceil(2 * DRAWS / batch))
    # a graph is recorded in the second pass: hence two at least
    seconds = watch.each(lambda draws: smoothed.counts(x, draws, seeds=[0]), few, more)
    return _known(seconds, f"{what}: {few} draws", found, watch)


def _peak(device: torch.device) -> int:
    """Bytes: of the device, or of this process with all that it has imported."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024

"""What a job would take: hours, disk and memory, from a few steps and batches that are measured.

Steps of training are those of the run, timed one by one. A row of the evaluation runs on a few test
images that are labelled as the network says, so that every attack has work to do; the attacks of a
combination each run on all of them, where in the run they see those that still stand. Certificates
are scaled from a share of their draws. So the time of an evaluation is an upper estimate.
"""

import io
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
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
from advtrain.data.loader import Batches
from advtrain.evaluation import Row, Subject, judge, rows
from advtrain.fitting import for_evaluation, for_training
from advtrain.inference import swift
from advtrain.modes import crafting
from advtrain.planning import fitted, named, viewed
from advtrain.plans import Evaluation, Validation
from advtrain.precision import computing_in
from advtrain.ranges import Count, Positive
from advtrain.run_training import begun, method_of
from advtrain.run_validation import validate
from advtrain.runs import Setting, make_model, setting, start_weights
from advtrain.training import TrainState, epochs
from advtrain.types import Attack, Logs

FEW = 8  # images on which a row is tried first, and of validation
DRAWS = 200  # at least, of noise that are timed for certificates


@dataclass(frozen=True)
class Plan:
    """`job`: what is planned. `steps`: of training that are timed, after one that is not.

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


class OutOfTime(BaseException):
    """The time of a measurement is over; no error of the network that is measured."""


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
        evaluation = here.build("eval") if config["eval"] and plan.job != "train" else None
        if plan.job != "eval":
            model = _training(here, plan, found)
        else:
            data = here.data
            model = make_model(config, data.shape, len(data.classes), here.device, allowed)
            start_weights(model, config["checkpoint"])
        if evaluation is not None:
            evaluation = for_evaluation(here, model).build("eval")
            _evaluation(model.eval(), here, evaluation, plan, found)
        found.memory = _peak(here.device)
    return found


def _training(here: Setting, plan: Plan, found: Forecast) -> nn.Module:
    """Time steps, a validation and a checkpoint."""
    here = for_training(here)
    config = here.config
    batches = Batches(
        here.data.train, config["batch_size"], config["seed"], config["dataset"]["replays"]
    )
    total, each = config["epochs"], len(batches)
    state, freezing, _ = begun(here, total * each, anew=True)
    method = method_of(here, state, freezing)
    clock: list[float] = []

    def stop() -> None:
        if len(clock) > plan.steps:
            raise Enough

    def watch(logs: Logs, examples: int) -> None:
        clock.append(time.perf_counter())

    begin = time.perf_counter()
    try:
        for _ in epochs(state, batches, method, total=total, stop=stop, watch=watch, check_every=1):
            pass
    except Enough:
        pass
    marks = clock if len(clock) > 1 else [begin, *clock]
    found.steps = total * each
    found.per_step = fmean(later - sooner for sooner, later in pairwise(marks))
    saving, found.disk = _saved(state)
    judged, once = _validation(state, here, plan, total)
    found.training = found.steps * found.per_step + total * saving + judged * once
    if state.average.model is not state.model:
        found.missing.append("statistics of the averaged weights after an epoch")
    return state.average.model


def _validation(state: TrainState, here: Setting, plan: Plan, total: int) -> tuple[int, float]:
    """How many epochs are judged, and the seconds of one."""
    wanted: Validation = here.build("validate")
    size, seconds = min(len(here.data.validation), wanted.size), 0.0
    for images in dict.fromkeys((min(FEW, size), size)):
        if images and seconds * size <= plan.seconds:
            sample = replace(wanted, size=images)
            judge_all = partial(validate, state.average.model, here, sample, state.defense)
            seconds = _timed(judge_all, here.device) / images
    return ceil(total / wanted.every), seconds * size


def _saved(state: TrainState) -> tuple[float, int]:
    """Seconds that last.pt takes, and bytes of it, of the one before it and of best.pt."""
    weights = state.average.model.state_dict()
    began, last, best = time.perf_counter(), io.BytesIO(), io.BytesIO()
    torch.save({"model": weights, "training": state.state_dict()}, last)
    seconds = time.perf_counter() - began
    torch.save({"model": weights}, best)
    return seconds, 2 * len(last.getbuffer()) + len(best.getbuffer())


def _evaluation(
    model: nn.Module, here: Setting, evaluation: Evaluation, plan: Plan, found: Forecast
) -> None:
    size = min(len(here.data.test), evaluation.size or len(here.data.test))
    names = {"clean": "", **{name: "" for name in evaluation.attacks}}
    classes = len(here.data.classes)
    few, _ = here.data.test.batch(slice(0, min(FEW, size)))
    views = viewed(model, named(evaluation.views))
    stochastic = _draws(model, few)
    evaluation, views, _ = fitted(evaluation, views, stochastic)
    if stochastic:
        found.missing.append("single draws of the network beside each row")
    for view, judged in views.items():
        subject = Subject(judged, rewrapped(judged, swift(single(judged), few)))
        for row in rows(evaluation.attacks, names, classes, view, passes(judged)):
            where = row.name if view == "identity" else f"{row.name} ({view})"
            try:
                seconds = _row(subject, row, here, min(evaluation.at_once, size), plan)
            except ValueError as error:
                found.missing.append(f"row {where}: {error}")
                continue
            if seconds is None:
                said = f"{len(few)} images took over plan.seconds={plan.seconds:g}"
                found.missing.append(f"row {where}: {said}")
            else:
                found.evaluation += seconds * size
    first = single(next(iter(views.values())))
    found.evaluation += _certificates(first, here, evaluation, size)
    if evaluation.exact is not None:
        found.missing.append("exact distances")
    if evaluation.certify is not None and evaluation.certify.attack is not None:
        found.missing.append("attacks on certificates")


def _draws(model: nn.Module, x: torch.Tensor) -> bool:
    """Whether the network answers differently each time."""
    with torch.no_grad(), crafting(model, "eval"):
        return not torch.equal(model(x), model(x))


def _row(subject: Subject, row: Row, here: Setting, batch: int, plan: Plan) -> float | None:
    """Seconds per image: of a few images, or of a batch where the time allows; None: of neither."""
    seconds = None
    for images in dict.fromkeys((min(FEW, batch), batch)):
        if seconds is not None and seconds * images > plan.seconds:
            break
        with _limited(subject, plan.seconds):
            try:
                seconds = _timed(partial(_attacked, subject, row, here, images), here.device)
            except OutOfTime:
                break
            seconds /= images
    return seconds


def _attacked(subject: Subject, row: Row, here: Setting, images: int) -> None:
    """Every attack of the row on the first images, labelled as the network says."""
    x, _ = here.data.test.batch(slice(0, images))
    with torch.no_grad(), crafting(subject.model, "eval"):
        y = subject.model(x).argmax(1)
    at, stands = tuple(range(images)), torch.ones_like(y, dtype=torch.bool)
    attacks: list[Attack | None] = list(row.members.values()) or [row.plain]
    for attack in attacks:
        judge(subject, x, y, attack, row.threat, key=row.name, at=at, clean=stands)


def _certificates(model: nn.Module, here: Setting, evaluation: Evaluation, size: int) -> float:
    """Seconds of all draws of noise, those of the PREDICT study among them."""
    total, classes = 0.0, len(here.data.classes)
    if evaluation.certify is not None:
        ask = evaluation.certify
        images, draws = min(size, ask.size or size), ask.n0 + ask.n
        with computing_in(model, ask.precision):
            smoothed = Smoothed(model, classes, ask.sigma, ask.batch_size, KINDS[ask.noise])
            total += images * draws * _per_draw(smoothed, here, ask.batch_size)
    if evaluation.predict is not None:
        study = evaluation.predict
        images, draws = min(size, study.size or size), sum(study.n) + study.gold_draws
        smoothed = Smoothed(model, classes, study.sigma, study.batch_size)
        total += images * draws * _per_draw(smoothed, here, study.batch_size)
    return total


def _per_draw(smoothed: Smoothed, here: Setting, batch: int) -> float:
    x, _ = here.data.test.batch(slice(0, 1))
    draws = max(DRAWS, batch)
    smoothed.certify(x, n0=1, n=DRAWS, alpha=0.5, seeds=[0])  # what is set up once
    seconds = _timed(lambda: smoothed.certify(x, n0=1, n=draws, alpha=0.5, seeds=[0]), here.device)
    return seconds / (draws + 1)


@contextmanager
def _limited(subject: Subject, seconds: float) -> Iterator[None]:
    """Calls of the network raise OutOfTime once so many seconds are over."""
    end = time.perf_counter() + seconds

    def look(module: nn.Module, arguments: tuple[Any, ...]) -> None:
        if time.perf_counter() > end:
            raise OutOfTime

    networks = {id(each): each for each in (subject.model, subject.fast)}.values()
    hooks = [each.register_forward_pre_hook(look) for each in networks]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _timed(action: Callable[[], Any], device: torch.device) -> float:
    began = time.perf_counter()
    action()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def _peak(device: torch.device) -> int:
    """Bytes: of the device, or of this process with all that it has imported."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024

"""One training: from a setting to checkpoints/last.pt and best.pt, resumed where it stopped."""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from advtrain import checkpoints, inert, newest
from advtrain.config import ConfigError
from advtrain.data.loader import Batches
from advtrain.data.split import Data
from advtrain.exchange import follow_buffers, of_leader
from advtrain.files import write_text
from advtrain.freezing import Freezing
from advtrain.history import History
from advtrain.models.batch_norm import synchronise
from advtrain.models.spectral_norm import refresh
from advtrain.optimizers import require_rates
from advtrain.plans import Validation
from advtrain.portions import Room
from advtrain.progress import Progress
from advtrain.rescue import Rescue
from advtrain.resuming import resume, understood
from advtrain.run_validation import validate
from advtrain.runs import Setting, make_model, start_weights
from advtrain.stopping import Stopped
from advtrain.tracking import Tracker
from advtrain.training import (
    Method,
    TrainingFailed,
    TrainState,
    epochs,
    require_finite_weights,
    require_same_weights,
)
from advtrain.types import Logs
from advtrain.watchdog import Watchdog
from advtrain.world import here

CHECK_EVERY = {"cpu": 1, "cuda": 50}  # steps between looks at the losses, which wait for the device
FREE_KEYS = {
    *inert.KEYS,
    *("job", "eval", "threats", "attack", "scale", "compile", "recompute"),
}
"""Keys that may differ between a run and its continuation: they do not decide the weights, or
stand in other nodes too (attack). Of `dataset`, those of FREE_OF_DATA."""
FREE_OF_DATA = {*inert.OF_DATA, "root", "eps", "epochs", "batch_size", "warmup"}


def train(
    setting: Setting, facts: Mapping[str, Any], tracker: Tracker, stop: Callable[[], None]
) -> History:
    """Train, or go on training; at the end both checkpoints are complete."""
    config, last = setting.config, setting.directory / "checkpoints" / "last.pt"
    batches = Batches(
        setting.data.train, config["batch_size"], config["seed"], config["dataset"]["replays"]
    )
    total = config["epochs"]
    going_on = of_leader(partial(_goes_on, last, config["resume"]))
    state, freezing, beginning = begun(setting, total * len(batches), anew=not going_on)
    method = method_of(setting, state, freezing)
    rescue = Rescue(_watchdog(setting), state, History())
    if going_on:
        _resume(last, rescue, setting)
        reports = rescue.history.reports  # a kill may have come before they were written
        of_leader(partial(_write_metrics, setting.directory, reports))
    images = len(batches.split) * batches.replays
    done = images * state.step // len(batches)
    with Progress(total * images, "train", "img", done=done) as bar:
        course = Course(setting, facts, tracker, batches, rescue, bar)
        if beginning:
            bar.say(beginning)
        if facts.get("asked_batch_size") == "auto":
            bar.say(f"batch_size=auto: {batches.batch_size}")
        while state.step < total * len(batches) and not rescue.history.ended:
            try:
                for report in epochs(
                    state,
                    batches,
                    method,
                    total=total,
                    stop=stop,
                    watch=course.watch,
                    check_every=CHECK_EVERY[setting.device.type],
                ):
                    course.take(report)
                    if rescue.history.ended:
                        break
            except TrainingFailed as error:
                over = state.step >= total * len(batches)
                course.say(rescue.from_failure(error, over=over))
                course.save_last()
            except Stopped:
                require_finite_weights(state)
                course.save_last()
                raise
    return rescue.history


def _goes_on(last: Path, resume: bool) -> bool:
    """Whether to go on from `last`; never leaves older weights beside the numbers of a new run."""
    if resume and newest.exists(last):
        if not newest.lost_at_once(last):
            return True
        newest.set_aside(last)
    newest.remove(last)
    last.with_name("best.pt").unlink(missing_ok=True)
    return False


class Course:
    """What surrounds the steps of a training: verdicts, checkpoints, numbers, what is said."""

    def __init__(
        self,
        setting: Setting,
        facts: Mapping[str, Any],
        tracker: Tracker,
        batches: Batches,
        rescue: Rescue,
        bar: Progress,
    ) -> None:
        self.setting, self.facts, self.tracker = setting, facts, tracker
        self.batches, self.rescue, self.bar = batches, rescue, bar
        self.state, self.history = rescue.state, rescue.history
        self.validation: Validation = setting.build("validate")
        self.total: int = setting.config["epochs"]
        self.room = Room()

    def watch(self, logs: Logs, examples: int) -> None:
        """After a step."""
        epoch = f"{1 + (self.state.step - 1) // len(self.batches)}/{self.total}"
        self.bar.advance(examples, epoch=epoch, step=self.state.step, loss=logs["loss"])

    def take(self, report: dict[str, float]) -> None:
        """After an epoch."""
        state, history, validation = self.state, self.history, self.validation
        epoch = int(report["epoch"])
        state.average.prepare(replace(self.batches, replays=1).epoch(epoch))
        if state.average.model is not state.model:
            refresh(state.average.model)
        follow_buffers(state.average.model)
        require_same_weights(state)
        require_finite_weights(state)
        if epoch % validation.every == 0 or epoch == self.total:
            report |= validate(
                state.average.model, self.setting, validation, state.defense, self.room
            )
        history.reports.append(report)
        if history.improves(report, state.defense.judged_by):
            self._save("best", scores=report)
        self.bar.say(_line(report, self.total))
        self.say(self.rescue.look(min(len(self.setting.data.validation), validation.size)))
        self.save_last()
        of_leader(partial(_write_metrics, self.setting.directory, history.reports))
        self.tracker.log(report, epoch)

    def say(self, warning: str) -> None:
        if warning:
            self.bar.say(f"warning: {warning}")

    def save_last(self) -> None:
        """The present state, to go on from."""
        self._save("last", newest.PREVIOUS, training=self.rescue.state_dict())

    def _save(self, name: str, previous: str | None = None, **more: Any) -> None:
        folder = self.setting.directory / "checkpoints"
        content = _content(self.setting, self.facts, self.state, len(self.batches))
        kept = folder / previous if previous else None
        of_leader(lambda: checkpoints.save(folder / f"{name}.pt", content | more, kept=kept))


def method_of(setting: Setting, state: TrainState, freezing: Freezing) -> Method:
    """How `setting` trains that state. ConfigError: rates that the optimizer does not have."""
    method = Method(
        descent=setting.build("descent"),
        penalties=setting.build("penalty"),
        rates=setting.build("schedule"),
        seed=setting.config["seed"],
        freezing=freezing,
    )
    try:
        require_rates(state.optimizer, method.rates)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    return method


def _watchdog(setting: Setting) -> Watchdog:
    watchdog: Watchdog = setting.build("watchdog")
    if watchdog.needs_validation and not len(setting.data.validation):
        raise ConfigError(
            f"watchdog.action={watchdog.action}, watchdog.patience={watchdog.patience}: there are "
            "no validation images to watch; set dataset.validation, or action=warn patience=null."
        )
    return watchdog


def begun(setting: Setting, steps: int, *, anew: bool) -> tuple[TrainState, Freezing, str]:
    """What training changes, what it holds still, and where the weights are from, in a line."""
    config, data = setting.config, setting.data
    model = make_model(config, data.shape, len(data.classes), setting.device, setting.allowed)
    beginning = start_weights(model, config["checkpoint"], config["fresh"]) if anew else ""
    if here().size > 1 and config["batch_norm"] == "sync":
        synchronise(model)
    try:
        freezing = Freezing(model, config["freeze"], config["freeze_epochs"])
    except ValueError as error:
        raise ConfigError(str(error)) from error
    freezing.at(0)  # the optimizer groups what trains from the start
    defense = setting.build("defense")
    try:
        defense.requires(model)
    except ValueError as error:
        raise ConfigError(f"defense: {error}") from error
    state = TrainState(
        model=model,
        optimizer=setting.build("optimizer", model.named_parameters()),
        average=setting.build("average", model, steps),
        defense=defense,
    )
    return state, freezing, beginning


def identity(config: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a configuration that decides the weights."""
    kept = {key: value for key, value in config.items() if key not in FREE_KEYS}
    dataset = {key: value for key, value in config["dataset"].items() if key not in FREE_OF_DATA}
    return {"batch_norm": "sync"} | kept | {"dataset": dataset}  # the key is younger than some runs


def _content(
    setting: Setting, facts: Mapping[str, Any], state: TrainState, steps: int
) -> dict[str, Any]:
    data = setting.data
    return {
        "model": state.average.model.state_dict(),
        "epoch": state.step / steps if state.step % steps else state.step // steps,
        "config": dict(setting.config),
        "choices": dict(facts.get("choices", {})),
        "data": described(data),
        "judged_by": state.defense.judged_by if len(data.validation) else "last epoch",
        "torch": str(torch.__version__),
    }


def described(data: Data) -> dict[str, Any]:
    """What a network is built for and trained on, as plain values."""
    names, summary = list(data.classes), data.summary()
    return {"shape": list(data.shape), "classes": len(names), "names": names, "summary": summary}


def _resume(path: Path, rescue: Rescue, setting: Setting) -> None:
    content = of_leader(partial(newest.load_newest, path))
    if "training" not in content:
        raise checkpoints.CheckpointError(
            f"{path} holds nothing to resume from. Use resume=false to start again, or "
            "checkpoint= to start from its weights in another directory."
        )
    with understood(path):
        before = {**identity(content["config"]), "data": content["data"]}
    wanted = {**identity(setting.config), "data": described(setting.data)}
    for key, (then, now) in differences(before, wanted).items():
        raise ConfigError(
            f"{key}={now}, but {path.parents[1]} holds a run with {key}={then}. Continue it with "
            "the same configuration, choose another hydra.run.dir, or start anew by resume=false."
        )
    resume(rescue, content["training"], path)


def differences(a: Any, b: Any, path: str = "") -> dict[str, tuple[Any, Any]]:
    """Dotted keys at which two configurations differ, with both values."""
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        found: dict[str, tuple[Any, Any]] = {}
        for key in [*a, *(key for key in b if key not in a)]:
            found |= differences(a.get(key), b.get(key), f"{path}.{key}" if path else str(key))
        return found
    return {} if a == b else {path: (a, b)}


def _write_metrics(directory: Path, reports: list[dict[str, float]]) -> None:
    lines = [json.dumps(report) + "\n" for report in reports]
    write_text(directory / "metrics.jsonl", "".join(lines))


def _line(report: Mapping[str, float], total: int) -> str:
    shown = [f"loss {report['train_loss']:.3f}"]
    names = [("acc", "train_acc"), ("val", "val_acc")]
    names += [("val adv", "val_adv_acc"), ("val noise", "val_noise_acc")]
    shown += [f"{name} {100 * report[key]:.1f} %" for name, key in names if key in report]
    speed = f"{report['examples_per_second']:.0f} img/s"
    return (
        f"epoch {report['epoch']:.0f}/{total}  {'  '.join(shown)}  lr {report['lr']:.4g}  {speed}"
    )

"""The course of one job: data, training, evaluation, report."""

import logging
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from advtrain import checkpoints, status
from advtrain.config import ConfigError, make
from advtrain.exchange import of_leader
from advtrain.fitting import for_evaluation, for_training
from advtrain.newest import CheckpointLost
from advtrain.reporting.writing import write_run
from advtrain.run_evaluation import evaluate_model
from advtrain.run_training import differences, identity, train
from advtrain.runs import Setting, make_model, setting, start_weights
from advtrain.tracking import NullTracker, Tracker
from advtrain.world import leads

logger = logging.getLogger(__name__)


def execute(
    config: Mapping[str, Any],
    directory: Path,
    facts: Mapping[str, Any],
    allowed: tuple[str, ...],
    stop: Callable[[], None],
) -> None:
    """Do the job that `config` asks for in `directory`; `stop` is called at safe points."""
    if config["job"] == "eval" and config["checkpoint"] is None:
        raise ConfigError(
            "checkpoint=null, but job=eval judges a checkpoint: give a run directory, a checkpoint "
            "file, or someone's state dict."
        )
    if config["job"] == "plan":
        raise ConfigError("job=plan is of a whole line; it cannot be one of several values of job.")
    here = setting(config, directory, allowed)
    if config["eval"]:
        here.build("eval")  # what is wrong with it is said before hours of training
    tracker: Tracker = _tracker(config, directory, facts, allowed)
    code = 1
    try:
        if config["job"] != "eval":
            here = for_training(here)
            facts = {**facts, "asked_batch_size": config["batch_size"]}
            alarms = train(here, facts, tracker, stop).alarms
            facts = {**facts, "alarms": alarms}
        if config["job"] != "train" and config["eval"]:
            results = _evaluate(here, facts, stop)
            tracker.table(results)
        of_leader(partial(_report, directory, tracker))
        code = 0
    finally:
        tracker.finish(code)


def _tracker(
    config: Mapping[str, Any],
    directory: Path,
    facts: Mapping[str, Any],
    allowed: tuple[str, ...],
) -> Tracker:
    """The mirror that the configuration asks for; followers have none."""
    if not leads():
        return NullTracker()
    tracker: Tracker = make(
        config["logger"],
        config,
        directory,
        config["name"],
        facts.get("family"),
        sorted({str(choice) for choice in facts["choices"].values() if choice}),
        path="logger",
        allowed=allowed,
    )
    return tracker


def _report(directory: Path, tracker: Tracker) -> None:
    write_run(directory, state="done")
    status.write(directory, "done", exit_code=0)  # last: what says so has all its files
    tracker.images(sorted((directory / "plots").glob("*.png")))


def _best(best: Path) -> dict[str, Any]:
    """Its content. CheckpointLost: it is damaged; no other weights are judged in its place."""
    try:
        return checkpoints.load(best)
    except checkpoints.Damaged as error:
        raise CheckpointLost(
            f"{best} is damaged ({error.why}). Put back a copy, judge the newest weights by "
            f"job=eval checkpoint={best.with_name('last.pt')}, or train again with resume=false."
        ) from error


def _evaluate(here: Setting, facts: Mapping[str, Any], stop: Callable[[], None]) -> dict[str, Any]:
    config, data = here.config, here.data
    model = make_model(config, data.shape, len(data.classes), here.device, here.allowed)
    if config["job"] == "eval":
        said = start_weights(model, config["checkpoint"])
        if "; " in said:  # more than where the weights are from
            logger.warning("%s", said)
        here = for_evaluation(here, model)
        return evaluate_model(model, here, facts, str(config["checkpoint"]), stop)
    best = here.directory / "checkpoints" / "best.pt"
    content = of_leader(partial(_best, best))
    for key, (there, now) in differences(identity(content["config"]), identity(config)).items():
        raise ConfigError(f"{best} is of a run with {key}={there}, not {now}; use resume=false.")
    checkpoints.restore(model, checkpoints.weights(content, best), best)
    chosen = {**facts, "selected_on": content["judged_by"], "training": content.get("scores")}
    return evaluate_model(model, for_evaluation(here, model), chosen, "best", stop)

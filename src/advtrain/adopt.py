"""`job=eval checkpoint=RUN` without repeating the run's configuration.

The data set, network, threat and method of a checkpoint of ours are taken over, except what the
command line says itself. A checkpoint without a configuration takes all from the command line.
What is taken over is data: it is checked like a command line, and builds nothing outside advtrain.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from advtrain import checkpoints
from advtrain.grid import choices, composed, ours

CHOICES = ("dataset", "model", "threat", "defense", "descent", "average", "penalty")
VALUES = ("dataset", "model", "threat", "seed")
OPTION = re.compile(r"[A-Za-z0-9_]+(/[A-Za-z0-9_]+)*")


def adopt(config: DictConfig, facts: Mapping[str, Any]) -> tuple[DictConfig, dict[str, Any]]:
    """The configuration with what the checkpoint brings, and facts that change by it.

    `facts`: overrides and config_dir of the command line, and the choices made there.
    CheckpointError: the file cannot be read. Hydra's errors: it was trained with an option that is
    no longer there.
    """
    overrides = facts["overrides"]
    file = checkpoints.locate(str(config.checkpoint))
    content = checkpoints.load(file)
    stored = content.get("config")
    taken_over: dict[str, Any] = {"selected_on": content.get("judged_by")}
    if not isinstance(stored, Mapping):
        return config, taken_over
    given = {override.lstrip("+~").partition("=")[0] for override in overrides}
    old = content.get("choices", {})
    taken = [
        f"{group}={old[group]}"
        for group in CHOICES
        if group not in given and OPTION.fullmatch(str(old.get(group, "")))
    ]
    with composed([*taken, *overrides], facts.get("config_dir")) as full:
        new = ours(full)
        taken_over["choices"] = choices(full)
    with open_dict(new):
        for group in VALUES:
            if group not in given and group in stored:
                _take(new, group, stored[group], given)
        if "name" not in given:
            new.name = str(stored.get("name", config.name))
    return new, taken_over


def _take(config: DictConfig, group: str, value: Any, given: Iterable[str]) -> None:
    """Put the stored node in place, then again what the command line says inside it."""
    kept = {key: OmegaConf.select(config, key) for key in given if key.startswith(f"{group}.")}
    OmegaConf.update(config, group, value, merge=False)
    for key, own in kept.items():
        OmegaConf.update(config, key, own, merge=False)

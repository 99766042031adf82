"""`job=eval checkpoint=RUN` without repeating the run's configuration.

The data set, network, threat and method of a checkpoint of ours are taken over, except what the
command line says itself; of the method's settings only the scale of its noise, which rows and
certificates follow. A checkpoint without a configuration takes all from the command line.
What is taken over is data of a file: confined to our own packages, without interpolations, and
checked like a command line.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf, open_dict

from advtrain import inert, status
from advtrain.config import ConfigError, check, confined, plain
from advtrain.foreign import Refused
from advtrain.grid import choices, composed, ours

CHOICES = ("dataset", "model", "threat", "defense", "descent", "average", "penalty")
METHOD = CHOICES[3:]
PACKAGES = {"dataset": "advtrain.data", "model": "advtrain.models", "threat": "advtrain.threat"}
HERE = (*inert.OF_DATA, "root", "max_train_size", "max_test_size")
"""Keys of a data set that belong to the machine and the scale of this evaluation."""
OPTION = re.compile(r"[A-Za-z0-9_]+(/[A-Za-z0-9_]+)*")
NAME, NOT_NAME = re.compile(r"[A-Za-z0-9_.,=+-]+"), re.compile(r"[^A-Za-z0-9_.,=+-]")
DOTTED = re.compile(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)+")
UNKNOWN = "${hydra:runtime.choices.dataset}-${hydra:runtime.choices.model}-"
"""What the name of a run begins with if its method is unknown."""


def recorded(checkpoint: str, overrides: Sequence[str]) -> list[str]:
    """The overrides that name the choices of the run at `checkpoint`, as its status.json has them.

    Without torch, so that Hydra composes for the right groups. Where there is no record, a file
    of unknown origin gives its own name instead of a method's. ConfigError: the run had a network
    of someone else, and the command line does not allow its code.
    """
    place, given = Path(checkpoint), _keys(overrides)
    found = status.read(place if place.is_dir() else place.parent.parent)
    named: list[str] = []
    if found:
        name = str(_mapping(found, "config").get("name", ""))
        named = [f"name='{name}'"] if NAME.fullmatch(name) else []
    elif given.isdisjoint(METHOD):
        named = [f"name='{UNKNOWN}{NOT_NAME.sub('_', place.stem)}'"]
    named = named * ("name" not in given) + _factory(found, checkpoint, overrides)
    return _choices(_mapping(found, "choices"), given) + named


def _factory(found: Mapping[str, Any], checkpoint: str, overrides: Sequence[str]) -> list[str]:
    """The override for the factory of a run of model=custom, if `packages=` allows it."""
    given = dict(override.lstrip("+~").partition("=")[::2] for override in overrides)
    model, factory = (_mapping(found, name).get("model") for name in ("choices", "config"))
    factory = _mapping({"model": factory}, "model").get("factory")
    chosen = given.get("model", model) == model
    if not chosen or "model.factory" in given or not DOTTED.fullmatch(str(factory)):
        return []
    package, _, _ = str(factory).partition(".")
    listed = [each for each in overrides if each.startswith("packages=")]
    values = [each.value() for each in OverridesParser.create().parse_overrides(listed)]
    if not any(package in value for value in values if isinstance(value, list)):
        raise ConfigError(
            f"checkpoint={checkpoint}: this run used model.factory={factory}; give "
            f"packages=[{package}] to call it, or model.factory= itself."
        )
    return [f"model.factory={factory}"]


def adopt(
    config: DictConfig, facts: Mapping[str, Any], allowed: Iterable[str]
) -> tuple[DictConfig, dict[str, Any]]:
    """The configuration with what the checkpoint brings, and facts that change by it.

    `facts`: overrides and config_dir of the command line, and the choices made there.
    CheckpointError: the file cannot be read. ConfigError: it asks for code of others. Hydra's
    errors: it was trained with an option that is no longer there.
    """
    from advtrain import checkpoints
    from advtrain.runs import built_for, require_fitting

    file = checkpoints.locate(str(config.checkpoint))
    content = checkpoints.load(file)
    overrides, stored = facts["overrides"], content.get("config")
    given = _keys(overrides)
    judged_by = content.get("judged_by")
    taken_over: dict[str, Any] = {"selected_on": judged_by if isinstance(judged_by, str) else None}
    if not isinstance(stored, Mapping):  # someone else's: nothing is known of how it was trained
        unknown = {group: None for group in METHOD if group not in given}
        return config, taken_over | {"choices": {**facts["choices"], **unknown}}
    old = _mapping(content, "choices")
    try:
        shape, classes = built_for(content)
    except Refused as error:
        raise ConfigError(f"checkpoint={file} is refused: {error}.") from error
    with composed([*_choices(old, given), *overrides], facts.get("config_dir")) as full:
        new = ours(full)
        chosen = taken_over["choices"] = choices(full)
    with open_dict(new):
        for group, package in PACKAGES.items():
            radius = group == "threat" and any(key.startswith("dataset.eps") for key in given)
            if group in stored and chosen.get(group) == old.get(group) and not radius:
                if "_target_" not in _mapping(stored, group):
                    raise ConfigError(
                        f"checkpoint={file} cannot be used: in the configuration that it holds, "
                        f"{group}={str(stored[group])[:60]!r} is no node with _target_."
                    )
                confined(stored[group], package, f"{file}: {group}", allowed)
                _take(new, group, stored[group], given)
        sigma = _mapping(stored, "defense").get("sigma")  # of the noise: certificates follow it
        same = chosen.get("defense") == old.get("defense") and "sigma" in new.get("defense", {})
        if same and "defense.sigma" not in given and type(sigma) in (int, float):
            new.defense.sigma = sigma
        if "seed" not in given and type(stored.get("seed")) is int:
            new.seed = stored["seed"]
        if "spectral_norm" not in given:
            new.spectral_norm = str(stored.get("spectral_norm", "none"))
        if "name" not in given and NAME.fullmatch(str(stored.get("name", ""))):
            new.name = str(stored["name"])
    try:
        resolved = plain(new)
        check(resolved, allowed=allowed)
        if chosen.get("model") == old.get("model"):
            weights = checkpoints.weights(content, file)
            require_fitting(resolved["model"], shape, classes, weights, allowed)
    except (ConfigError, Refused) as error:
        raise ConfigError(
            f"checkpoint={file}: with the configuration that it holds, {error}"
        ) from error
    return new, taken_over


def _take(config: DictConfig, group: str, value: Mapping[str, Any], given: Iterable[str]) -> None:
    """Put the stored node in place, then again what this machine and the command line say."""
    own = {key for key in given if key.startswith(f"{group}.")}
    own |= {f"{group}.{key}" for key in HERE if group == "dataset" and key in config[group]}
    kept = {key: OmegaConf.select(config, key) for key in own}
    OmegaConf.update(config, group, json.loads(json.dumps(value)), merge=False)
    for key, here in kept.items():
        OmegaConf.update(config, key, here, merge=False)


def _choices(old: Mapping[str, Any], given: Iterable[str]) -> list[str]:
    """Overrides for the options of `old` that the command line does not choose itself."""
    return [
        f"{group}={old[group]}"
        for group in CHOICES
        if group not in given and OPTION.fullmatch(str(old.get(group, "")))
    ]


def _mapping(content: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """The mapping at `key` of a file; an empty one where it holds something else."""
    value = content.get(key)
    return value if isinstance(value, Mapping) else {}


def _keys(overrides: Iterable[str]) -> set[str]:
    return {override.lstrip("+~").partition("=")[0] for override in overrides}

"""What is said of a command line that cannot be right.

Errors of Hydra and OmegaConf are retold in one sentence with the key, the value and the way out.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.errors import OverrideParseException
from omegaconf import DictConfig, OmegaConf
from yaml import YAMLError  # type: ignore[import-untyped]

from advtrain.config import FACTS, conf_dir, key_of
from advtrain.signatures import nearest

TRAINED_BY = ("epochs", "batch_size", "fresh", "freeze", "freeze_epochs", "watchdog")
TRAINING = ("optimizer", "schedule", "defense", "descent", "average", "penalty", "validate")

EXTRAS = {
    "hydra/launcher=submitit_slurm": "slurm",
    "hydra/launcher=submitit_local": "slurm",
    "hydra/launcher=ray": "ray",
    "hydra/sweeper=optuna": "optuna",
}
"""The extra of advtrain that brings an option of Hydra's own groups."""


def explain(error: BaseException, overrides: Sequence[str], base: DictConfig | None) -> str:
    """One line for a composition that failed; `base` is the configuration without overrides."""
    text = " ".join(str(part) for part in _chain(error))
    if found := re.search(r"Could not override '([^']+)'", text):
        return _no_key(found[1], overrides, base)
    if found := re.search(r"Could not find '([^']+)/([^'/]+)'", text):
        return _no_option(found[1], found[2])
    if found := re.search(r"Could not load '([^']+)/([^'/]+)'", text):
        return _no_option(found[1], found[2])
    if found := re.search(r"Ambiguous value for argument '([^']+)'", text):
        return f"{found[1]}: a list of values is a grid; add -m, or write [a,b] for one list."
    if found := re.search(r"Interpolation key '([^']+)' not found", text):
        return f"{found[1]} is not there, but something refers to it; do not remove it."
    if unreadable := [each for each in _chain(error) if isinstance(each, OverrideParseException)]:
        given = unreadable[0].override
        return f"{given}: this cannot be read. Quote values with spaces or signs: 'key=\"a b\"'."
    if found := re.search(r"Error merging override (\S+) (.*)", text):
        return f"{found[1]} is refused{_allowed(found[2])}"
    if found := re.search(r"An item is already at '([^']+)'", text):
        return f"+{found[1]}: that key exists; leave out the +."
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def no_word(error: ValueError, overrides: Iterable[str]) -> str:
    """One line for Hydra's error where the option of a group is a number, null or the like."""
    for override in overrides:
        group, _, option = override.lstrip("+").partition("=")
        options = {path.stem for path in (conf_dir() / group).glob("*.yaml")}
        if group.startswith("hydra/") or (options and option not in options and "/" not in option):
            return _no_option(group, option)
    return str(error)


def no_yaml(error: YAMLError) -> str:
    """One line for a file of options, as of --config-dir, that is no YAML."""
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    where = f"{mark.name}, line {mark.line + 1}" if mark is not None else "a file of options"
    return f"{where}, is no YAML: {problem or str(error).splitlines()[0]}."


def causes(problems: Sequence[str], written: DictConfig) -> list[str]:
    """The problems without those of values that interpolate another refused one.

    `written`: the configuration before its interpolations are resolved.
    """
    raw = OmegaConf.to_container(written, resolve=False)
    refused = {key_of(problem) for problem in problems}
    return [each for each in problems if refused.isdisjoint(_referred(key_of(each), raw))]


def _referred(key: str, raw: Any) -> list[str]:
    """The keys that the value at `key`, or a node around it, interpolates: `threat.eps`."""
    parts, found = key.split("."), []
    for depth, part in enumerate(parts, start=1):
        raw = raw.get(part) if isinstance(raw, Mapping) else None
        for dots, name in re.findall(r"\$\{(\.*)([\w.]+)\}", raw if isinstance(raw, str) else ""):
            around = parts[: depth - len(dots)] if dots else []
            found.append(".".join([*around, name, *parts[depth:]]))
    return found


def unread(config: DictConfig, overrides: Iterable[str]) -> set[str]:
    """The overrides of this run that nothing in it reads."""
    keys = {override.lstrip("+~").partition("=")[0]: override for override in overrides}
    return {override for key, override in keys.items() if _is_unread(config, key)}


def _is_unread(config: DictConfig, key: str) -> bool:
    group, _, rest = key.partition(".")
    fact = rest.partition(".")[0]
    if group == "attack":
        return config.job == "eval" or "${attack" not in _text_without(config, "attack")
    if group == "dataset" and fact in FACTS["dataset"] and fact != "replays":
        return f"dataset.{fact}" not in _text_without(config, "dataset")
    if group == "eval" and rest:
        return bool(config.job == "train")
    return config.job == "eval" and (key in TRAINED_BY or (group in TRAINING and bool(rest)))


def _text_without(config: DictConfig, group: str) -> str:
    raw = OmegaConf.to_container(config, resolve=False)
    assert isinstance(raw, dict)
    return str({key: value for key, value in raw.items() if key != group})


KINDS = {
    r"could not be converted to Float": "a number",
    r"could not be converted to Integer": "a whole number",
    r"not a valid bool": "true or false",
}
"""What OmegaConf says of a value of the wrong type, and what would be right."""


def _allowed(complaint: str) -> str:
    kind = next((kind for told, kind in KINDS.items() if re.search(told, complaint)), None)
    return f"; allowed is {kind}." if kind else f": {complaint}"


def _chain(error: BaseException | None) -> list[BaseException]:
    return [error, *_chain(error.__cause__)] if error is not None else []


def _no_key(key: str, overrides: Sequence[str], base: DictConfig | None) -> str:
    given = next((each for each in overrides if each.lstrip("+~").startswith(key)), key)
    parent, _, last = key.rpartition(".")
    while base is not None and parent and OmegaConf.select(base, parent) is None:
        parent, _, last = parent.rpartition(".")  # to what is there: the step that is wrong
    known = [] if base is None else _keys(OmegaConf.select(base, parent) if parent else base)
    elsewhere = [] if base is None else [path for path in _paths(base) if path.endswith(f".{last}")]
    near = nearest(last, known)
    guess = f"{parent}.{near}".lstrip(".") if near else None
    hint = (
        f" Did you mean {min(elsewhere, key=len) if elsewhere else guess}?"
        if elsewhere or guess
        else ""
    )
    listed = f" Known under {parent or 'the root'}: {', '.join(known)}." if known else ""
    return f"{given}: there is no such key.{hint}{listed}"


def _keys(node: object) -> list[str]:
    hidden = ("_target_", "_partial_", "hydra")
    return [str(key) for key in node if key not in hidden] if isinstance(node, DictConfig) else []


def _paths(node: DictConfig, path: str = "") -> list[str]:
    """The dotted keys of all values below `node` that are written there, not referred to."""
    found = []
    for key in _keys(node):
        given = not OmegaConf.is_interpolation(node, key) and not OmegaConf.is_missing(node, key)
        child = node[key] if given else None
        found += _paths(child, f"{path}{key}.") if isinstance(child, DictConfig) else [path + key]
    return found


def _no_option(group: str, option: str) -> str:
    if group.startswith("hydra/"):
        return _no_engine(group, option)
    options = sorted(path.stem for path in (conf_dir() / group).glob("*.yaml"))
    if group.partition("/")[0] == "row":
        return _no_row(group.partition("/")[2], option, options)
    guess = nearest(option, options)
    hint = f" Did you mean {group}={guess}?" if guess else ""
    return f"{group}={option}: there is no such option.{hint} Allowed: {', '.join(options)}."


def _no_row(table: str, option: str, options: Sequence[str]) -> str:
    if not options:
        return f"row={option}: rows are those of a paper's table; give experiment=NAME with it."
    listed = ", ".join(options)
    return f"row={option}: experiment={table} has no such row. Allowed: {listed}."


def _no_engine(group: str, option: str) -> str:
    """Launchers and sweepers are options that packages bring."""
    known = ConfigStore.instance().list(group)
    options = sorted(name.removesuffix(".yaml") for name in known)
    if extra := EXTRAS.get(f"{group}={option}"):
        return (
            f"{group}={option} is not installed here: pip install '.[{extra}]', in the folder of "
            "advtrain's sources, brings it."
        )
    return f"{group}={option}: there is no such option. Allowed: {', '.join(options)}."

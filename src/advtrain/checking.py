"""What is refused before any job runs: a configuration that could not be built, a vain override."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import Any

from omegaconf import DictConfig, OmegaConf

from advtrain import config as configuration
from advtrain.complaints import causes, unread
from advtrain.config import ConfigError
from advtrain.grid import ours

NAMES = ("_target_", "()", "class")
ENGINES = ("advtrain", "hydra", "hydra_plugins", "logging", "sys", "colorlog", "optuna", "ray")


def checked(config: DictConfig, overrides: Sequence[str]) -> tuple[dict[str, Any], set[str]]:
    """The plain configuration of one job, and those of its overrides that nothing in it reads.

    `config` holds the node `hydra`, whose interpolations work. ConfigError: the job could not be
    built.
    """
    chosen = ours(config)
    resolved, allowed = configuration.plain(chosen), packages(chosen, overrides)
    require_known_code(config, allowed)
    problems = configuration.problems(resolved, allowed=allowed)
    configuration.refuse(causes([*problems, *_of_name(resolved.get("name"))], chosen))
    return resolved, unread(chosen, overrides)


def _of_name(name: Any) -> list[str]:
    """What is wrong with the name of a run, which is that of its folder, too."""
    parts = PurePath(str(name)).parts
    if str(name).strip() and ".." not in parts and not PurePath(str(name)).is_absolute():
        return []
    return [
        f"name={name} is refused; allowed is a name that is not empty, as it is that of the run's "
        "folder below outputs/ too: without .. or / in front."
    ]


def refuse_unread(vain: Iterable[set[str]]) -> None:
    """ConfigError for an override that no job of an invocation reads; `vain`: those of each job."""
    for override in sorted(set.intersection(*vain)) if vain else []:
        raise ConfigError(
            f"{override}: nothing in this run reads it; leave it out. (job=eval trains nothing, "
            "job=train evaluates nothing, and some defenses train without an attack.)"
        )


def require_known_code(config: DictConfig, allowed: Iterable[str]) -> None:
    """ConfigError: the node `hydra` calls code that is neither Hydra's, of its engines nor ours.

    Its callbacks, launchers and loggers are built by Hydra, which knows nothing of `packages`.
    """
    known = (*ENGINES, *allowed)
    raw = OmegaConf.to_container(config.hydra, resolve=False)
    for path, key, value in _named_code(raw, "hydra"):
        if str(value).removeprefix("ext://").split(".")[0] not in known:
            raise ConfigError(
                f"{path}.{key}={str(value)[:60]} is refused: code outside advtrain and Hydra is "
                "called only where the command line names its package, as packages=[NAME]."
            )


def _named_code(node: Any, path: str) -> Iterator[tuple[str, str, Any]]:
    """Where below `node` something names code that Hydra, or Python's logging, would call."""
    if isinstance(node, Mapping):
        for key, value in node.items():
            if key in NAMES or (isinstance(value, str) and value.startswith("ext://")):
                yield path, str(key), value
            yield from _named_code(value, f"{path}.{key}")
    elif isinstance(node, list):
        for value in node:
            yield from _named_code(value, path)


def packages(config: DictConfig, overrides: Iterable[str]) -> tuple[str, ...]:
    """The packages beside advtrain that the command line itself names."""
    given = [(key.lstrip("+"), value) for key, _, value in (o.partition("=") for o in overrides)]
    named = [
        value.strip("'\"").split(".")[0]
        for key, value in given
        if key.endswith(("_target_", "model.factory"))
    ]
    listed = config.packages if any(key == "packages" for key, _ in given) else []
    return (*named, *(str(each) for each in listed))

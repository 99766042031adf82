"""What is refused before any job runs: a configuration that could not be built, a vain override."""

from collections.abc import Iterable, Sequence
from pathlib import PurePath
from typing import Any

from omegaconf import DictConfig

from advtrain import config as configuration
from advtrain.complaints import causes, unread
from advtrain.config import ConfigError
from advtrain.grid import ours


def checked(config: DictConfig, overrides: Sequence[str]) -> tuple[dict[str, Any], set[str]]:
    """The plain configuration of one job, and those of its overrides that nothing in it reads.

    `config` holds the node `hydra`, whose interpolations work. ConfigError: the job could not be
    built.
    """
    chosen = ours(config)
    resolved, allowed = configuration.plain(chosen), packages(chosen, overrides)
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

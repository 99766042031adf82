"""Where a job of a grid works, and what its status says of it from the start.

A job tells both itself. Where its process has died before it could, its pool does.
"""

import os
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from advtrain import config as configuration
from advtrain import ledger
from advtrain.composing import overrides
from advtrain.config import ConfigError
from advtrain.grid import choices

SUBDIR = "hydra.sweep.subdir"
NUMBERED = "${hydra.job.num}"  # its value in conf/config.yaml: the grid numbers its folders
OWN = ("plots", "wandb")  # folders of the grid itself


def place(config: DictConfig, number: int) -> Path:
    """The folder of job `number` of a launch; `config` holds the node `hydra`, and is current."""
    with read_write(config.hydra.job), open_dict(config.hydra.job):
        config.hydra.job.id = config.hydra.job.num = number
    HydraConfig.instance().set_config(config)
    return Path(os.path.abspath(Path(config.hydra.sweep.dir) / str(config.hydra.sweep.subdir)))


def is_numbered(config: DictConfig) -> bool:
    """Whether folders are numbers, and nothing else; `config` holds the node `hydra`."""
    raw = OmegaConf.to_container(config.hydra.sweep, resolve=False)
    return isinstance(raw, dict) and raw["subdir"] == NUMBERED


def free_name(config: DictConfig, numbers: Iterator[int], taken: Collection[str]) -> str:
    """What hydra.sweep.subdir calls the folder of a new job with the next of `numbers`.

    Those whose folder is `taken` are skipped. ConfigError: the name hangs on no number and is
    taken, or such a folder would not be found again. `config`: the job's, with the node `hydra`.
    """
    before = None
    for number in numbers:
        place(config, number)
        name = str(config.hydra.sweep.subdir)
        if "/" in name or name.startswith(".") or name in ("", *OWN):
            raise ConfigError(
                f"{SUBDIR}={name} is refused: allowed is the name of a folder in that of the grid, "
                f"without / and no dot in front; {' and '.join(OWN)} are the grid's own."
            )
        if name not in taken:
            return name
        if name == before:
            raise ConfigError(
                f"{SUBDIR}={name} would hold two jobs, of which one is "
                f"{' '.join(overrides(config.hydra.overrides.task))}. Leave it out, for folders 0, "
                "1, 2, or name in it what differs."
            )
        before = name
    raise AssertionError("numbers end")


def facts(config: DictConfig, hydra: DictConfig) -> dict[str, Any]:
    """Choices, overrides, config_dir (of the command line), family (the grid) and, of a job of a
    grid, its identity; `hydra`: the node of that name, whose configuration is current."""
    sources = hydra.runtime.config_sources
    chosen = choices(OmegaConf.create({"hydra": hydra}))
    found: dict[str, Any] = {
        "choices": chosen,
        "overrides": overrides(hydra.overrides.task),
        "family": None,
        "config_dir": next((s.path for s in sources if s.provider == "command-line"), None),
    }
    if hydra.mode == RunMode.MULTIRUN:
        found["family"] = Path(hydra.sweep.dir).name
        with suppress(ConfigError):  # which the job itself will tell
            resolved = configuration.settled(configuration.plain(config))
            found["identity"] = ledger.identity(resolved, chosen)
    return found

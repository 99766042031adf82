"""Where a job of a grid works, and what its status says of it from the start.

A job tells both itself. Where its process has died before it could, its pool does.
"""

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict

from advtrain import config as configuration
from advtrain import ledger
from advtrain.config import ConfigError
from advtrain.grid import choices


def place(config: DictConfig, number: int) -> Path:
    """The folder of job `number` of a launch; `config` holds the node `hydra`, and is current."""
    with open_dict(config):
        config.hydra.job.id = config.hydra.job.num = number
    HydraConfig.instance().set_config(config)
    return Path(os.path.abspath(Path(config.hydra.sweep.dir) / str(config.hydra.sweep.subdir)))


def facts(config: DictConfig, hydra: DictConfig) -> dict[str, Any]:
    """Choices, overrides, config_dir (of the command line), family (the grid) and, of a job of a
    grid, its identity; `hydra`: the node of that name, whose configuration is current."""
    task = OmegaConf.to_container(hydra.overrides.task, resolve=False)
    sources = hydra.runtime.config_sources
    chosen = choices(OmegaConf.create({"hydra": hydra}))
    found: dict[str, Any] = {
        "choices": chosen,
        "overrides": [str(each) for each in task] if isinstance(task, list) else [],
        "family": None,
        "config_dir": next((s.path for s in sources if s.provider == "command-line"), None),
    }
    if hydra.mode == RunMode.MULTIRUN:
        found["family"] = Path(hydra.sweep.dir).name
        with suppress(ConfigError):  # which the job itself will tell
            resolved = configuration.settled(configuration.plain(config))
            found["identity"] = ledger.identity(resolved, chosen)
    return found

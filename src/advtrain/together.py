"""What the processes of one run agree on before it starts: where it is, and who says something.

Each composes the configuration by itself, and gets the same but for the time of day, which stands
in the name of a run directory.
"""

import argparse
import logging
from pathlib import Path

from hydra.types import RunMode

from advtrain.config import ConfigError
from advtrain.grid import composed
from advtrain.world import ALONE, announced

FOLLOWING = ("hydra.output_subdir=null", "hydra.job_logging.root=null")
"""Files of the run directory that Hydra writes are those of the leader."""

GRID = (
    "a grid (--multirun) has many jobs, and torchrun starts several processes for one. Start each "
    "job by a torchrun of its own, or leave out torchrun."
)


def together(parsed: argparse.Namespace) -> list[str]:
    """Overrides for this process, beside those given: none where it is alone.

    The leader's directory for all. The others leave its files to the leader, and the terminal.
    ConfigError: a grid, or an environment that names no process of a run.
    """
    try:
        world = announced()
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if world == ALONE:
        return []
    if parsed.multirun:
        raise ConfigError(GRID)
    with composed(parsed.overrides, parsed.config_dir) as config:
        if config.hydra.mode == RunMode.MULTIRUN:
            raise ConfigError(GRID)
        directory = str(Path(config.hydra.run.dir).absolute())
    from advtrain.crew import main_store

    store = main_store()
    if world.rank == 0:
        store.set("directory", directory)
    else:
        logging.disable(logging.CRITICAL)
    directory = store.get("directory").decode()
    quoted = directory.replace("\\", "\\\\").replace("'", "\\'")
    return [f"hydra.run.dir='{quoted}'", *(FOLLOWING if world.rank else ())]

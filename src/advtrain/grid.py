"""What belongs to a whole invocation: its jobs, composed and checked before any of them runs."""

import argparse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from advtrain.config import conf_dir
from advtrain.resolvers import register_resolvers


class Locate(Callback):
    """Remembers the grid, and the exit codes of jobs in this process, for `main` at the end."""

    sweep: Path | None = None
    codes: dict[Path, int] = {}  # noqa: RUF012  (one process, one invocation)

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        Locate.sweep = Path(config.hydra.sweep.dir)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line as Hydra reads it; ends the process, as Hydra does, on a bad flag."""
    return get_args_parser().parse_args(list(arguments))


def jobs(parsed: argparse.Namespace) -> list[list[str]]:
    """The overrides of each job: one job, or all that Hydra's own sweeper expands a grid to."""
    if not parsed.multirun:
        return [list(parsed.overrides)]
    overrides = OverridesParser.create().parse_overrides(parsed.overrides)
    batches = BasicSweeper.split_arguments(overrides, max_batch_size=None)
    return [list(job) for batch in batches for job in batch]


@contextmanager
def composed(overrides: Sequence[str], config_dir: str | None = None) -> Iterator[DictConfig]:
    """The configuration of one job, `hydra` included; its interpolations work inside."""
    register_resolvers()
    extra = [f"hydra.searchpath=[file://{Path(config_dir).resolve()}]"] if config_dir else []
    running, before = GlobalHydra.instance().hydra, HydraConfig.instance().cfg
    GlobalHydra.instance().clear()  # a job composes inside of the application that runs it
    try:
        with initialize_config_dir(str(conf_dir()), version_base="1.3"):
            config = compose("config", [*overrides, *extra], return_hydra_config=True)
        HydraConfig.instance().set_config(config)
        yield config
    finally:
        GlobalHydra.instance().hydra, HydraConfig.instance().cfg = running, before


def ours(config: DictConfig) -> DictConfig:
    """A copy of the configuration without the node `hydra`."""
    return OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])


def choices(config: DictConfig) -> dict[str, str | None]:
    """The option chosen of each group of ours; `config` holds the node `hydra`."""
    chosen = config.hydra.runtime.choices.items()
    return {str(group): option for group, option in chosen if not str(group).startswith("hydra")}

"""What belongs to a whole invocation: its line, its grid, the composition of its jobs."""

import argparse
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError  # type: ignore[import-untyped]

from advtrain.complaints import no_word, no_yaml
from advtrain.config import ConfigError, conf_dir
from advtrain.config_source import read_within_bounds
from advtrain.lock import locked
from advtrain.resolvers import register_resolvers
from advtrain.telling import tell

SWEEPER = "hydra_plugins.advtrain_sweeper.GridSweeper"

register_resolvers()  # wherever a job is composed, in this process or in a launcher's


class Locate(Callback):
    """Remembers the grid, and the exit codes of jobs in this process, for `main` at the end.

    The folder of a grid is held from before its first job until the process ends: two grids never
    write into one.
    """

    sweep: Path | None = None
    codes: dict[Path, int] = {}  # noqa: RUF012  (one process, one invocation)
    held = ExitStack()

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        if config.hydra.sweeper.get("_target_") != SWEEPER:  # which does so once all is checked
            try:
                Locate.hold(Path(config.hydra.sweep.dir))
            except ConfigError as error:  # Hydra makes warnings of what callbacks raise
                tell(f"advtrain: {error}")
                raise SystemExit(2) from error
            Locate.sweep = Path(config.hydra.sweep.dir)

    @staticmethod
    def hold(sweep: Path) -> None:
        """Keep others from the folder. ConfigError: another grid is at work there."""
        try:
            Locate.held.enter_context(locked(sweep / ".lock", wait=0))
        except BlockingIOError as error:
            raise ConfigError(
                f"hydra.sweep.dir={sweep}: another grid is at work there. Choose another, or wait."
            ) from error


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line as Hydra reads it; ends the process, as Hydra does, on a bad flag."""
    return get_args_parser().parse_args(list(arguments))


@contextmanager
def composed(overrides: Sequence[str], config_dir: str | None = None) -> Iterator[DictConfig]:
    """The configuration of one job, `hydra` included; its interpolations work inside."""
    extra = [f"hydra.searchpath=[file://{Path(config_dir).resolve()}]"] if config_dir else []
    running, before = GlobalHydra.instance().hydra, HydraConfig.instance().cfg
    read_within_bounds()
    GlobalHydra.instance().clear()  # a job composes inside of the application that runs it
    try:
        with initialize_config_dir(str(conf_dir()), version_base="1.3"):
            try:
                config = compose("config", [*overrides, *extra], return_hydra_config=True)
            except (ConfigError, HydraException, OmegaConfBaseException):
                raise
            except YAMLError as error:
                raise ConfigError(no_yaml(error)) from error
            except ValueError as error:
                raise ConfigError(no_word(error, overrides)) from error
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

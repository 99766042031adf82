"""Hydra's side of advtrain's grids: `hydra/sweeper=grid`, the default of conf/config.yaml."""

from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


@dataclass
class GridSweeperConf:
    """`params`: overrides of an experiment, as Hydra's own sweeper has them. `rows`: values that
    belong together, a mapping for each row. `retry_failed`: where a folder is gone on with, failed
    jobs are done again."""

    _target_: str = "hydra_plugins.advtrain_sweeper.GridSweeper"
    params: dict[str, Any] = field(default_factory=dict)
    rows: Any = None
    retry_failed: bool = True


ConfigStore.instance().store(
    group="hydra/sweeper", name="grid", node=GridSweeperConf, provider="advtrain"
)


class GridSweeper(Sweeper):
    """Hands a grid to `advtrain.sweeping`."""

    def __init__(self, **settings: Any) -> None:
        """The settings are read from the configuration of the grid."""

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        from hydra.core.plugins import Plugins

        self.config, self.context = config, hydra_context
        self.launcher: Launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        from advtrain.sweeping import sweep

        assert self.config is not None and self.context is not None
        sweep(self.config, self.context, self.launcher, arguments)

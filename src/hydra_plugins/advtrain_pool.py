"""Hydra's side of the pool: `hydra/launcher=pool`, one process per slot of this machine."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


@dataclass
class PoolLauncherConf:
    """`slots`: jobs at a time; auto: one per GPU, else one per two cores, at least two. `timeout`:
    seconds that a job may take, null for any; `grace`: seconds that it has to save its state then.
    `retries`: how often a job that fails is tried again in the same grid."""

    _target_: str = "hydra_plugins.advtrain_pool.PoolLauncher"
    slots: Any = "auto"
    timeout: Optional[float] = None  # noqa: UP045  (OmegaConf reads it)
    grace: float = 60.0
    retries: int = 0


ConfigStore.instance().store(
    group="hydra/launcher", name="pool", node=PoolLauncherConf, provider="advtrain"
)


class PoolLauncher(Launcher):
    """Hands jobs to `advtrain.pool`."""

    def __init__(self, slots: Any, timeout: float | None, grace: float, retries: int) -> None:
        self.slots, self.timeout, self.grace, self.retries = slots, timeout, grace, retries

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        self.context, self.config = hydra_context, config

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        from advtrain.grid import Locate
        from advtrain.messages import Grid, Task
        from advtrain.pool import Pool, Rules, Slot
        from advtrain.slots import environments

        loader = self.context.config_loader
        assert isinstance(loader, ConfigLoaderImpl)
        grid = Grid(loader, self.config)
        tasks = [
            Task(number, tuple(overrides))
            for number, overrides in enumerate(job_overrides, start=initial_job_idx)
        ]
        slots = [Slot(each) for each in environments(self.slots, len(tasks))]
        ended = Pool(grid, slots, Rules(self.timeout, self.grace, self.retries)).run(tasks)
        for number, found in ended.items():  # also of jobs whose folder nobody could write
            Locate.codes[Path(self.config.hydra.sweep.dir, f"job {number}")] = found.code
        return [  # what went wrong stands in the status of the job
            JobReturn(task.overrides, status=JobStatus.COMPLETED, _return_value=found.value)
            for task, found in ((task, ended[task.number]) for task in tasks)
        ]

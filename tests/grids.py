"""Grids composed in this process, without the command around them."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from hydra import initialize_config_dir
from hydra._internal.callbacks import Callbacks
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig

from advtrain.config import conf_dir


class Grid(NamedTuple):
    config: DictConfig
    loader: ConfigLoaderImpl

    @property
    def context(self) -> HydraContext:
        return HydraContext(config_loader=self.loader, callbacks=Callbacks())

    @property
    def arguments(self) -> list[str]:
        return [str(each) for each in self.config.hydra.overrides.task]


@contextmanager
def grid(*overrides: str) -> Iterator[Grid]:
    before = HydraConfig.instance().cfg
    try:
        with initialize_config_dir(str(conf_dir()), version_base="1.3"):
            hydra = GlobalHydra.instance().hydra
            assert hydra is not None
            config = hydra.compose_config(
                "config",
                list(overrides),
                run_mode=RunMode.MULTIRUN,
                with_log_configuration=False,
            )
            loader = hydra.config_loader
            assert isinstance(loader, ConfigLoaderImpl)
            yield Grid(config, loader)
    finally:
        HydraConfig.instance().cfg = before

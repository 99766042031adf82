"""The configurations of a grid's jobs, fast: each choice of groups is composed once.

A job's values are put on a copy of it, by Hydra's own function, as Hydra does after composing. So
the configuration is that of `load_sweep_config`, at a fraction of the time where jobs differ in
their values alone.
"""

import copy
from collections.abc import Sequence
from functools import lru_cache

from hydra._internal.config_loader_impl import ConfigLoaderImpl, get_overrides_dirname
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, ListConfig, OmegaConf

KEPT = 64  # choices of groups that are remembered


def overrides(given: ListConfig) -> list[str]:
    """Overrides as they were written, with interpolations that are for later."""
    lines = OmegaConf.to_container(given, resolve=False)
    assert isinstance(lines, list)
    return [str(each) for each in lines]


class Composer:
    """Call it with the overrides of a job; `master` is the configuration of the whole grid."""

    def __init__(self, loader: ConfigLoaderImpl, master: DictConfig) -> None:
        self.loader, self.master = loader, master
        self.parser = OverridesParser.create()
        given = overrides(master.hydra.overrides.hydra)
        _, self.known = loader._parse_overrides_and_create_caching_repo(
            master.hydra.job.config_name, given
        )
        self._chosen = lru_cache(KEPT)(self._load)

    def __call__(self, line: Sequence[str]) -> DictConfig:
        """The configuration of one job, `hydra` included. Hydra's errors, where it has any."""
        parsed = self.parser.parse_overrides(list(line))
        values = [each for each in parsed if self._is_value(each)]
        groups = [str(each.input_line) for each in parsed if not self._is_value(each)]
        config: DictConfig = copy.deepcopy(self._chosen(tuple(groups)))
        ConfigLoaderImpl._apply_overrides_to_config(values, config)
        task = [each for each in parsed if not each.is_hydra_override()]
        job = config.hydra.job
        config.hydra.overrides.task = [each.input_line for each in task]
        job.override_dirname = get_overrides_dirname(
            overrides=task,
            kv_sep=job.config.override_dirname.kv_sep,
            item_sep=job.config.override_dirname.item_sep,
            exclude_keys=job.config.override_dirname.exclude_keys,
        )
        OmegaConf.copy_cache(from_config=self.master, to_config=config)
        return config

    def _load(self, groups: tuple[str, ...]) -> DictConfig:
        return self.loader.load_sweep_config(self.master, list(groups))

    def _is_value(self, override: Override) -> bool:
        group = self.known.group_exists(override.key_or_group)
        return not override.is_hydra_override() and (not group or _is_mapping(override))


def _is_mapping(override: Override) -> bool:
    return isinstance(override.value(), dict)

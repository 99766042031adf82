"""The YAML files of others that Hydra reads, within bounds, wherever they lie.

A file of `--config-dir` may name others by its defaults, also outside of that folder, and be a link
or lie behind one. So each is looked at where Hydra opens it.
"""

import os
from pathlib import Path

from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra._internal.sources_registry import SourcesRegistry
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigResult

from advtrain.config import ConfigError, conf_dir
from advtrain.foreign import Refused, require_modest


class ModestSource(FileConfigSource):
    """A folder of configurations. ConfigError: a file in it stands for more than it says."""

    def load_config(self, config_path: str) -> ConfigResult:
        name = self._normalize_file_name(config_path)
        path = Path(os.path.realpath(os.path.join(self.path, name)))
        if not path.is_relative_to(conf_dir().resolve()):
            try:
                require_modest(path)
            except Refused as error:
                raise ConfigError(str(error)) from error
        return super().load_config(config_path)


def read_within_bounds() -> None:
    """From here on Hydra reads no YAML file of others that is not within bounds."""
    Plugins.instance()  # which registers Hydra's own source first, and once
    SourcesRegistry.instance().types[ModestSource.scheme()] = ModestSource

"""The YAML files of others that Hydra reads, within bounds, wherever they lie.

A file of `--config-dir` may name others by its defaults, also outside of that folder, and be a link
or lie behind one. So each is looked at where Hydra opens it.
"""

import os
from functools import wraps
from pathlib import Path

from hydra._internal.sources_registry import SourcesRegistry
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigResult, ConfigSource

from advtrain.config import ConfigError, conf_dir
from advtrain.foreign import Refused, require_modest

FILES = "file"  # of the sources that Hydra knows, that of folders


def read_within_bounds() -> None:
    """From here on Hydra reads no YAML file of others that is not within bounds.

    ConfigError, then and there: a file stands for more than it says. The method is replaced and not
    the source, which launchers tell other processes of, where it would be unknown.
    """
    Plugins.instance()  # which loads the source anew
    source = SourcesRegistry.instance().types[FILES]
    load = source.load_config
    if hasattr(load, "__wrapped__"):
        return

    @wraps(load)
    def load_modest(self: ConfigSource, config_path: str) -> ConfigResult:
        name = self._normalize_file_name(config_path)
        path = Path(os.path.realpath(os.path.join(self.path, name)))
        if not path.is_relative_to(conf_dir().resolve()):
            try:
                require_modest(path)
            except Refused as error:
                raise ConfigError(str(error)) from error
        return load(self, config_path)

    source.load_config = load_modest  # type: ignore[method-assign]

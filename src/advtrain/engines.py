"""What launchers and sweepers of others need of this machine, asked for before anything starts."""

import shutil
import socket
from collections.abc import Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, RangeSweep
from omegaconf import DictConfig, OmegaConf

from advtrain.config import ConfigError
from advtrain.places import SUBDIR, is_numbered

PATIENCE = 3.0  # seconds that a cluster's address may take to answer


def require_engines(config: DictConfig, line: Sequence[str] = ()) -> None:
    """ConfigError: the launcher or the sweeper of this grid cannot work here.

    `config` holds the node `hydra`; `line`: the overrides, with those to be searched.
    """
    chosen = config.hydra.runtime.choices
    launcher, sweeper = chosen.get("hydra/launcher"), chosen.get("hydra/sweeper")
    if launcher == "pool":
        _require_pool(config.hydra.launcher)
    if launcher == "submitit_slurm" and not shutil.which("sbatch"):
        raise ConfigError(
            "hydra/launcher=submitit_slurm: there is no sbatch on this machine. Start it on a login"
            " node of the cluster, or use hydra/launcher=pool for the devices that are here."
        )
    if launcher == "ray":
        _require_ray(OmegaConf.select(config, "hydra.launcher.ray.init.address"))
    if sweeper != "grid" and not is_numbered(config):
        raise ConfigError(
            f"{SUBDIR}={config.hydra.sweep.subdir}: the folders of a search are numbers; leave it "
            "out."
        )
    if sweeper == "optuna":
        _require_search(config.hydra.sweeper)
        params = config.hydra.sweeper.get("params") or {}
        _require_intervals([*(f"{key}={value}" for key, value in params.items()), *line])


def _require_pool(pool: DictConfig) -> None:
    slots, timeout = pool.slots, pool.timeout
    if slots != "auto" and (not isinstance(slots, int) or isinstance(slots, bool) or slots < 1):
        raise ConfigError(
            f"hydra.launcher.slots={slots} is refused; allowed is auto, or a whole number from 1."
        )
    if timeout is not None and timeout <= 0:
        raise ConfigError(
            f"hydra.launcher.timeout={timeout:g} is refused; allowed are seconds above 0, or null."
        )
    for key in ("grace", "retries"):
        if pool[key] < 0:
            raise ConfigError(
                f"hydra.launcher.{key}={pool[key]:g} is refused; allowed is 0 or more."
            )


def _require_search(search: DictConfig) -> None:
    direction = search.get("direction")
    if "maximize" not in str(direction).lower() or "minimize" in str(direction).lower():
        told = str(getattr(direction, "name", direction))
        raise ConfigError(
            f"hydra.sweeper.direction={told} is refused: what a job tells the search is its "
            "accuracy under attack on validation images; write hydra.sweeper.direction=maximize."
        )
    for key in ("n_trials", "n_jobs"):
        number = search.get(key)
        if number is not None and (not isinstance(number, int) or number < 1):
            raise ConfigError(
                f"hydra.sweeper.{key}={number} is refused; allowed is a whole number from 1."
            )


def _require_intervals(line: Sequence[str]) -> None:
    for override in OverridesParser.create().parse_overrides(list(line)):
        found, told = override.value(), f"{override.input_line} is refused"
        if isinstance(found, IntervalSweep):
            low, high = found.start, found.end
        elif isinstance(found, RangeSweep):
            low, high = found.start, found.stop
        else:
            continue
        if low is not None and high is not None and low > high:
            raise ConfigError(f"{told}: it begins at {low:g} and ends below, at {high:g}.")
        if "log" in found.tags and low is not None and low <= 0:
            raise ConfigError(f"{told}: a logarithmic scale begins above 0.")


def _require_ray(address: Any) -> None:
    """ConfigError: no ray answers at host:port, or it is no address at all."""
    if address in (None, "auto", "local"):
        return
    host, _, port = str(address).removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit() or int(port) > 65535:
        raise ConfigError(
            f"hydra.launcher.ray.init.address={address} is refused; allowed are HOST:PORT, "
            "ray://HOST:PORT, auto (a ray that was started on this machine), or null."
        )
    try:
        socket.create_connection((host, int(port)), timeout=PATIENCE).close()
    except OSError as error:
        raise ConfigError(
            f"hydra.launcher.ray.init.address={address}: no ray cluster answers there "
            f"({error.strerror or error}). Start one by `ray start --head`, or leave the address "
            "out to start ray on this machine."
        ) from error

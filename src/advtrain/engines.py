"""What launchers and sweepers of others need of this machine, asked for before anything starts."""

import shutil
import socket
from typing import Any

from omegaconf import DictConfig, OmegaConf

from advtrain.config import ConfigError

PATIENCE = 3.0  # seconds that a cluster's address may take to answer


def require_engines(config: DictConfig) -> None:
    """ConfigError: the launcher or the sweeper of this grid cannot work here.

    `config` holds the node `hydra`.
    """
    chosen = config.hydra.runtime.choices
    launcher, sweeper = chosen.get("hydra/launcher"), chosen.get("hydra/sweeper")
    if launcher == "submitit_slurm" and not shutil.which("sbatch"):
        raise ConfigError(
            "hydra/launcher=submitit_slurm: there is no sbatch on this machine. Start it on a login"
            " node of the cluster, or use hydra/launcher=pool for the devices that are here."
        )
    if launcher == "ray":
        _require_ray(OmegaConf.select(config, "hydra.launcher.ray.init.address"))
    direction = str(config.hydra.sweeper.get("direction", "")) if sweeper == "optuna" else ""
    if "minimize" in direction.lower():
        raise ConfigError(
            "hydra.sweeper.direction=minimize: what a job tells the search is its accuracy under "
            "attack on validation images; write hydra.sweeper.direction=maximize."
        )


def _require_ray(address: Any) -> None:
    """ConfigError: no ray answers at host:port. Other addresses are ray's to find."""
    host, _, port = str(address).removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), timeout=PATIENCE).close()
    except OSError as error:
        raise ConfigError(
            f"hydra.launcher.ray.init.address={address}: no ray cluster answers there "
            f"({error.strerror or error}). Start one by `ray start --head`, or leave the address "
            "out to start ray on this machine."
        ) from error

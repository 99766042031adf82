"""What a pool and its workers say to each other, pickled."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from omegaconf import DictConfig


@dataclass(frozen=True)
class Grid:
    """What all jobs of a grid have in common."""

    loader: ConfigLoaderImpl
    config: DictConfig


@dataclass(frozen=True)
class Task:
    """A job for a worker."""

    number: int
    overrides: tuple[str, ...]


@dataclass(frozen=True)
class Begun:
    """The worker's first answer to a task: where the job writes."""

    folder: Path


@dataclass(frozen=True)
class Ended:
    """Its second: the exit code, and what the job returned, or its exception as a sentence."""

    code: int
    value: Any = None
    error: str | None = None

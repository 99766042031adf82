"""Which process this is of those that do one run together; alone, it is the first of one.

Launchers such as torchrun start the same command several times, and say in the environment who is
who. Files, the terminal and trackers belong to the first process, the leader. Nothing here imports
torch, so that the command can ask before a job runs.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple


class World(NamedTuple):
    """`rank` of `size` processes, the leader has rank 0; `local`: the place on its own machine."""

    rank: int
    size: int
    local: int


ALONE = World(0, 1, 0)
NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
_here = ALONE


def announced() -> World:
    """What the environment says; ALONE without a launcher, and with one process.

    ValueError: it says less than who this is, or what cannot be.
    """
    said = {name: os.environ[name] for name in NAMES if name in os.environ}
    if said.get("WORLD_SIZE", "1") == "1" or "RANK" not in said:
        return ALONE
    missing = [name for name in (*NAMES, "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    numbers = all(value.isdecimal() for value in said.values())
    if missing or not numbers or not int(said["RANK"]) < int(said["WORLD_SIZE"]):
        told = ", ".join(f"{name}={value}" for name, value in said.items())
        lacks = f", and lacks {', '.join(missing)}" if missing else ""
        raise ValueError(
            f"the environment has {told}{lacks}: that names no process of a run. Start several "
            "processes by torchrun, which sets all of it, or unset WORLD_SIZE."
        )
    return World(*(int(said[name]) for name in NAMES))


def speaks() -> bool:
    """Whether what there is to say before a run begins is for this process to say."""
    try:
        return announced().rank == 0
    except ValueError:
        return True


def here() -> World:
    """The process among those that are at work together now: ALONE outside `within`."""
    return _here


def leads() -> bool:
    return _here.rank == 0


@contextmanager
def within(world: World) -> Iterator[None]:
    """Inside, all threads of the process are of `world`."""
    global _here
    before, _here = _here, world
    try:
        yield
    finally:
        _here = before


def share(n: int) -> slice:
    """The rows of a batch of `n` that are this process's: every size-th, from its rank on.

    Shares differ by at most one row. They interleave, so that what is laid out in a batch by its
    order, such as the lambdas of OAT, is in each share in the same proportion.
    """
    return slice(_here.rank, n, _here.size)

"""The processes of one run: how they find each other, and how they end when one of them fails.

torchrun starts them and says in the environment where their store is. A process that fails leaves
its sentence there, the first one counts, and the leader tells it. Nobody waits for one that is
gone: gloo notices, and where a device waits, a thread looks at the store.
"""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import lru_cache
from itertools import count
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from advtrain.ending import Beside
from advtrain.world import World, announced, within

LOOK = 0.5  # seconds between two looks for a failure
GRACE = 10.0  # seconds in which a process that waits for another may end by itself
PATIENCE = timedelta(hours=2)  # of a process for others, as while the leader writes a report
FAILURE = "failure"

_crews = count()  # of this process; each has keys of its own in the store


class Failure(NamedTuple):
    """What a process failed with, and the exit code that this is worth."""

    rank: int
    code: int
    message: str

    @property
    def told(self) -> str:
        return self.message if self.rank == 0 else f"{self.message} (process {self.rank})"


class Crew:
    """The processes that are at work together. `store`: a connection for what goes wrong."""

    def __init__(self, world: World, store: dist.Store) -> None:
        self.world, self.store = world, store
        self.over = threading.Event()

    def first(self, message: str, code: int) -> Failure:
        """The first failure of any process, which may be this one's own, just now."""
        self.over.set()
        mine = f"{self.world.rank} {code} {message}"
        try:
            said = self.store.compare_set(FAILURE, "", mine).decode()
        except Exception:  # the store is gone, and whoever kept it
            said = mine
        rank, known, words = said.split(" ", 2)
        return Failure(int(rank), int(known), words)

    def watch(self, lost: Callable[[Failure], None]) -> None:
        """End this process when another has failed and the main thread has not come to know."""
        while not self.over.wait(LOOK):
            try:
                failed = self.store.check([FAILURE])
            except Exception:  # the store ended with the process that kept it
                failed = True
            if failed and not self.over.wait(GRACE):
                failure = self.first("another process of the run ended.", 1)
                lost(failure)
                os._exit(failure.code)


@lru_cache(maxsize=1)
def main_store() -> dist.Store:
    """The store that the launcher has prepared."""
    world = announced()
    store, _, _ = next(rendezvous("env://", world.rank, world.size, timeout=PATIENCE))
    store.set_timeout(PATIENCE)
    return store


@contextmanager
def joined(device: str, lost: Callable[[Failure], None]) -> Iterator[Crew]:
    """Inside, this process is one of those that the launcher started; alone, nothing happens.

    `device`: as the configuration has it. `lost` is called, in another thread, before this process
    ends because another one failed.
    """
    world = announced()
    if world.size == 1:
        yield Crew(world, dist.HashStore())
        return
    prefix = f"advtrain/{next(_crews)}"
    main = dist.PrefixStore(prefix, main_store())
    crew = Crew(world, dist.PrefixStore(f"{prefix}/end", _connection()))
    cuda = device != "cpu" and torch.cuda.is_available()
    if cuda and world.local < torch.cuda.device_count():
        torch.cuda.set_device(world.local)
    backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
    dist.init_process_group(
        backend, store=main, rank=world.rank, world_size=world.size, timeout=PATIENCE
    )
    watching = Beside(lambda: crew.watch(lost), "crew")
    watching.start()
    try:
        with within(world):
            yield crew
    finally:
        ended = crew.over.is_set()
        crew.over.set()
        watching.join(GRACE)  # Python that ends aborts under a thread that asks the store
        if not ended:  # after a failure, others may not answer any more
            dist.destroy_process_group()


def _connection() -> dist.Store:
    """A connection of its own: the other one may be waiting."""
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    store = dist.TCPStore(address, port, is_master=False, timeout=PATIENCE)
    return dist.PrefixStore(f"attempt/{attempt}", store)

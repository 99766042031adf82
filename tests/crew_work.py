"""What two processes do together for test_distributed, in one start of Python: `crew_work FOLDER`.

Each job has a folder of its own; what else is found is in found.json, by the leader.
"""

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from running import TRADES, run
from torch import nn

from advtrain import crew, footprint, program, training
from advtrain.averages import Ema
from advtrain.crew import joined
from advtrain.exchange import divided, interleaved, of_all, summed
from advtrain.models.batch_norm import Together2d
from advtrain.rooms import Rooms
from advtrain.world import announced, here, share

SMALL = (
    *("logger=none", "device=cpu", "batch_size=15", "validate.attack.steps=2", "attack.steps=2"),
    *("dataset.train_size=52", "dataset.test_size=20", "dataset.validation=20", "epochs=2"),
)
JUDGED = (
    *("eval.batch_size=8", "eval.attacks.pgd_linf.steps=2", "eval.attacks.pgd_l2.steps=2"),
    *("eval.certify.n=30", "eval.certify.n0=5", "eval.certify.alpha=0.01"),
)
TRAINED = (*SMALL, "job=train", "eval=none")
JOBS: dict[str, tuple[str, ...]] = {
    "plain": (*SMALL, *JUDGED, "model=linear"),
    "normed": TRAINED,
    "awp": (*TRAINED, "epochs=1", "descent=awp", "average=ema"),
    "trades": (*TRAINED, "epochs=1", *TRADES, "descent=awp", "dataset.train_size=30"),
    "smoothing": (*TRAINED, "model=linear", "defense=smoothing"),
    "free": (*TRAINED, "model=linear", "defense=free"),
    "oat": (*TRAINED, "epochs=1", "defense=oat", "model=oat_small_cnn"),
    "nuclear": (*TRAINED, "model=linear", "defense=nuat_h"),
}
GOING_ON = (*TRAINED, "model=linear")
FITTED = (*GOING_ON, "epochs=1", "dataset.train_size=800", "batch_size=auto")
FREE = 60_000
"""Bytes that there are for the processes of FITTED, all together."""
STEP = 5
"""Of eight: in the middle of the second epoch."""


@contextmanager
def unreported(name: str) -> Iterator[None]:
    """Inside, a run draws no plots, which take longer than all else; that of `plain` does."""
    with pytest.MonkeyPatch.context() as patch:
        if name != "plain":
            patch.setattr(program, "write_run", lambda directory, *, state: None)
        yield


class Stopping:
    """`train_step`; `act` is done in the process `rank` once `STEP` steps are."""

    def __init__(self, rank: int, act: Any) -> None:
        self.real, self.rank, self.act = training.train_step, rank, act

    def __call__(self, state: training.TrainState, *arguments: Any) -> Any:
        logs = self.real(state, *arguments)
        if state.step == STEP and here().rank == self.rank:
            self.act()
        return logs


def fail() -> None:
    raise ZeroDivisionError("as if memory had run out")


def norms_agree() -> dict[str, float]:
    """How far batch norm of shares is from that of the whole batch, in value and derivatives."""
    torch.manual_seed(0)
    x, target = torch.randn(7, 3, 4, 4) + 5, torch.randn(7, 3, 4, 4)
    whole, ours = nn.BatchNorm2d(3), Together2d(3)

    def derived(layer: nn.Module, x: torch.Tensor, target: torch.Tensor) -> list[torch.Tensor]:
        x = x.clone().requires_grad_()
        out = layer(x)
        (first,) = torch.autograd.grad((out.tanh() * target).sum(), x, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), x)
        return [out.detach(), first.detach(), second]

    wanted = derived(whole, x, target)
    found = derived(ours, x[share(7)], target[share(7)])
    parts = [interleaved(of_all(lambda each=each: each)) for each in found]
    parts += [ours.running_mean, ours.running_var]
    wanted += [whole.running_mean, whole.running_var]
    names = ("value", "first", "second", "mean", "variance")
    pairs = zip(names, parts, wanted, strict=True)
    return {name: float((a - b).norm() / b.norm()) for name, a, b in pairs}


def followed() -> dict[str, list[float]]:
    """How far what the second process has is from the leader's, when its weights are to be."""
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    average = Ema(model, 2, decay=0.9, start=0, ramp=False, buffers="copied")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    average.update(model)
    moments = [each["momentum_buffer"] for each in optimizer.state.values()]
    kept = [*model.parameters(), *average.model.parameters(), *moments]
    state = training.TrainState(model, optimizer, average, None)  # type: ignore[arg-type]
    found = {}
    for told, factor in (("rounding", 1 + 1e-6), ("apart", 1.1)):
        if here().rank == 1:
            with torch.no_grad():
                for each in kept if told == "rounding" else average.model.parameters():
                    each.mul_(factor)
        try:
            training.require_same_weights(state)
        except training.TrainingFailed:
            found["refused"] = [1.0]
        others = of_all(lambda: [each.detach() for each in kept])
        found[told] = [float((a - b).norm()) for a, b in zip(*others, strict=True)]
    return found


def least() -> list[int | None]:
    """What is told of portions before and after the second process has halved its passes."""
    rooms = Rooms()
    rooms.note()
    before = rooms.least
    rooms.attacks.size = 6 if here().rank == 1 else None
    rooms.note()
    return [before, rooms.least]


class SlowStore:
    """One that takes as long to answer as on a machine with other work."""

    def __init__(self, store: Any) -> None:
        self.store = store

    def check(self, keys: list[str]) -> bool:
        time.sleep(0.3)
        return self.store.check(keys)


def watching() -> list[str]:
    """The threads that look at the store, once the processes have parted."""
    real = crew.Crew
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(crew, "LOOK", 0.001)
        patch.setattr(crew, "Crew", lambda world, store: real(world, SlowStore(store)))
        with joined("cpu", print):
            time.sleep(0.1)
    return [each.name for each in threading.enumerate() if each.name == "crew"]


def together() -> dict[str, Any]:
    """What needs no job."""
    with joined("cpu", print):
        rank = here().rank
        like = [torch.zeros(2), torch.zeros(3, dtype=torch.float64), torch.zeros(1)]
        mine = [torch.full((2,), rank + 1.0), None if rank else torch.ones(3).double(), None]
        sums = [None if each is None else each.tolist() for each in summed(mine, like)]
        stops: list[int] = []
        done = divided(range(5), lambda n: [(n, rank)] * 2, lambda: stops.append(1))
        try:
            of_all(lambda: 1 / (1 - rank))
            error = ""
        except ZeroDivisionError as raised:
            error = str(raised)
        return {
            "sums": sums,
            "done": list(done),
            "stops": len(stops),
            "error": error,
            "norms": norms_agree(),
            "followed": followed(),
            "least": least(),
        }


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    found = together() | {"watching": watching()}
    codes = {}
    for name, job in JOBS.items():
        with unreported(name):
            codes[name] = run(folder / name, *job)["exit_code"]
    real = training.train_step
    with pytest.MonkeyPatch.context() as patch:
        terminate = Stopping(1, lambda: os.kill(os.getpid(), signal.SIGTERM))
        patch.setattr(training, "train_step", terminate)
        try:
            run(folder / "stopped", *GOING_ON)
        except SystemExit as stop:
            codes["stopped"] = stop.code
    assert training.train_step is real
    with unreported("fitted"), pytest.MonkeyPatch.context() as patch:
        patch.setattr(footprint, "free", lambda device: FREE)
        codes["fitted"] = run(folder / "fitted", *FITTED)["exit_code"]
    codes["begun_alone"] = run(folder / "begun_alone", *GOING_ON)["exit_code"]
    if announced().rank == 0:
        (folder / "found.json").write_text(json.dumps(found | {"codes": codes}))
    training.train_step = Stopping(1, fail)  # last: nobody comes together after a failure
    sys.exit(run(folder / "failed", *GOING_ON)["exit_code"])


if __name__ == "__main__":
    main(Path(sys.argv[1]))

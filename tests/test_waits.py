"""No training step waits for the device: on the meta device, whose tensors hold no numbers, a step
that reads one raises, and so does one that makes a tensor of numbers of the host there.
"""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from advtrain.config import conf_dir, make, plain
from advtrain.grid import composed, ours
from advtrain.training import Method, TrainState, train_step
from advtrain.types import Moment

META = torch.device("meta")
SHAPE = (1, 8, 8)
MODELS = {"oat": "oat_small_cnn", "lwta": "lwta_cnn"}
LOOKS = {"linear_exact"}  # at each step, whether the network is a linear model still
NUCLEAR = {"defense=nuat", "defense=nuat2", "defense=nuat_h", "defense=pgd_at attack=nuclear"}
"""Methods that wait for eigenvalues."""


def options(group: str) -> list[str]:
    return sorted(path.stem for path in (conf_dir() / group).glob("*.yaml"))


LINES = [
    *(f"defense={name}" for name in options("defense") if name not in LOOKS),
    *(f"defense=pgd_at attack={name}" for name in options("attack") if name != "none"),
    *(f"defense=pgd_at average={name}" for name in options("average")),
    *(f"defense=trades descent={name}" for name in options("descent")),
    *(f"defense=pgd_at penalty={name}" for name in ("orthogonal", "spectral")),
    "defense=lwta penalty=lwta_kl",
    "defense=pgd_at threat=l2",
    "defense=standard optimizer=adam",
]


@pytest.fixture
def no_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*given: Any, **keys: Any) -> torch.Tensor:
        if keys.get("device") is not None and torch.device(keys["device"]) == META:
            raise AssertionError("a tensor of numbers of the host, for which it waits")
        return make_tensor(*given, **keys)

    make_tensor = torch.tensor
    monkeypatch.setattr(torch, "tensor", refused)


class Decompositions(TorchDispatchMode):
    """Notes those that look on the host whether they converged, but on the meta device do not."""

    NAMES = ("_linalg_eigh", "_linalg_svd", "linalg_eig", "_linalg_check_errors")

    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()

    def __torch_dispatch__(
        self, operator: Any, types: Any, given: Any = (), keys: Any = None
    ) -> Any:
        name = operator.name().removeprefix("aten::")
        if name in self.NAMES:
            self.found.add(name)
        return operator(*given, **(keys or {}))


@pytest.mark.parametrize("line", LINES)
@pytest.mark.usefixtures("no_copies")
def test_no_step_reads_a_number_of_the_device(line: str) -> None:
    defense = line.split()[0].partition("=")[2]
    model_of = MODELS.get(defense, "small_cnn")
    with composed([*line.split(), "dataset=digits", f"model={model_of}"]) as composition:
        config = plain(ours(composition))
    model = make(config["model"], SHAPE, 10, path="model").to(META).train()
    optimizer = make(config["optimizer"], model.parameters(), path="optimizer")
    average = make(config["average"], model, 200, path="average")
    state = TrainState(model, optimizer, average, make(config["defense"], path="defense"))
    descent = make(config["descent"], path="descent")
    setting = SimpleNamespace(data=SimpleNamespace(shape=SHAPE))
    penalties = make(config["penalty"], path="penalty", supplied={"setting": setting})
    method = Method(descent, penalties, rates={}, seed=0)
    x = torch.rand(16, *SHAPE, device=META)
    y = torch.randint(10, (16,), device=META)
    found: set[str] = set()
    for index in (0, 101, 102):  # from the start, and with all that begins later
        now = Moment(index, index / 50, index / 200, last=dict(state.last), batch=index % 50)
        with Decompositions() as seen:
            state.last = train_step(state, x, y, now, method)
        found |= seen.found
    assert state.last["loss"].device == META
    assert found == ({"_linalg_eigh"} if line in NUCLEAR else set())


def test_a_step_that_reads_one_is_found(no_copies: None) -> None:
    with pytest.raises(RuntimeError, match="meta"):
        float(torch.zeros((), device=META))
    with pytest.raises(AssertionError):
        torch.tensor([1.0], device=META)
    with Decompositions() as seen:
        for waits in (torch.linalg.svd, torch.linalg.eigvals, torch.linalg.inv):
            waits(torch.eye(3, device=META))
    assert seen.found == {"_linalg_svd", "linalg_eig", "_linalg_check_errors"}

"""Every method of conf/defense costs the passes that the documentation says."""

from functools import partial
from pathlib import Path

import pytest
import torch
from passes import deep_network, units
from running import configuration
from torch import Tensor, nn

from advtrain.averages import Last
from advtrain.conditions import Condition
from advtrain.config import build, conf_dir
from advtrain.descents.plain import Plain
from advtrain.models.lwta import Lwta
from advtrain.models.network import Network
from advtrain.training import Method, TrainState, train_step
from advtrain.types import Moment

PAGE = Path(__file__).parents[1] / "docs" / "defenses.md"
K = 4
GUIDED = Moment(step=5, epoch=1.25, progress=0.5, batch=1)  # the second batch of an epoch of 4
PLAIN = Moment(step=6, epoch=1.5, progress=0.6, batch=2)
UNITS: dict[str, list[tuple[Moment, float]]] = {
    "standard": [(PLAIN, 3)],
    "fgsm_at": [(PLAIN, 5)],
    "rfgsm_at": [(PLAIN, 5)],
    "fast": [(PLAIN, 5)],
    "free": [(PLAIN, 3)],
    "r_mgm": [(PLAIN, 10)],
    "pgd_at": [(PLAIN, 2 * K + 3)],
    "mixed_at": [(PLAIN, 2 * K + 6)],
    "trades": [(PLAIN, 2 * K + 7)],
    "mart": [(PLAIN, 2 * K + 6)],
    "alp": [(PLAIN, 2 * K + 6)],
    "tla": [(PLAIN, 2 * K + 8)],
    "gat": [(PLAIN, 8), (GUIDED, 9)],
    "nuat": [(PLAIN, 8), (GUIDED, 9)],
    "nuat2": [(PLAIN, 11), (GUIDED, 11)],
    "nuat_h": [(PLAIN, 8), (GUIDED, 9)],
    "llr": [(PLAIN, 2 * 10 + 11)],
    "grad_reg": [(PLAIN, 6)],
    "multi_attack": [(Moment(3, 1.5, 0.5, batch=0), 5), (PLAIN, 2 * 10 + 3)],
    "smoothing": [(PLAIN, 3)],
    "smoothadv": [(PLAIN, 2 * (2 * 10 + 3))],
    "consistency": [(PLAIN, 2 * 3)],
    "macer": [(PLAIN, 16 * 3)],
    "lwta": [(PLAIN, 2 * K + 3)],
    "oat": [(PLAIN, 3 + 10 / 12 * (2 * K + 3))],  # 2 of 12 images have lambda 0
    "linear_exact": [(PLAIN, 2)],  # of one layer: no gradient to the images, nor through a layer
}
NAMES = sorted(path.stem for path in (conf_dir() / "defense").glob("*.yaml"))


def featured() -> Network:
    """The deep network, with features."""
    *body, head = deep_network()
    return Network(nn.Identity(), nn.Sequential(*body), head, accepts=(1, None, None))


def competing() -> nn.Module:
    """The deep network, with winners in place of ReLU."""
    model = deep_network()
    for name, layer in list(model.named_children()):
        if isinstance(layer, nn.ReLU):
            part = Lwta(128, competitors=2, train_temperature=0.67, test_temperature=0.01)
            model.set_submodule(name, part)
    return model


class Told(nn.Module):
    """The deep network as one that may be told a lambda."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = deep_network()
        self.lambdas = (0.0, 0.1, 0.2, 0.3, 0.4, 1.0)
        self.register_buffer("values", torch.tensor(self.lambdas))

    def forward(self, x: Tensor, condition: Condition | None = None) -> Tensor:
        return self.inner(x)


MODELS = {
    "oat": Told,
    "tla": featured,
    "lwta": competing,
    "linear_exact": lambda: nn.Sequential(nn.Flatten(), nn.Linear(4, 3)),
}


def batch() -> tuple[Tensor, Tensor]:
    draws = torch.Generator().manual_seed(0)
    return torch.rand((12, 1, 2, 2), generator=draws), torch.arange(12) % 3


def test_every_method_is_counted_and_on_the_page() -> None:
    assert set(NAMES) == set(UNITS)
    listed = {line.split("`")[1] for line in PAGE.read_text().splitlines() if line[:3] == "| `"}
    assert set(NAMES) <= listed


@pytest.mark.parametrize("name", NAMES)
def test_a_step_makes_no_more_passes_than_documented(name: str) -> None:
    config = configuration(f"defense={name}", *_steps(name))
    model, (x, y) = MODELS.get(name, deep_network)(), batch()
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    state = TrainState(model, optimizer, Last(model, 1), build(config["defense"], path="defense"))
    method = Method(Plain(None), {}, {}, seed=0)
    for now, expected in [(PLAIN, None), *UNITS[name]]:  # what a run asks once comes first
        work = partial(train_step, state, x, y, now, method)
        counted = units(model, x, work)
        assert expected is None or counted == pytest.approx(expected, abs=0.2, rel=0.01)


@pytest.mark.parametrize("draws", [1, 3])
def test_a_mean_over_draws_costs_as_many_passes_and_nothing_else(draws: int) -> None:
    config = configuration("defense=lwta", f"attack.steps={K}", f"defense.draws={draws}")
    model, (x, y) = competing(), batch()
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    state = TrainState(model, optimizer, Last(model, 1), build(config["defense"], path="defense"))
    method = Method(Plain(None), {}, {}, seed=0)
    counted = units(model, x, partial(train_step, state, x, y, PLAIN, method))
    assert counted == pytest.approx(2 * K * draws + 3, abs=0.2 + 0.1 * draws)


def _steps(name: str) -> list[str]:
    text = (conf_dir() / "defense" / f"{name}.yaml").read_text()
    return [f"attack.steps={K}"] if "attack: ${attack}" in text else []

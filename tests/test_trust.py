"""The checks: each bad network is told by the right one, honest networks by none."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import pytest
import torch
import zoo
from attack_cases import generator
from torch import Tensor, nn

from advtrain import masking
from advtrain.attacks.pgd import fgsm, pgd
from advtrain.attacks.square import square
from advtrain.attacks.transfer import transfer
from advtrain.masking import Slopes
from advtrain.modes import crafting
from advtrain.probes import probe
from advtrain.threat import L1, L2, Linf
from advtrain.tolerance import clearly, has_collapsed
from advtrain.trust import contradictions
from advtrain.types import Threat

EPS = zoo.EPS


def probed(
    model: nn.Module, x: Tensor, y: Tensor, threat: Threat = EPS, classes: int = 10
) -> dict[str, str]:
    """The checks that find something, with their messages."""
    with torch.random.fork_rng(devices=[]), crafting(model.eval(), "eval"):
        torch.manual_seed(0)
        found = probe(model, x, y, threat=threat, classes=classes, generator=generator())
    assert all(warning["row"] == "model" for warning in found)
    return {warning["check"]: warning["message"] for warning in found}


@pytest.fixture(scope="module")
def split() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Digits to train on, and 128 others."""
    from sklearn.datasets import load_digits

    data = load_digits()
    x = torch.tensor(data.images / 16.0, dtype=torch.float32).unsqueeze(1)
    y = torch.tensor(data.target, dtype=torch.int64)
    order = torch.randperm(len(x), generator=generator())
    x, y = x[order], y[order]
    return x[400:], y[400:], x[:128], y[:128]


@pytest.fixture(scope="module")
def honest(split) -> dict[str, nn.Module]:
    return {
        name: zoo.trained(zoo.cnn(), defense, *split[:2], epochs=8, lr=3e-3, size=64)
        for name, defense in zoo.HONEST.items()
    }


@pytest.fixture(scope="module")
def collapsed(split) -> nn.Module:
    return zoo.collapsed(zoo.enlarged(split[0]), split[1])


@pytest.mark.parametrize("name", zoo.HONEST)
@pytest.mark.parametrize("threat", [EPS, L2(0.5), L1(2.0)], ids=lambda threat: threat.norm)
def test_of_an_honest_network_nothing_is_said(honest, split, name, threat):
    """By hand: three seeds each, with and without batch norm, 441 probes of various radii, draws
    and images; the public MNIST networks of fast_adversarial; standard ones for MNIST. None."""
    assert probed(honest[name], *split[2:], threat) == {}

"""Attacks, threats and a small network which the tests of attacks share."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from advtrain.attacks import starts
from advtrain.attacks.apgd import apgd
from advtrain.attacks.clean import clean
from advtrain.attacks.fab import fab
from advtrain.attacks.fast import fast
from advtrain.attacks.gama import gama_fw, gama_pgd
from advtrain.attacks.mim import mim
from advtrain.attacks.objectives import cross_entropy, dlr, expected, kl_to_clean, margin
from advtrain.attacks.pgd import fgsm, pgd, rfgsm
from advtrain.evaluation import Counting
from advtrain.modes import crafting
from advtrain.precision import low_precision
from advtrain.threat import L1, L2, Linf

ATTACKS: dict[str, Callable[..., Tensor]] = {
    "clean": lambda model, x, y, threat, generator: clean(model, x, y, generator=generator),
    "fgsm": fgsm,
    "rfgsm": partial(rfgsm, noise_share=0.5),
    "fast": partial(fast, step_size=0.12),
    "pgd": partial(pgd, steps=3, step_size=0.05),
    "pgd_any": partial(pgd, steps=3, step_size=0.05, restarts=2, keep="any"),
    "pgd_margin": partial(pgd, steps=3, step_size=0.05, objective=margin),
    "pgd_dlr": partial(pgd, steps=2, step_size=0.05, objective=dlr, start=starts.bernoulli(size=1)),
    "pgd_kl": partial(
        pgd, steps=2, step_size=0.05, objective=kl_to_clean, start=starts.normal(std=1e-3)
    ),
    "pgd_expected": partial(
        pgd, steps=2, step_size=0.05, objective=expected(objective=cross_entropy, samples=2)
    ),
    "mim": partial(mim, steps=3, step_size=0.05, decay=1.0),
    "apgd": partial(apgd, steps=12),
    "apgd_dlr": partial(apgd, steps=4, loss="dlr", restarts=2, eot=2),
    "fab": partial(fab, steps=3),
    "fab_t": partial(fab, steps=3, targets=2, restarts=2),
    "gama_pgd": partial(gama_pgd, steps=4, ramp=0.5),
    "gama_pgd_any": partial(gama_pgd, steps=3, ramp=0.5, restarts=2, keep="any"),
    "gama_fw": partial(gama_fw, steps=4, ramp=0.5),
}
THREATS = [Linf(0.1), L2(0.5), L1(1.5)]
every_attack = pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
every_threat = pytest.mark.parametrize("threat", THREATS, ids=lambda threat: threat.norm)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def batch(count: int = 6, classes: int = 4, seed: int = 1) -> tuple[Tensor, Tensor]:
    """Images (count, 2, 4, 4) with saturated pixels, and labels."""
    draws = torch.rand(count, 2, 4, 4, generator=generator(seed))
    return (draws * 1.5 - 0.25).clamp(0, 1), torch.arange(count) % classes


def network(classes: int = 4) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3),
        nn.BatchNorm2d(4),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(16, classes),
    )


def linear(pixels: int = 12, classes: int = 2) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(pixels, classes)


def passes(attack: Callable[..., Tensor], **keys: object) -> tuple[float, float]:
    """Forward and backward passes per image of `attack` on the network above, in crafting."""
    inner, (x, y) = network().eval(), batch()
    model = Counting(inner)
    with crafting(inner, "eval"):
        attack(model, x, y, **keys)
    return model.forward_passes / len(x), model.backward_passes / len(x)


def between() -> tuple[nn.Module, Tensor, Tensor, Tensor]:
    """A network in bfloat16, 400 points beside its boundary, its answers in float32 and as it is.

    Rounding alone moves some over.
    """
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 32), nn.Linear(32, 32), nn.Linear(32, 2)).eval()
    x = torch.rand(400, 4)
    with torch.no_grad():
        model[2].bias[0] += model(x).diff(dim=1).median()
    exact = model(x).argmax(1)
    rounded = low_precision(model)(x).argmax(1)
    assert (exact != rounded).any(), "tests need points that rounding moves over"
    return model, x, exact, rounded

"""R-MGM: its loss against the formula, its two attacks, its cost of 10 passes."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from passes import deep_network, units
from running import TRAINING, run
from torch import nn

from advtrain.attacks.pgd import fgsm, rfgsm
from advtrain.averages import Last
from advtrain.defenses.r_mgm import RMgm, Steps
from advtrain.descents.awp import Awp
from advtrain.descents.plain import Plain
from advtrain.modes import crafting
from advtrain.threat import Linf
from advtrain.training import Method, TrainState, train_step
from advtrain.types import Moment

NOW = Moment(0, 0.0, 0.0)
FGSM = partial(fgsm, threat=Linf(0.1))
RFGSM = partial(rfgsm, threat=Linf(0.1), noise_share=0.5)
STRAIGHT = torch.tensor([[2, -1, 0.5, 0], [0, 1, -2, 0.3]], dtype=torch.float64)
BESIDE = torch.tensor([[0.5, 0.4, 1, -0.2], [0.2, -0.3, -1, 1.1]], dtype=torch.float64)
Y = torch.tensor([0, 1])


def network():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = (nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Tanh(), nn.Flatten())
        return nn.Sequential(*layers, nn.Linear(64, 3))


def test_loss_and_gradients_are_those_of_the_formula_through_both_logits():
    """The distance by hand: 4.5 and 3.37, as 1.5^2 + 1.4^2 + 0.5^2 + 0.2^2."""
    ours, theirs = ([t.clone().requires_grad_() for t in (STRAIGHT, BESIDE)] for _ in range(2))
    loss, logs = RMgm(FGSM, RFGSM, 0.7).loss(nn.Identity(), Steps(*ours, Y))
    straight, beside = theirs
    ce = -straight.log_softmax(1)[torch.arange(2), Y].mean()
    expected = ce + 0.7 * ((straight - beside) ** 2).sum() / 2
    assert logs["distance"].item() == pytest.approx((4.5 + 3.37) / 2, abs=1e-12)
    torch.testing.assert_close(loss, expected, atol=1e-12, rtol=1e-12)
    for mine, other in zip(
        torch.autograd.grad(loss, ours), torch.autograd.grad(expected, theirs), strict=True
    ):
        torch.testing.assert_close(mine, other, atol=1e-12, rtol=1e-12)
    assert {"ce", "distance", "acc"} == logs.keys()


def test_it_crafts_with_both_attacks_within_the_radius_of_the_moment():
    model, x, y = network(), torch.rand(6, 1, 4, 4), torch.arange(6) % 3
    method = RMgm(FGSM, RFGSM, 1.0, warmup=0.5)
    with crafting(model, method.craft_mode):
        torch.manual_seed(3)
        parcel = method.craft(model, x, y, Moment(0, 0.0, 0.25))
        expected = fgsm(model, x, y, threat=Linf(0.05))
        torch.manual_seed(3)
        beside = rfgsm(model, x, y, threat=Linf(0.05), noise_share=0.5)
    torch.testing.assert_close(parcel.straight, expected)
    torch.testing.assert_close(parcel.beside, beside)
    assert not torch.equal(parcel.straight, parcel.beside)


def test_where_both_steps_agree_only_cross_entropy_is_left():
    loss, _ = RMgm(FGSM, RFGSM, 5.0).loss(nn.Identity(), Steps(STRAIGHT, STRAIGHT, Y))
    torch.testing.assert_close(loss, F.cross_entropy(STRAIGHT, Y))


@pytest.mark.parametrize(
    ("descent", "cost"),
    [(Plain(None), 10), (Awp(0.01, 0.0, Plain(None)), 16)],
    ids=["plain", "awp"],
)
def test_a_step_costs_10_passes(descent, cost):
    model, x, y = deep_network(), torch.rand(8, 1, 2, 2), torch.arange(8) % 3
    defense = RMgm(FGSM, RFGSM, 1.0)
    state = TrainState(model, torch.optim.SGD(model.parameters(), 0.1), Last(model, 12), defense)
    method = Method(descent, {}, {}, seed=0)
    assert units(model, x, lambda: train_step(state, x, y, NOW, method)) == pytest.approx(
        cost, abs=0.15
    )


def test_the_program_trains_with_it(tmp_path):
    chosen = [each for each in TRAINING if each != "attack.steps=2"]
    status = run(tmp_path, *chosen, "defense=r_mgm")
    assert status["state"] == "done", status["error"]

"""Adversarial logit pairing: its loss against the formula, its ends, its cost."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from method_cases import ADV_LOGITS, CLEAN_LOGITS, LABELS
from passes import deep_network, units
from running import TRAINING, configuration, run
from torch import nn

from advtrain.attacks.pgd import pgd
from advtrain.averages import Last
from advtrain.config import ConfigError
from advtrain.defenses.alp import Alp
from advtrain.defenses.base import Pair
from advtrain.defenses.mixed_at import MixedAt
from advtrain.descents.awp import Awp
from advtrain.descents.plain import Plain
from advtrain.threat import Linf
from advtrain.training import Method, TrainState, train_step
from advtrain.types import Moment

NOW = Moment(0, 0.0, 0.0)
K = 3
ATTACK = partial(pgd, threat=Linf(0.1), steps=K, step_size=0.04)
CLEAN, ADV, Y = CLEAN_LOGITS[:2], ADV_LOGITS[:2], LABELS[:2]


def alp(share=0.5, weight=0.5, reduction="sum", **more):
    return Alp(ATTACK, share, weight, reduction, **more)


def test_the_pairing_is_the_squared_distance_of_the_logits():
    """By hand: 1.5^2 + 1.4^2 + 0.5^2 + 0.2^2 = 4.5 and 0.2^2 + 1.3^2 + 1 + 0.8^2 = 3.37."""
    _, logs = alp().loss(nn.Identity(), Pair(CLEAN, ADV, Y))
    assert logs["pairing"].item() == pytest.approx((4.5 + 3.37) / 2, abs=1e-12)
    _, mean = alp(reduction="mean").loss(nn.Identity(), Pair(CLEAN, ADV, Y))
    assert mean["pairing"].item() == pytest.approx((4.5 + 3.37) / 8, abs=1e-12)


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_loss_and_gradients_are_those_of_the_formula_through_both_logits(reduction):
    ours, theirs = ([t.clone().requires_grad_() for t in (CLEAN, ADV)] for _ in range(2))
    loss, logs = alp(0.3, 0.7, reduction).loss(nn.Identity(), Pair(*ours, Y))
    clean, adv = theirs
    per_class = 1 if reduction == "sum" else 4
    pairing = ((clean - adv) ** 2).sum() / 2 / per_class
    rows = torch.arange(2)
    ce, ce_adv = (-logits.log_softmax(1)[rows, Y].mean() for logits in theirs)
    expected = 0.7 * ce + 0.3 * ce_adv + 0.7 * pairing
    torch.testing.assert_close(loss, expected, atol=1e-12, rtol=1e-12)
    for mine, other in zip(
        torch.autograd.grad(loss, ours), torch.autograd.grad(expected, theirs), strict=True
    ):
        torch.testing.assert_close(mine, other, atol=1e-12, rtol=1e-12)
    assert {"ce", "ce_adv", "pairing", "acc", "acc_adv"} == logs.keys()
    assert not any(log.requires_grad for log in logs.values())


def test_without_weight_it_is_mixed_training():
    pair = Pair(CLEAN, ADV, Y)
    mixed, _ = MixedAt(ATTACK, 0.5, "eval").loss(nn.Identity(), pair)
    torch.testing.assert_close(alp(weight=0.0).loss(nn.Identity(), pair)[0], mixed)


def test_smoothed_labels_reach_both_entropies_and_not_the_pairing():
    loss, logs = alp(label_smoothing=0.1).loss(nn.Identity(), Pair(CLEAN, ADV, Y))
    both = [F.cross_entropy(logits, Y, label_smoothing=0.1) for logits in (CLEAN, ADV)]
    torch.testing.assert_close(loss, sum(both) / 2 + 0.5 * logs["pairing"])


@pytest.mark.parametrize(
    ("descent", "cost"),
    [(Plain(None), 2 * K + 6), (Awp(0.01, 0.0, Plain(None)), 2 * K + 12)],
    ids=["plain", "awp"],
)
def test_a_step_costs_2k_plus_6_passes(descent, cost):
    model, x = deep_network(), torch.rand(8, 1, 2, 2)
    y = torch.arange(8) % 3
    state = TrainState(model, torch.optim.SGD(model.parameters(), 0.1), Last(model, 12), alp())
    method = Method(descent, {}, {}, seed=0)
    assert units(model, x, lambda: train_step(state, x, y, NOW, method)) == pytest.approx(
        cost, abs=0.15
    )


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_the_program_trains_with_it(tmp_path, reduction):
    status = run(tmp_path, *TRAINING, "defense=alp", f"defense.reduction={reduction}")
    assert status["state"] == "done", status["error"]


def test_the_configuration_refuses_another_reduction():
    with pytest.raises(ConfigError, match=r"reduction=max is refused; allowed is one of sum, mean"):
        configuration("defense=alp", "defense.reduction=max")

"""MART: its loss against the formula and the authors' numbers, its attack, its cost."""

import copy
from functools import partial

import pytest
import torch
from method_cases import ADV_LOGITS as ADV
from method_cases import CLEAN_LOGITS as CLEAN
from method_cases import LABELS as Y
from method_cases import batch, network
from passes import deep_network, units
from running import TRAINING, run
from torch import nn

from advtrain.attacks import starts
from advtrain.attacks.objectives import cross_entropy
from advtrain.attacks.pgd import fgsm, pgd
from advtrain.averages import Last
from advtrain.defenses.base import Pair
from advtrain.defenses.mart import Mart, boost, divergence, hesitation
from advtrain.descents.awp import Awp
from advtrain.descents.plain import Plain
from advtrain.functional import log_probabilities
from advtrain.modes import crafting
from advtrain.threat import Linf
from advtrain.training import Method, TrainState, train_step
from advtrain.types import Moment

NOW = Moment(0, 0.0, 0.0)
K = 3
ATTACK = partial(pgd, threat=Linf(0.1), steps=K, step_size=0.04)


def mart(beta=5.0, **more):
    return Mart(ATTACK, starts.normal(std=0.001), beta, **more)


@pytest.mark.parametrize(("beta", "value"), [(5.0, 2.0797806046333185), (6.0, 2.1658669572977605)])
def test_the_loss_has_its_value_on_given_logits(beta, value):
    loss, logs = mart(beta).loss(nn.Identity(), Pair(CLEAN, ADV, Y))
    assert loss.item() == pytest.approx(value, abs=1e-12)
    assert logs["bce"].item() == pytest.approx(1.6493488413111086, abs=1e-12)
    assert logs["weighted_kl"].item() == pytest.approx(0.08608635266444199, abs=1e-12)
    assert (logs["acc"].item(), logs["acc_adv"].item()) == (1.0, pytest.approx(0.4))
    assert all(not log.requires_grad and log.ndim == 0 for log in logs.values())


def test_the_boost_is_of_the_likeliest_wrong_class_alone():
    q = ADV.softmax(1).requires_grad_()
    (gradient,) = torch.autograd.grad(boost(q, Y).sum(), q)
    assert (gradient != 0).sum(1).tolist() == [1] * 5
    assert gradient.argmax(1).tolist() == [2, 3, 0, 1, 0]


def written_out(clean, adv, y):
    p, q = clean.softmax(1), adv.softmax(1)
    rows = torch.arange(len(y))
    others = q.clone()
    others[rows, y] = 0
    bce = -q[rows, y].log() - (1.0001 - others.max(1).values + 1e-12).log()
    kl = (p * (p.log() - (q + 1e-12).log())).sum(1)
    return bce.mean() + 5 * (kl * (1.0000001 - p[rows, y])).mean()


def test_loss_and_gradients_are_those_of_the_formula():
    """Nothing is detached: the clean logits learn from the weight and from the divergence.

    The authors' loss was run beside ours: three convolutions, with and without batch norm, 10
    batches of 32 colour images, 10 attack steps of 0.007, eps 0.031, beta 5, the same noise. In
    float64: loss within 2.9e-16, gradient within 8.8e-16 (relative), running statistics equal. In
    float32: loss within 2.0e-7, gradient within 5.8e-7. At clean logits (200, 0, 0) and adversarial
    ones (-200, 200, 0) theirs has a gradient of NaN, at the same loss.
    """
    pairs = [(CLEAN, ADV), (20 * CLEAN, -8 * ADV), (CLEAN, CLEAN)]
    for clean, adv in pairs:
        ours, theirs = ([t.clone().requires_grad_() for t in (clean, adv)] for _ in range(2))
        loss, _ = mart().loss(nn.Identity(), Pair(*ours, Y))
        expected = written_out(*theirs, Y)
        torch.testing.assert_close(loss, expected, atol=1e-12, rtol=1e-12)
        for mine, other in zip(
            torch.autograd.grad(loss, ours), torch.autograd.grad(expected, theirs), strict=True
        ):
            torch.testing.assert_close(mine, other, atol=1e-12, rtol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("size", [1.0, 100.0, 1e4])
def test_logits_of_any_size_have_a_finite_loss_and_gradient(dtype, size):
    clean = torch.tensor([[1, 0, 0], [0, 1, 0], [1, 0, -1]], dtype=dtype) * size
    adv = torch.tensor([[-1, 1, 0], [0, 0, 1], [1, 0, 0]], dtype=dtype) * size
    clean, adv = clean.requires_grad_(), adv.requires_grad_()
    loss, _ = mart().loss(nn.Identity(), Pair(clean, adv, torch.tensor([0, 1, 0])))
    gradients = torch.autograd.grad(loss, (clean, adv))
    assert torch.isfinite(loss) and all(torch.isfinite(each).all() for each in gradients)


def test_the_constants_bound_boost_divergence_and_weight():
    sure, wrong = torch.tensor([[50.0, 0.0]]), torch.tensor([[-500.0, 0.0]])
    y = torch.tensor([0])
    q = log_probabilities(wrong).exp()
    assert boost(q, y).item() == pytest.approx(9.21, abs=0.01)  # -log 1e-4
    assert divergence(log_probabilities(sure), q).item() == pytest.approx(27.63, abs=0.01)
    assert 0 < hesitation(log_probabilities(sure), y).item() < 2e-7


def test_smoothed_labels_change_the_first_term_alone():
    plain, smooth = (
        mart(label_smoothing=s).loss(nn.Identity(), Pair(CLEAN, ADV, Y))[0] for s in (0.0, 0.2)
    )
    log_q = ADV.log_softmax(1)
    expected = 0.2 * (log_q.gather(1, Y[:, None]).squeeze(1) - log_q.mean(1)).mean()
    assert (smooth - plain).item() == pytest.approx(expected.item(), abs=1e-12)


def test_it_attacks_cross_entropy_from_noise_in_evaluation_mode():
    calls = []

    def attack(model, x, y, *, objective=None, start=None):
        calls.append((model.training, objective, start))
        return x

    start, model = starts.normal(std=0.001), network()
    method = Mart(attack, start, 5.0)
    with crafting(model, method.craft_mode):
        method.craft(model, *batch(), NOW)
    assert calls == [(False, cross_entropy, start)]


def test_an_attack_without_a_start_is_refused():
    with pytest.raises(ValueError, match=r"Mart chooses .* takes no start\. Use attack=pgd"):
        Mart(partial(fgsm, threat=Linf(0.1)), starts.clean, 5.0)


def test_clean_images_pass_first_and_each_once():
    seen = []
    model, (x, y) = network(), batch()
    model.register_forward_pre_hook(lambda _, images: seen.append(images[0]))
    pair = Pair(x, (x + 0.1).clamp(0, 1), y)
    mart().loss(model, pair)
    assert len(seen) == 2 and seen[0] is pair.x and seen[1] is pair.x_adv


def test_the_loss_is_a_function_of_the_weights_alone():
    method, model = mart(), network()
    with crafting(model, method.craft_mode):
        parcel = method.craft(model, *batch(), NOW)
    state = torch.get_rng_state()
    before = copy.deepcopy(parcel)
    first, second = (method.loss(model, parcel)[0] for _ in range(2))
    assert torch.equal(first, second) and torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(parcel, before, strict=True))


@pytest.mark.parametrize(
    ("descent", "cost"),
    [(Plain(None), 2 * K + 6), (Awp(0.01, 0.0, Plain(None)), 2 * K + 12)],
    ids=["plain", "awp"],
)
def test_a_step_costs_2k_plus_6_passes(descent, cost):
    model, (x, y) = deep_network(), batch(side=2)
    state = TrainState(model, torch.optim.SGD(model.parameters(), 0.1), Last(model, 12), mart())
    method = Method(descent, {}, {}, seed=0)
    assert units(model, x, lambda: train_step(state, x, y, NOW, method)) == pytest.approx(
        cost, abs=0.15
    )


def test_the_program_trains_with_it(tmp_path):
    status = run(tmp_path, *TRAINING, "defense=mart")
    assert status["state"] == "done", status["error"]


def test_the_program_refuses_it_an_attack_that_cannot_be_guided(tmp_path):
    chosen = [each for each in TRAINING if each != "attack.steps=2"]
    status = run(tmp_path, *chosen, "defense=mart", "attack=fgsm")
    assert status["exit_code"] == 2 and "takes no start" in status["error"]

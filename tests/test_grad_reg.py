"""Gradient regularisation: the penalty, its derivatives, and what training by it does."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
import zoo
from passes import deep_network, units
from running import FITTING, configuration, run
from torch import Tensor, nn

from advtrain.attacks.clean import clean
from advtrain.attacks.pgd import pgd
from advtrain.averages import Last
from advtrain.config import build
from advtrain.defenses.base import Pair
from advtrain.defenses.grad_reg import GradReg
from advtrain.descents.awp import Awp
from advtrain.descents.plain import Plain
from advtrain.models.small import small_cnn
from advtrain.modes import crafting
from advtrain.precision import low_precision
from advtrain.threat import Linf
from advtrain.training import Method, TrainState, train_step
from advtrain.types import Descent, Moment

NOW = Moment(0, 0.0, 0.0)
K = 3
CLEAN = partial(clean)
ATTACK = partial(pgd, threat=Linf(0.1), steps=K, step_size=0.04)
both_norms = pytest.mark.parametrize("p", [1, 2])


def batch(size: int = 8, side: int = 4, classes: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.rand((size, 1, side, side), generator=generator)
    return x, torch.arange(size) % classes


def smooth(*, batch_norm: bool = False) -> nn.Module:
    """In float64, with second derivatives everywhere."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 3, 3, padding=1), nn.Softplus(), nn.Conv2d(3, 2, 3), nn.Softplus()]
    if batch_norm:
        layers.insert(1, nn.BatchNorm2d(3))
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(8, 3)).double()


def penalty(model: nn.Module, x: Tensor, y: Tensor, p: int) -> Tensor:
    """The loss less cross-entropy, at weight 1."""
    loss, logs = GradReg(CLEAN, 1.0, p).loss(model, Pair(x, x, y))
    return loss - logs["ce"]


@both_norms
def test_two_linear_logits_have_the_gradient_of_the_logistic_loss(p):
    """z = (0, <w, x>): |grad ce|_p = sigma(-m) |w|_p with margin m = (2 y - 1) <w, x>.

    With s = sigma(-m), the weight gradient of its square is
    -2 s^2 (1 - s) |w|_p^2 (2 y - 1) x + s^2 grad |w|_p^2, the mean over examples; grad |w|_p^2 is
    2 w for p = 2 and 2 |w|_1 sign w for p = 1. That of cross-entropy is -s (2 y - 1) x.
    """
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(9, 6, dtype=torch.float64, generator=generator)
    w = torch.randn(6, dtype=torch.float64, generator=generator)
    y = torch.arange(9) % 2
    model = nn.Linear(6, 2, bias=False).double()
    model.weight.data.copy_(torch.stack([torch.zeros_like(w), w]))

    weight, sign = 0.7, 2.0 * y - 1
    s = torch.sigmoid(-sign * (x @ w))
    length = w.norm(p)
    outer = 2 * w if p == 2 else 2 * length * w.sign()
    ce = F.softplus(-sign * (x @ w)).mean()
    value = ce + weight * (s * length).square().mean()
    inner = -2 * s.square() * (1 - s) * length**2 * sign
    gradient = (-s * sign + weight * inner) @ x / 9 + weight * s.square().mean() * outer

    loss, logs = GradReg(CLEAN, weight, p).loss(model, Pair(x, x, y))
    loss.backward()
    assert loss.item() == pytest.approx(value.item(), abs=1e-12)
    assert logs["gradient"].item() == pytest.approx((s * length).square().mean().item(), abs=1e-12)
    assert torch.allclose(model.weight.grad[1], gradient, rtol=0, atol=1e-10)


@both_norms
@pytest.mark.parametrize("batch_norm", [False, True], ids=["plain", "batch norm"])
def test_its_gradient_to_the_weights_is_that_of_finite_differences(p, batch_norm):
    model, (x, y) = smooth(batch_norm=batch_norm), batch(5)
    x = x.double()
    names, values = zip(*model.named_parameters(), strict=True)
    method = GradReg(CLEAN, 0.5, p)

    class At:
        """The model at other weights."""

        def __init__(self, weights):
            self.weights = weights

        def forward(self, z):
            return torch.func.functional_call(model, self.weights, (z,))

    def loss(*weights: Tensor) -> Tensor:
        return method.loss(At(dict(zip(names, weights, strict=True))), Pair(x, x, y))[0]

    inputs = tuple(value.detach().requires_grad_() for value in values)
    assert torch.autograd.gradcheck(loss, inputs, eps=1e-6, atol=1e-6, rtol=1e-4)


@both_norms
def test_the_penalty_is_that_of_each_example_alone(p):
    """So neither the size of the batch nor who is in it matters, where nothing couples them."""
    model, (x, y) = smooth(), batch()
    x = x.double()
    alone = [penalty(model, x[i : i + 1], y[i : i + 1], p) for i in range(len(x))]
    assert torch.allclose(penalty(model, x, y, p), torch.stack(alone).mean(), rtol=1e-12)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_it_equals_the_formula_by_finite_differences_of_the_loss(smoothing):
    """The gradient of each example's own loss, smoothed labels included, from its values alone."""
    model, (x, y) = smooth(), batch(3)
    x, h = x.double(), 1e-5
    steps = h * torch.eye(16, dtype=torch.float64).view(16, 1, 4, 4)

    def ce(z: Tensor, label: Tensor) -> Tensor:
        labels = label.expand(len(z))
        return F.cross_entropy(model(z), labels, reduction="none", label_smoothing=smoothing)

    rows = [(ce(x[i] + steps, y[i]) - ce(x[i] - steps, y[i])) / (2 * h) for i in range(3)]
    expected = torch.stack([row.abs().sum() ** 2 for row in rows]).mean()
    method = GradReg(CLEAN, 1.0, 1, label_smoothing=smoothing)
    _, logs = method.loss(model, Pair(x, x, y))
    assert logs["gradient"].item() == pytest.approx(expected.item(), rel=1e-7)


def test_the_attack_chooses_where_the_gradient_is_taken():
    model, (x, y) = zoo.cnn(), zoo.held_out()
    for attack, moved in ((CLEAN, 0.0), (ATTACK, 0.1)):
        method = GradReg(attack, 1.0, 1)
        with crafting(model, "eval"):
            parcel = method.craft(model, x, y, NOW)
        assert (parcel.x_adv - x).abs().max().item() == pytest.approx(moved, abs=1e-6)
        loss, logs = method.loss(model, parcel)
        at = parcel.x_adv.clone().requires_grad_()
        ce = F.cross_entropy(model(at), y, reduction="sum")
        (gradient,) = torch.autograd.grad(ce, at)
        expected = gradient.flatten(1).abs().sum(1).square().mean()
        assert logs["gradient"].item() == pytest.approx(expected.item(), rel=1e-5)
        assert loss.item() == pytest.approx((ce.detach() / len(x) + expected).item(), rel=1e-5)
        assert not parcel.x_adv.requires_grad and parcel.x_adv.grad is None


def test_the_radius_of_its_attack_grows_along_the_warm_up():
    model, (x, y) = zoo.cnn(), zoo.held_out()
    parcel = GradReg(ATTACK, 1.0, 1, warmup=0.5).craft(model, x, y, Moment(0, 0.0, 0.25))
    assert (parcel.x_adv - x).abs().max().item() == pytest.approx(0.05, abs=1e-6)


@both_norms
def test_a_loss_without_a_gradient_costs_nothing_and_stays_finite(p):
    model, (x, y) = nn.Sequential(nn.Flatten(), nn.Linear(16, 3)), batch()
    nn.init.zeros_(model[1].weight)
    loss, logs = GradReg(CLEAN, 1.0, p).loss(model, Pair(x, x, y))
    loss.backward()
    assert logs["gradient"] == 0
    assert torch.isfinite(model[1].weight.grad).all()


def test_the_loss_is_a_function_of_the_weights_alone():
    model, (x, y) = zoo.cnn(batch_norm=True).train(), zoo.held_out()
    method, state = GradReg(CLEAN, 0.1, 1), torch.get_rng_state()
    (first, logs), (second, _) = (method.loss(model, Pair(x, x, y)) for _ in range(2))
    assert torch.equal(first, second)
    assert set(logs) == {"ce", "gradient", "acc"}
    assert all(value.ndim == 0 and not value.requires_grad for value in logs.values())
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("descent", "clean_cost", "adversarial"),
    [(Plain(None), 6, 2 * K + 6), (Awp(0.01, 0.0, Plain(None)), 12, 2 * K + 12)],
    ids=["plain", "awp"],
)
def test_a_step_costs_six_passes_beside_its_attack(
    descent: Descent, clean_cost: int, adversarial: int
):
    """Forward 1, gradient to the input 1, back through the forward pass 2, through that gradient 2.

    Fewer than the 7 to 9 that counting each of the two backward passes as a whole one gives.
    """
    for attack, expected in ((CLEAN, clean_cost), (ATTACK, adversarial)):
        model, (x, y) = deep_network(), batch(side=2)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        state = TrainState(model, optimizer, Last(model, 1), GradReg(attack, 0.1, 1))
        work = partial(train_step, state, x, y, NOW, Method(descent, {}, {}, seed=0))
        assert units(model, x, work) == pytest.approx(expected, abs=0.2)


def digits_network() -> nn.Module:
    torch.manual_seed(0)
    return small_cnn((1, 8, 8), 10, mean=[0.0], std=[1.0])


@both_norms
def test_low_precision_and_channels_last_give_nearly_the_same_gradients(p):
    """Cosine of the weight gradients to those in float32: 0.998 in bfloat16."""
    x, y = zoo.held_out()
    found = []
    for change in (lambda m: m, low_precision, lambda m: m.to(memory_format=torch.channels_last)):
        model = change(digits_network())
        GradReg(CLEAN, 0.1, p).loss(model, Pair(x, x, y))[0].backward()
        found.append(torch.cat([each.grad.flatten() for each in model.parameters()]))
    exact, low, last = found
    assert F.cosine_similarity(exact, low, dim=0) > 0.99 and not torch.equal(exact, low)
    assert F.cosine_similarity(exact, last, dim=0) > 0.9999


def test_training_by_it_flattens_the_loss_and_raises_adversarial_accuracy():
    """Of 128 digits right under PGD-10 of 0.15, for weights 0, 0.01 and 0.1 of p = 1."""
    (x, y), (seen_x, seen_y) = zoo.held_out(), zoo.to_train_on()
    right, steep = [], []
    for weight in (0.0, 0.01, 0.1):
        method = GradReg(CLEAN, weight, 1)
        model = zoo.trained(
            zoo.cnn(), method, seen_x[:1000], seen_y[:1000], epochs=8, lr=4e-3, size=64
        )
        _, logs = method.loss(model, Pair(x, x, y))
        steep.append(logs["gradient"].item())
        torch.manual_seed(0)
        x_adv = pgd(model, x, y, threat=Linf(0.15), steps=10, step_size=0.0375)
        right.append(zoo.hits(model, x_adv, y))
    assert steep[0] > 3 * steep[1] > 9 * steep[2]
    assert right[0] + 10 < right[1] < right[2]


def test_the_configuration_says_clean_and_a_line_says_adversarial():
    plain = build(configuration("defense=grad_reg")["defense"], path="defense")
    assert plain.attack.func is clean
    overrides = ("defense=grad_reg", "defense.attack=${attack}", "attack.steps=3")
    other = build(configuration(*overrides)["defense"], path="defense")
    assert other.attack.func is pgd and other.attack.keywords["steps"] == 3


@pytest.mark.parametrize(
    "overrides",
    [(), ("precision=bf16",), ("defense.attack=${attack}", "attack.steps=2", "descent=awp")],
    ids=["clean", "bf16", "adversarial, awp"],
)
def test_the_program_trains_with_it(tmp_path, overrides):
    small = (*FITTING, "eval=none", "model=small_cnn", "defense=grad_reg")
    status = run(tmp_path, *small, *overrides)
    assert status["state"] == "done", status["error"]

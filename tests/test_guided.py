"""Norms of the batch's logit differences, and the attacks that ascend them."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import test_attack_contract as contract
import torch
import torch.nn.functional as F
from attack_cases import batch, every_threat, generator, network
from running import configuration
from torch import Tensor

from advtrain.attacks import starts
from advtrain.attacks.objectives import cross_entropy, guided, targeted
from advtrain.attacks.pgd import evaluate, pgd
from advtrain.config import build
from advtrain.draws import signs
from advtrain.modes import crafting
from advtrain.norms import frobenius_norm, nuclear_norm
from advtrain.threat import Linf

Norm = Callable[[Tensor], Tensor]
NORMS: dict[str, tuple[Norm, Norm]] = {
    "nuclear": (nuclear_norm, partial(torch.linalg.matrix_norm, ord="nuc")),
    "frobenius": (frobenius_norm, partial(torch.linalg.matrix_norm, ord="fro")),
}
every_norm = pytest.mark.parametrize("norm", ["nuclear", "frobenius"])
SHAPES = [(7, 4), (3, 5), (4, 4), (1, 3), (5, 1), (64, 10)]


def normal(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, dtype=dtype, generator=generator())


def value_and_gradient(norm: Norm, a: Tensor) -> tuple[Tensor, Tensor]:
    leaf = a.clone().requires_grad_()
    value = norm(leaf)
    return value.detach(), torch.autograd.grad(value, leaf)[0]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@every_norm
def test_norms_and_their_gradients_are_those_of_the_decomposition(
    norm: str, shape: tuple[int, int]
) -> None:
    ours, theirs = NORMS[norm]
    a = normal(*shape)
    value, gradient = value_and_gradient(ours, a)
    expected_value, expected_gradient = value_and_gradient(theirs, a)
    assert value.ndim == 0
    assert torch.allclose(value, expected_value, rtol=1e-12)
    assert torch.allclose(gradient, expected_gradient, atol=1e-12)
    assert torch.autograd.gradcheck(ours, a.requires_grad_())


def test_the_nuclear_norm_is_the_sum_of_singular_values_in_float32_too() -> None:
    """Also where the least of them is a millionth of the largest, whose square float32 loses."""
    u, v = (torch.linalg.qr(normal(n, 4)).Q for n in (20, 6))
    values = torch.tensor([10.0, 1.0, 1e-2, 5e-5], dtype=torch.float64)
    a = (u * values) @ v.T
    value, gradient = value_and_gradient(nuclear_norm, a.float())
    assert value.dtype == gradient.dtype == torch.float32
    assert abs(value.item() / values.sum().item() - 1) < 1e-6
    assert torch.allclose(gradient.double(), u @ v.T, atol=0.02)  # rounding of `a` itself


@every_norm
def test_norms_ignore_the_order_of_rows_but_no_row(norm: str) -> None:
    function, a = NORMS[norm][0], normal(9, 4)
    order = torch.randperm(9, generator=generator())
    value, gradient = value_and_gradient(function, a)
    mixed, mixed_gradient = value_and_gradient(function, a[order])
    assert torch.allclose(value, mixed) and torch.allclose(gradient[order], mixed_gradient)
    assert function(a[:8]) < value - 0.01
    assert not torch.allclose(value_and_gradient(function, a[:8])[1], gradient[:8], atol=1e-3)


def test_without_full_rank_the_gradient_is_that_of_the_columns_that_are_there() -> None:
    column, row = normal(6, 1), normal(1, 4)
    value, gradient = value_and_gradient(nuclear_norm, column @ row)
    unit = (column / column.norm()) @ (row / row.norm())
    assert torch.allclose(value, column.norm() * row.norm())
    assert torch.allclose(gradient, unit, atol=1e-9)
    zero_sum = normal(8, 4) @ (torch.eye(4) - 0.25).double()  # as differences of shifted logits
    value, gradient = value_and_gradient(nuclear_norm, zero_sum)
    assert torch.allclose(value, torch.linalg.svdvals(zero_sum).sum())
    assert torch.allclose(torch.linalg.svdvals(gradient)[:3], torch.ones(3).double())
    assert torch.linalg.svdvals(gradient)[3] < 1e-6


@pytest.mark.parametrize("shape", [(6, 4), (3, 5), (0, 4)], ids=str)
@every_norm
def test_at_zero_norm_and_gradient_are_zero(norm: str, shape: tuple[int, int]) -> None:
    value, gradient = value_and_gradient(NORMS[norm][0], torch.zeros(shape))
    assert value == 0 and torch.equal(gradient, torch.zeros(shape))


@every_norm
def test_a_norm_of_what_is_not_finite_is_not_finite(norm: str) -> None:
    a = normal(5, 3)
    for bad in (torch.nan, torch.inf):
        a[2, 1] = bad
        assert not torch.isfinite(NORMS[norm][0](a))


@every_norm
def test_the_gains_sum_to_that_of_the_batch(norm: str) -> None:
    model, (x, y), (ours, theirs) = network().eval(), batch(), NORMS[norm]
    x_adv = (x + 0.1 * torch.rand(x.shape, generator=generator())).clamp(0, 1)
    leaf = x_adv.clone().requires_grad_()
    logits = model(leaf)
    whole = F.cross_entropy(logits, y, reduction="sum") + 4.5 * theirs(logits - model(x).detach())
    value, gradient = evaluate(guided(distance=ours, weight=4.5)(model, x, y), x_adv)
    assert value.shape == (6,) and torch.allclose(value.sum(), whole)
    assert torch.allclose(gradient, torch.autograd.grad(whole, leaf)[0], atol=1e-5)


@every_norm
def test_examples_depend_on_their_batch(norm: str) -> None:
    model, (x, y) = network().eval(), batch(8)
    x_adv = (x + 0.1 * torch.rand(x.shape, generator=generator())).clamp(0, 1)
    bind = guided(distance=NORMS[norm][0], weight=4.5)
    _, together = evaluate(bind(model, x, y), x_adv)
    _, half = evaluate(bind(model, x[:4], y[:4]), x_adv[:4])
    assert not torch.allclose(together[:4], half, rtol=0.01)
    order = torch.randperm(8, generator=generator())
    _, mixed = evaluate(bind(model, x[order], y[order]), x_adv[order])
    assert torch.allclose(mixed, together[order], atol=1e-6)


def test_without_weight_there_is_cross_entropy_and_no_clean_pass() -> None:
    model, (x, y), calls = network().eval(), batch(), []

    def counted(x: Tensor) -> Tensor:
        calls.append(1)
        return model(x)

    gain = guided(distance=nuclear_norm, weight=0)(counted, x, y)
    assert not calls and torch.equal(gain(x), cross_entropy(model, x, y)(x))
    with crafting(model, "eval"):
        pgd(counted, x, y, threat=Linf(0.1), steps=3, step_size=0.1, objective=NUCLEAR)
    assert len(calls) == 1 + 1 + 3


def test_a_row_of_nans_stays_out_of_the_distance() -> None:
    inner, (x, y) = network().eval(), batch()
    broken = torch.tensor([1, torch.nan, 1, 1, 1, 1])[:, None]
    x_adv, others = (x + 0.05).clamp(0, 1), torch.tensor([0, 2, 3, 4, 5])
    _, gradient = evaluate(NUCLEAR(lambda x: inner(x) * broken, x, y), x_adv)
    gain = NUCLEAR(inner, x[others], y[others])
    _, expected = evaluate(gain, x_adv[others])
    assert torch.allclose(gradient[others], expected, atol=1e-6)


NUCLEAR = guided(distance=nuclear_norm, weight=4.5)
GUIDED: dict[str, Callable[..., Tensor]] = {
    norm: partial(
        pgd,
        steps=2,
        step_size=0.05,
        start=starts.bernoulli(size=0.02),
        objective=guided(distance=NORMS[norm][0], weight=4.5),
    )
    for norm in NORMS
}


@pytest.mark.parametrize("count", [0, 1, 5])
@every_threat
@every_norm
def test_results_lie_in_the_set(norm: str, threat: Any, count: int) -> None:
    contract.test_results_lie_in_the_set_and_carry_no_gradient(GUIDED[norm], threat, count)


@pytest.mark.parametrize(
    "law",
    [
        contract.test_attacks_work_on_vectors_and_inside_no_grad,
        contract.test_no_step_makes_the_host_wait,
        contract.test_a_flat_model_is_survived,
    ],
    ids=["vectors", "waits", "flat"],
)
@every_threat
@every_norm
def test_the_laws_of_attacks_hold(norm: str, threat: Any, law: Callable[..., None]) -> None:
    law(GUIDED[norm], threat)


@every_norm
def test_the_model_is_left_as_it_was_and_draws_are_reproducible(norm: str, untouched: Any) -> None:
    contract.test_attacks_leave_the_model_as_it_was(GUIDED[norm], True, untouched)
    contract.test_a_generator_makes_attacks_reproducible_and_spares_the_global_one(GUIDED[norm])


@every_norm
def test_the_configured_attack_is_one_step_of_eps_from_corners_of_half_of_it(
    norm: str, digits: Any
) -> None:
    config = configuration(f"attack={norm}", "threat.eps=8/255")["attack"]
    assert config["start"]["size"] == pytest.approx(4 / 255)
    model, x, y = digits.model, digits.x[:64], digits.y[:64]
    found = build(config)(model, x, y, generator=generator())
    start = (x + 4 / 255 * signs(x, generator())).clamp(0, 1).requires_grad_()
    logits, clean = model(start), model(x).detach()
    loss = F.cross_entropy(logits, y) + 4.5 * NORMS[norm][1](logits - clean) / 64
    (gradient,) = torch.autograd.grad(loss, start)
    delta = (start.detach() + 8 / 255 * gradient.sign() - x).clamp(-8 / 255, 8 / 255)
    agree = torch.isclose(found, (x + delta).clamp(0, 1), atol=1e-6).float().mean()
    assert agree > 0.999  # signs of gradients that are 0 but for rounding


def test_the_configured_cw_pgd_ascends_the_margin(digits: Any) -> None:
    """Within one image of the step of 2/255 that papers take, for 20 steps and for 100."""
    config = configuration("attack=cw_pgd", "threat.eps=8/255", "attack.steps=100")["attack"]
    attack = build(config)
    assert attack.keywords["step_size"] == pytest.approx(2 / 255)
    model, x, y = digits
    found = attack(model, x, y, threat=Linf(0.1), step_size=0.0125, generator=generator())
    fooled = (model(found).argmax(1) != y).float().mean()
    usual = pgd(model, x, y, threat=Linf(0.1), steps=20, step_size=0.0125, generator=generator())
    assert fooled >= (model(usual).argmax(1) != y).float().mean() - 0.01


def test_there_is_no_targeted_form_and_no_negative_weight() -> None:
    with pytest.raises(ValueError, match="or guided, whose descent does not lead to a label"):
        targeted(NUCLEAR)
    with pytest.raises(ValueError, match="weight is -1"):
        guided(distance=nuclear_norm, weight=-1)
    with pytest.raises(ValueError, match="distance is 3; allowed is a function"):
        guided(distance=3, weight=1)

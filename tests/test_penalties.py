"""Penalties on the weights: their norms against dense singular values, their gradients, purity."""

import copy
import json
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from passes import Flops
from running import FITTING, run
from torch import Tensor, nn

from advtrain.models.small import small_cnn
from advtrain.operators import (
    Convolution,
    convolution_norm,
    convolutions,
    layers,
    leading_image,
    matrix_norm,
)
from advtrain.penalties.orthogonal import FORMS, orthogonal
from advtrain.penalties.spectral import NORMS, spectral

SHAPE = (1, 8, 8)
SETTING = SimpleNamespace(data=SimpleNamespace(shape=SHAPE))
PENALTIES = {
    **{f"spectral_{name}": partial(spectral, SETTING, weight=0.1, operator=name) for name in NORMS},
    **{f"orthogonal_{name}": partial(orthogonal, weight=0.1, form=name) for name in FORMS},
}
TRAINING = [each for each in FITTING if "model" not in each] + ["attack.steps=2", "eval=none"]
KINDS = [
    {"padding": 1},
    {"padding": 1, "stride": 2},
    {"padding": "same", "dilation": 2},
    {"padding": "valid", "groups": 2},
    {"padding": (0, 2), "stride": (2, 1), "kernel_size": (1, 4)},
    {"padding": 1, "padding_mode": "circular"},
    {"padding": 2, "padding_mode": "reflect", "stride": 3},
]


def network(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return small_cnn(SHAPE, 10, mean=None, std=None)


def he(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        conv = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        nn.init.kaiming_normal_(conv.weight, mode="fan_out")
    return conv


def dense(conv: nn.Conv2d, shape: tuple[int, int, int]) -> Tensor:
    """The matrix of a convolution without its bias, column by column, differentiable."""
    size = shape[0] * shape[1] * shape[2]
    basis = torch.eye(size, dtype=conv.weight.dtype).view(size, *shape)
    return (conv(basis) - conv(torch.zeros_like(basis))).flatten(1).T


def norm_on(conv: nn.Conv2d, shape: tuple[int, int, int]) -> Tensor:
    convolve, weight = Convolution.of(conv), conv.weight
    v = leading_image(partial(convolve, weight.detach()), shape, weight)
    return convolution_norm(convolve, weight, v)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_the_norm_of_a_convolution_and_its_gradient_are_those_of_its_matrix(kind):
    torch.manual_seed(0)
    conv = nn.Conv2d(2, 4, **{"kernel_size": 3, **kind}, dtype=torch.float64)
    expected = torch.linalg.matrix_norm(dense(conv, (2, 7, 6)), 2)
    found = norm_on(conv, (2, 7, 6))
    assert abs(found / expected - 1) < 1e-4
    wanted, gradient = (torch.autograd.grad(norm, conv.weight)[0] for norm in (expected, found))
    assert (gradient - wanted).norm() < 2e-2 * wanted.norm()


def test_a_kernel_of_ones_has_the_norms_of_its_two_readings():
    conv = nn.Conv2d(1, 1, 3, padding=1, bias=False)
    nn.init.ones_(conv.weight)
    assert matrix_norm(conv.weight).item() == pytest.approx(3.0, abs=1e-6)
    assert norm_on(conv, (1, 32, 32)).item() == pytest.approx(8.946, abs=1e-3)


@pytest.mark.parametrize(
    ("inputs", "outputs", "ratio", "strided"),
    [
        (3, 64, 2.385, 1.198),
        (16, 16, 1.600, 2.267),
        (64, 64, 1.573, 2.225),
        (64, 128, 1.675, 1.835),
    ],
)
def test_hes_kernels_stretch_more_than_their_matrices_say(inputs, outputs, ratio, strided):
    """He by fan-out, on 32 by 32 pixels; figures of other draws than ours, hence the 8 %."""
    conv, half = he(inputs, outputs), he(inputs, outputs, 2)
    found = norm_on(conv, (inputs, 32, 32)) / matrix_norm(conv.weight)
    assert found.item() == pytest.approx(ratio, rel=0.08)
    assert norm_on(half, (inputs, 32, 32)).item() == pytest.approx(strided, rel=0.08)


def test_the_norm_of_a_convolution_is_within_half_a_percent_on_images_of_real_size():
    conv = he(16, 16)
    convolve, weight = Convolution.of(conv), conv.weight.detach()
    v = torch.randn(1, 16, 32, 32, generator=torch.Generator().manual_seed(1))
    for _ in range(600):  # the power method, whose estimate only rises
        leaf = v.requires_grad_()
        (v,) = torch.autograd.grad(convolve(weight, leaf).square().sum(), leaf)
        v = v / v.norm()
    assert (
        0.995 < norm_on(conv, (16, 32, 32)) / convolution_norm(convolve, weight, v).item() < 1.001
    )


@pytest.mark.parametrize("shape", [(64, 27), (27, 64), (20, 3, 3, 3), (1, 5), (30, 30)], ids=str)
def test_the_norm_of_a_matrix_and_its_gradient_are_exact(shape):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    weight.requires_grad_()
    found = matrix_norm(weight)
    expected = torch.linalg.matrix_norm(weight.flatten(1), 2)
    assert abs(found / expected - 1) < 1e-12
    pair = [torch.autograd.grad(norm, weight)[0] for norm in (found, expected)]
    torch.testing.assert_close(*pair, rtol=0, atol=1e-7)


def test_weights_of_nothing_and_of_equal_singular_values_are_no_trouble():
    for weight in (torch.zeros(4, 6), torch.eye(5), torch.eye(3, 7) * 1e-8, torch.eye(2) * 1e8):
        weight.requires_grad_()
        norm = matrix_norm(weight)
        (gradient,) = torch.autograd.grad(norm, weight)
        assert torch.isfinite(gradient).all()
        assert norm.item() == pytest.approx(float(weight.detach().abs().max()), rel=1e-5)


def test_each_convolution_is_asked_about_images_of_the_size_that_it_sees(untouched):
    model = untouched(network().train())
    state = torch.get_rng_state()
    seen = convolutions(model, SHAPE)
    assert [size for _, size in seen.values()] == [(1, 8, 8), (32, 8, 8), (64, 4, 4)][: len(seen)]
    assert len(seen) == sum(isinstance(part, nn.Conv2d) for part in model.modules())
    larger = convolutions(model, (1, 16, 16))
    assert next(iter(larger.values()))[1] == (1, 16, 16)
    assert torch.equal(state, torch.get_rng_state())
    assert not any(part._forward_pre_hooks for part in model.modules())


@pytest.mark.parametrize("operator", NORMS)
def test_the_spectral_penalty_is_half_the_sum_of_squares(operator):
    model = network().double()
    matrices = [layer.weight.flatten(1) for layer in layers(model).values()]
    if operator == "convolution":
        seen = convolutions(model, SHAPE).values()
        matrices = [dense(conv, size) for conv, size in seen] + matrices[-1:]
    expected = sum(torch.linalg.matrix_norm(matrix.detach(), 2).square() for matrix in matrices)
    found = spectral(SETTING, model, weight=0.3, operator=operator)
    assert found.item() == pytest.approx(0.15 * float(expected), rel=1e-3)


def test_orthogonal_forms_have_their_closed_forms():
    matrix = torch.tensor([[1.0, 1, 0], [0, 1, 1]], dtype=torch.float64)  # W W' - I is all ones
    found = {name: float(form(matrix)) for name, form in FORMS.items()}
    wanted = {"frobenius": 4, "entries": 1, "off_diagonal": 2, "double": 9, "spectral": 2}
    assert found == pytest.approx(wanted, abs=1e-12)


@pytest.mark.parametrize("form", FORMS)
def test_orthonormal_rows_or_columns_are_no_loss(form):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        wide, tall = nn.Conv2d(3, 8, 3, dtype=torch.float64), nn.Linear(4, 9, dtype=torch.float64)
        for layer in (wide, tall):
            nn.init.orthogonal_(layer.weight)
    least = 0.1 * (19 + 5) if form == "double" else 0.0  # the other side cannot be orthonormal
    found = orthogonal(nn.Sequential(wide, tall), weight=0.1, form=form)
    assert found.item() == pytest.approx(least, abs=1e-12)


def test_double_soft_orthogonality_is_that_of_both_sides():
    matrix = torch.randn(5, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    sides = [matrix @ matrix.T - torch.eye(5), matrix.T @ matrix - torch.eye(9)]
    direct = sum(side.square().sum() for side in sides)
    assert float(FORMS["double"](matrix)) == pytest.approx(float(direct), rel=1e-12)


@pytest.mark.parametrize("name", PENALTIES)
def test_a_penalty_reads_the_weights_of_layers_alone_and_keeps_nothing(name, untouched):
    model = untouched(network().train())
    state = torch.get_rng_state()
    first, moved = PENALTIES[name](model), network(seed=1)
    PENALTIES[name](moved)  # as weight perturbation would, in between
    assert torch.equal(first, PENALTIES[name](model))
    assert torch.equal(first, PENALTIES[name](copy.deepcopy(model).eval()))
    assert torch.equal(state, torch.get_rng_state())
    gradients = torch.autograd.grad(first, list(model.parameters()), allow_unused=True)
    for (key, _), gradient in zip(model.named_parameters(), gradients, strict=True):
        counts = key.removesuffix(".weight") in layers(model)
        assert (gradient is not None) == counts, key
        assert gradient is None or (torch.isfinite(gradient).all() and gradient.any())


@pytest.mark.parametrize("name", PENALTIES)
def test_descent_on_a_penalty_lowers_it(name):
    model, penalty = network(), PENALTIES[name]
    before = penalty(model)
    for _ in range(5):
        gradients = torch.autograd.grad(
            penalty(model), [p for p in model.parameters() if p.ndim > 1]
        )
        with torch.no_grad():
            for p, g in zip([p for p in model.parameters() if p.ndim > 1], gradients, strict=True):
                p -= 0.01 * g / g.norm()
    assert penalty(model) < before


@pytest.mark.parametrize("name", PENALTIES)
def test_layers_that_are_frozen_or_absent_are_no_trouble(name):
    model = network()
    model.head.requires_grad_(False)
    assert PENALTIES[name](model).requires_grad
    assert PENALTIES[name](network().requires_grad_(False)) == PENALTIES[name](model)
    bare = nn.Sequential(nn.BatchNorm2d(1), nn.Flatten())
    assert PENALTIES[name](bare).item() == 0


def test_an_example_more_costs_more_than_the_penalty_of_matrices():
    """In FLOP of a forward pass of 128 images of 32 by 32: matrix 0.04, convolution 0.4."""
    model = small_cnn((3, 32, 32), 10, mean=None, std=None)
    setting = SimpleNamespace(data=SimpleNamespace(shape=(3, 32, 32)))
    with torch.no_grad(), Flops() as one:
        model(torch.rand(1, 3, 32, 32))
    share = {}
    for operator in NORMS:
        spectral(setting, model, weight=0.1, operator=operator)
        with Flops() as counted:
            spectral(setting, model, weight=0.1, operator=operator)
        share[operator] = counted.total / one.total / 128
    assert share["matrix"] < 0.1 and share["convolution"] < 0.5


@pytest.mark.parametrize(
    "options",
    [
        ("penalty=spectral", "descent=awp", "average=ema"),
        ("penalty=spectral", "penalty.spectral.operator=convolution", "precision=bf16"),
        ("penalty=orthogonal", "descent=awp"),
    ],
    ids=["matrix", "convolution", "orthogonal"],
)
def test_a_run_reports_its_penalty(tmp_path, options):
    small = ("dataset.train_size=48", "dataset.test_size=20", "dataset.validation=20")
    status = run(tmp_path, *TRAINING, *small, "model=small_cnn", *options)
    assert status["state"] == "done", status["error"]
    epochs = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert all(epoch[f"train_{options[0].partition('=')[2]}"] > 0 for epoch in epochs)


def test_weights_and_forms_that_make_no_sense_are_refused(tmp_path):
    for option in ("spectral.weight=-1", "spectral.operator=kernel", "spectral.wieght=1"):
        assert run(tmp_path, "penalty=spectral", f"++penalty.{option}")["exit_code"] == 2
    assert run(tmp_path, "penalty=orthogonal", "penalty.orthogonal.form=l1")["exit_code"] == 2

"""The gradient of strided convolutions, held against PyTorch's own."""

from copy import deepcopy

import pytest
import torch
from torch import nn

from advtrain.inference import swift
from advtrain.precision import low_precision
from advtrain.strided import Strided, gains, sooner

SHAPES = [
    # inputs, outputs, kernel, stride, padding, size
    (1, 16, 4, 2, 1, (28, 28)),
    (3, 8, 7, 2, 3, (33, 32)),
    (3, 5, 3, 2, 1, (9, 12)),
    (2, 4, 1, 2, 0, (7, 8)),
    (1, 4, 2, 3, 0, (11, 10)),
    (1, 4, 5, 3, (2, 1), (13, 14)),
    (1, 40, 5, 3, (2, 1), (13, 14)),
    (3, 64, 3, 2, 1, (9, 12)),
    (2, 3, (3, 5), 2, (1, 2), (10, 11)),
    (16, 32, 4, 2, 1, (14, 13)),
    (8, 6, 3, 2, 1, (9, 9)),
]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_output_and_gradient_are_those_of_the_convolution(shape, bias, layout):
    inputs, outputs, kernel, stride, padding, size = shape
    torch.manual_seed(0)
    conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=bias).double()
    x = torch.rand(3, inputs, *size, dtype=torch.float64).to(memory_format=layout)
    x.requires_grad_()
    assert gains(conv)
    expected, found = conv(x), Strided(conv)(x)
    weight = torch.randn_like(expected)
    (wanted,) = torch.autograd.grad((weight * expected).sum(), x)
    (got,) = torch.autograd.grad((weight * found).sum(), x)
    assert torch.equal(expected, found)
    assert torch.allclose(wanted, got, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(1, 2, 3),
        nn.Conv2d(16, 2, 3, stride=2),
        nn.Conv2d(25, 2, 4, stride=2),
        nn.Conv2d(2, 2, 3, stride=2, groups=2),
        nn.Conv2d(1, 2, 3, stride=2, dilation=2),
        nn.Conv2d(1, 2, 3, stride=(2, 1)),
        nn.Conv2d(1, 2, 3, stride=2, padding_mode="reflect", padding=1),
        nn.Conv2d(1, 2, 3, padding="same"),
        nn.Linear(2, 2),
    ],
)
def test_other_parts_are_left_alone(conv):
    assert not gains(conv)


def test_a_swift_copy_takes_it_and_keeps_its_gradients():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 4, 2, 1, bias=False),
        nn.BatchNorm2d(8),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(8 * 49, 3),
    ).eval()
    x = torch.rand(4, 1, 14, 14, requires_grad=True)
    fast = swift(model, x.detach())
    assert any(isinstance(part, Strided) for part in fast.modules())
    (wanted,) = torch.autograd.grad(model(x)[:, 0].sum(), x)
    (got,) = torch.autograd.grad(fast(x)[:, 0].sum(), x)
    assert torch.allclose(wanted, got, rtol=1e-4, atol=1e-6)


def test_an_empty_batch_has_an_empty_gradient():
    conv = nn.Conv2d(1, 16, 4, 2, 1)
    x = torch.zeros(0, 1, 28, 28, requires_grad=True)
    (got,) = torch.autograd.grad(Strided(conv)(x).sum(), x)
    assert got.shape == x.shape


@pytest.mark.parametrize("trained", [True, False])
def test_sooner_gives_images_and_weights_their_gradients_and_those_of_gradients(trained):
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 5, 4, 2, 1).double()
    conv.weight.requires_grad_(trained)
    x = torch.rand(2, 3, 9, 8, dtype=torch.float64, requires_grad=True)
    leaves = [leaf for leaf in (x, conv.weight, conv.bias) if leaf.requires_grad]

    def seen():
        value = conv(x).square().sum()
        gradients = torch.autograd.grad(value, leaves, create_graph=True)
        slope = gradients[0].square().sum()
        return [*gradients, *torch.autograd.grad(slope, leaves, allow_unused=True)]

    wanted = seen()
    with sooner(conv):
        assert conv(x).grad_fn.name() == "_ConvolveBackward"
        found = seen()
    for mine, theirs in zip(found, wanted, strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-10, atol=1e-10)


def test_sooner_is_for_layers_that_read_images_and_ends_when_the_block_does():
    model = nn.Sequential(nn.Conv2d(1, 8, 4, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 4, 2, 1))

    def changed():
        return ["forward" in layer.__dict__ for layer in model]

    with pytest.raises(KeyError), sooner(model):
        assert changed() == [True, False, False]
        copied = deepcopy(model)
        raise KeyError
    assert changed() == [False, False, False]
    assert copied[0].forward.__self__ is copied[0]
    low = low_precision(nn.Sequential(nn.Conv2d(1, 8, 4, 2, 1), nn.Conv2d(8, 8, 1)))
    before = low[0].forward
    with sooner(low):
        assert low[0].forward == before
    assert low[0].forward == before
    model._compiled_call_impl = model.forward  # as compile() leaves it, without the compiler
    with sooner(model):
        assert changed() == [False, False, False]

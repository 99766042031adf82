"""The gradient of strided convolutions, held against PyTorch's own."""

import pytest
import torch
from torch import nn

from advtrain.inference import swift
from advtrain.strided import Strided, gains

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

"""Layers with their ReLU in one kernel, held against the two modules."""

import pytest
import torch
from torch import nn

from advtrain.inference import swift
from advtrain.rectified import Rectified, offered

LAYERS = {
    "plain": (nn.Conv2d(3, 5, 3, padding=1), (3, 3, 9, 12)),
    "no bias, groups": (nn.Conv2d(4, 6, 3, padding=1, groups=2, bias=False), (2, 4, 8, 8)),
    "dilated": (nn.Conv2d(2, 4, 3, dilation=2), (2, 2, 11, 10)),
    "uneven stride": (nn.Conv2d(2, 4, 3, stride=(2, 1)), (2, 2, 9, 8)),
    "strided, few channels": (nn.Conv2d(1, 16, 4, stride=2, padding=1), (3, 1, 28, 27)),
    "strided, many channels": (nn.Conv2d(40, 8, 3, stride=2, padding=1), (2, 40, 8, 8)),
    "linear": (nn.Linear(30, 7), (4, 30)),
    "linear, no bias": (nn.Linear(30, 7, bias=False), (4, 30)),
}


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("name", LAYERS)
def test_output_and_gradient_are_those_of_layer_and_relu(name, layout):
    layer, shape = LAYERS[name]
    if len(shape) == 2 and layout == torch.channels_last:
        pytest.skip("rows have no layout")
    layer.requires_grad_(False)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(memory_format=layout)
    x.requires_grad_()
    assert offered(layer)
    expected, found = layer(x).relu(), Rectified(layer)(x)
    weight = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1))
    (wanted,) = torch.autograd.grad((weight * expected).sum(), x)
    (got,) = torch.autograd.grad((weight * found).sum(), x)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        assert torch.equal(Rectified(layer)(x), found)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Linear(3, 2).double(),
        nn.Conv2d(1, 2, 3).bfloat16(),
        nn.Conv2d(1, 2, 3, padding="same"),
        nn.Conv2d(1, 2, 3, padding=1, padding_mode="reflect"),
        nn.Conv1d(1, 2, 3),
        nn.ReLU(),
    ],
)
def test_other_layers_are_left_alone(layer):
    assert not offered(layer)


def test_a_fast_copy_rectifies_where_a_relu_alone_reads():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 4, 2, 1, bias=False),
        nn.BatchNorm2d(8),  # folded into the layer before it
        nn.ReLU(),
        Doubled(8),
        nn.Flatten(),
        nn.Linear(8 * 49, 6),
        nn.ReLU(),
        nn.Linear(6, 3),
    ).eval()
    model[1].running_mean.uniform_(-0.5, 0.5)
    x = torch.rand(4, 1, 14, 14)
    fast = swift(model, x)
    names = [name for name, part in fast.named_modules() if isinstance(part, Rectified)]
    assert names == ["0", "5"]
    with torch.no_grad():
        torch.testing.assert_close(fast(x), model(x), rtol=1e-5, atol=1e-5)


class Doubled(nn.Module):
    """A convolution whose output is read twice."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv, self.relu = nn.Conv2d(width, width, 1), nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.conv(x)
        return self.relu(out) + out

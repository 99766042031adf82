"""A layer with fixed weights and the ReLU after it, in one kernel of oneDNN.

A ReLU on its own reads and writes every map once more, which a processor feels: without that a
forward pass of a small network takes a tenth less time. oneDNN applies the ReLU as it writes what
a convolution or a linear layer returns. PyTorch offers these kernels to compiled inference alone;
here they come with the gradient to the input. What the ReLU has cut is read from its own output.
"""

from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from advtrain.strided import gains, input_gradient, taps


class Rectified(nn.Module):
    """relu(layer(x)) for a layer of `offered`: the same up to rounding; no gradient to weights."""

    def __init__(self, layer: nn.Conv2d | nn.Linear) -> None:
        super().__init__()
        self.layer = layer
        kernels = None
        if isinstance(layer, nn.Conv2d) and gains(layer):
            kernels = taps(layer.weight.detach(), layer.stride[0])
        self.register_buffer("taps", kernels, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return _Rectify.apply(x, self)


def offered(layer: nn.Module) -> TypeGuard[nn.Conv2d | nn.Linear]:
    """Whether `Rectified` takes this layer, and has its kernel in this build of PyTorch."""
    plain = type(layer) is nn.Linear or (
        type(layer) is nn.Conv2d
        and layer.padding_mode == "zeros"
        and not isinstance(layer.padding, str)
    )
    kernels = ("_convolution_pointwise", "_linear_pointwise")
    return (
        plain
        and layer.weight.dtype == torch.float32
        and layer.weight.device.type == "cpu"
        and torch.backends.mkldnn.is_available()
        and all(hasattr(torch.ops.mkldnn, name) for name in kernels)
    )


class _Rectify(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, rectified: Rectified) -> Tensor:
        layer = rectified.layer
        out = _convolved(x, layer) if isinstance(layer, nn.Conv2d) else _mapped(x, layer)
        ctx.save_for_backward(out)
        ctx.rectified, ctx.size, ctx.strides = rectified, x.shape, x.stride()
        ctx.last = not x.is_contiguous() and x.stride(1) == 1
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (out,) = ctx.saved_tensors
        layer, kernels = ctx.rectified.layer, ctx.rectified.taps
        passed = torch.ops.aten.threshold_backward(gradient, out, 0)
        if isinstance(layer, nn.Linear):
            return passed @ layer.weight, None
        if kernels is not None:
            where = layer.stride[0], layer.padding, ctx.size[2:]
            return input_gradient(passed, kernels, *where, last=ctx.last), None
        like = torch.empty_strided(ctx.size, ctx.strides, dtype=gradient.dtype)
        return _back(passed, like, layer), None


def _convolved(x: Tensor, layer: nn.Conv2d) -> Tensor:
    return torch.ops.mkldnn._convolution_pointwise(
        x,
        layer.weight,
        layer.bias,
        layer.padding,
        layer.stride,
        layer.dilation,
        layer.groups,
        "relu",
        [],
        "",
    )


def _mapped(x: Tensor, layer: nn.Linear) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, layer.weight, layer.bias, "relu", [], "")


def _back(gradient: Tensor, like: Tensor, layer: nn.Conv2d) -> Tensor:
    """The gradient of a convolution to an input of the shape and layout of `like`."""
    found, _, _ = torch.ops.aten.convolution_backward(
        gradient,
        like,
        layer.weight,
        None,
        layer.stride,
        layer.padding,
        layer.dilation,
        False,
        [0, 0],
        layer.groups,
        [True, False, False],
    )
    return found

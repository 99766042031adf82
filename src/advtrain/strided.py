"""The gradient to the images of a strided convolution, as a convolution without stride.

With stride s, pixels whose places leave the same remainder by s are reached by the same taps of the
kernel, each s-th one. So their gradient is a plain convolution of the output's gradient with those
taps, and interleaving the s^2 results is a pixel shuffle (Shi et al. 2016,
https://arxiv.org/abs/1609.05158). For few channels a processor does this up to five times as fast
as its own gradient; for many its own is faster.

Images of one channel leave that convolution a handful of outputs, too few to be fast. There one
product of matrices gives what each tap adds to where, and shifted sums put it in place.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FEW = 24  # channels in, counted with the zeros that fill up a kernel
COLOURS = 3  # channels of images; where weights are trained too, layers of more lose by it
FITS = 1.25  # how much more room than the gradient itself the parts of a sum may take


class Strided(nn.Module):
    """`conv` with fixed weights: the same output, and a gradient to the input alone."""

    taps: Tensor

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = conv
        self.register_buffer("taps", taps(conv.weight.detach(), conv.stride[0]), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return _convolved(self.conv, x, self.taps)


@contextmanager
def sooner(model: nn.Module) -> Iterator[None]:
    """Inside, strided layers of `model` that read images give them their gradient sooner.

    Weights may change, and get their gradients as ever. A layer whose `forward` somebody else has
    replaced stays as it is, and so does a compiled network.
    """
    parts = list(model.modules())
    layers = [
        part
        for part in parts
        if type(part) is nn.Conv2d
        and part.in_channels <= COLOURS
        and gains(part)
        and part.weight.device.type == "cpu"
        and "forward" not in part.__dict__
    ]
    if any(part._compiled_call_impl or hasattr(part, "_orig_mod") for part in parts):
        layers = []
    try:
        for layer in layers:
            layer.__dict__["forward"] = MethodType(_forward, layer)  # a copy binds its own
        yield
    finally:
        for layer in layers:
            del layer.__dict__["forward"]


def _forward(layer: nn.Conv2d, x: Tensor) -> Tensor:
    seen = x.requires_grad and torch.is_grad_enabled()
    return _convolved(layer, x, None) if seen else nn.Conv2d.forward(layer, x)


def gains(part: nn.Module) -> bool:
    """Whether `Strided` would do the work of `part`, and sooner on a processor."""
    return (
        type(part) is nn.Conv2d
        and part.stride[0] == part.stride[1] > 1
        and part.in_channels * _side(part.weight, part.stride[0]) ** 2
        <= FEW * part.weight[0, 0].numel()
        and part.groups == 1
        and part.dilation == (1, 1)
        and part.padding_mode == "zeros"
        and not isinstance(part.padding, str)
    )


def _side(weight: Tensor, stride: int) -> int:
    """Of the square kernel, filled up with zeros, that the stride divides."""
    return -(-max(weight.shape[2:]) // stride) * stride


def taps(weight: Tensor, stride: int) -> Tensor:
    """Kernels (s^2 C, O, m, m) of the gradient, for weights (O, C, k, k'): each s-th tap, turned.

    m = ceil(max(k, k') / s); shorter kernels are filled with zeros where nothing is reached.
    """
    outputs, inputs = weight.shape[:2]
    size = _side(weight, stride) // stride
    kernels = weight.new_zeros(stride, stride, inputs, outputs, size, size)
    for i in range(stride):
        for j in range(stride):
            turned = weight[:, :, i::stride, j::stride].flip(2, 3).transpose(0, 1)
            kernels[i, j, :, :, size - turned.shape[2] :, size - turned.shape[3] :] = turned
    return kernels.reshape(-1, outputs, size, size)


def _convolved(conv: nn.Conv2d, x: Tensor, kernels: Tensor | None) -> Tensor:
    """conv(x); `kernels`: its taps, None to take them from the weights as they are then."""
    padding = conv.padding[0], conv.padding[1]
    return _Convolve.apply(x, conv.weight, conv.bias, kernels, conv.stride[0], padding)


class _Convolve(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        kernels: Tensor | None,
        stride: int,
        padding: tuple[int, int],
    ) -> Tensor:
        trained = any(ctx.needs_input_grad[1:3])
        ctx.save_for_backward(x if trained else None, weight, kernels)
        ctx.stride, ctx.padding, ctx.size = stride, padding, x.shape[2:]
        ctx.last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
        return F.conv2d(x, weight, bias, stride, padding)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, kernels = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad[:3]
        seen = weights = biases = None
        if of_x:
            kernels = taps(weight, ctx.stride) if kernels is None else kernels
            where = ctx.stride, ctx.padding, ctx.size
            seen = input_gradient(gradient, kernels, *where, last=ctx.last)
        if of_weight or of_bias:
            _, weights, biases = torch.ops.aten.convolution_backward(
                gradient,
                x,
                weight,
                [len(weight)],
                [ctx.stride, ctx.stride],
                ctx.padding,
                [1, 1],
                False,
                [0, 0],
                1,
                [False, of_weight, of_bias],
            )
        return seen, weights, biases, None, None, None


def input_gradient(
    gradient: Tensor,
    taps: Tensor,
    stride: int,
    padding: tuple[int, int],
    size: tuple[int, int],
    *,
    last: bool,
) -> Tensor:
    """The gradient to an input of so many pixels, from that to the output; channels `last`."""
    spread = _interleave(_spread(gradient, taps), stride, last=last)
    (top, left), (height, width) = padding, size
    seen = spread[:, :, top : top + height, left : left + width]
    below, beside = height - seen.shape[2], width - seen.shape[3]  # that no tap reaches
    return F.pad(seen, (0, beside, 0, below)) if below or beside else seen


def _spread(gradient: Tensor, taps: Tensor) -> Tensor:
    """The full convolution of `gradient` (B, O, h, w) with `taps` (n, O, m, m), (B, n, H, W)."""
    reached, outputs, size, _ = taps.shape
    if reached * size * size > FITS * outputs:
        return F.conv2d(gradient, taps, padding=size - 1)
    count, _, height, width = gradient.shape
    pixels = gradient.permute(0, 2, 3, 1).reshape(-1, outputs)
    added = torch.mm(taps.permute(2, 3, 0, 1).reshape(-1, outputs), pixels.T)
    added = added.view(size, size, reached, count, height, width)
    total = gradient.new_zeros(reached, count, height + size - 1, width + size - 1)
    for i in range(size):
        for j in range(size):
            top, left = size - 1 - i, size - 1 - j
            total[..., top : top + height, left : left + width] += added[i, j]
    return total.transpose(0, 1)


def _interleave(parts: Tensor, stride: int, *, last: bool) -> Tensor:
    """A pixel shuffle in one copy, (B, C, s H, s W); channels `last` whatever `parts` has."""
    count, planes, height, width = parts.shape
    channels = planes // stride**2
    grid = parts.unflatten(1, (stride, stride, channels))
    if last:
        pixels = grid.permute(0, 4, 1, 5, 2, 3)
        return pixels.reshape(count, height * stride, width * stride, channels).permute(0, 3, 1, 2)
    pixels = grid.permute(0, 3, 4, 1, 5, 2)
    return pixels.reshape(count, channels, height * stride, width * stride)

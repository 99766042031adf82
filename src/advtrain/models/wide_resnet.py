"""Wide ResNets with pre-activation (Zagoruyko & Komodakis 2016, https://arxiv.org/abs/1605.07146).

The blocks of TRADES, robust_overfitting and AWP: batch norm and ReLU before each 3x3 convolution,
the stride on a block's first convolution, no biases in convolutions, and a 1x1 shortcut from the
activated input where the width changes. Names and order of the layers are theirs.

Networks called WRN-34-10, which differ (parameters at 10 classes, million multiply-accumulates
at 32x32):

| file | parameters | MMAC | |
| --- | --- | --- | --- |
| robust_overfitting, AWP, later TRADES | 46,160,474 | 6,658.9 | followed here |
| first TRADES, MART | 48,262,586 | 6,658.9 | stores five more blocks that it never uses |
| NuAT | 46,172,810 | 7,366.7 | biases, other strides, raw shortcut: see nuat_networks |
"""

from collections.abc import Sequence
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from advtrain.models.initialisation import he_normal
from advtrain.models.network import Activation, Network, normalisation, rectifier
from advtrain.ranges import Count, Decay


class Block(nn.Module):
    """Two pre-activated 3x3 convolutions with dropout between them, and a shortcut."""

    def __init__(
        self, inputs: int, outputs: int, stride: int, dropout: float, activation: Activation
    ) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.act1 = activation(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.act2 = activation(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        projects = inputs != outputs
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if projects else None

    def forward(self, x: Tensor) -> Tensor:
        active = self.act1(self.bn1(x))
        out = self.act2(self.bn2(self.conv1(active)))
        out = self.conv2(self.dropout(out))
        return out + (x if self.shortcut is None else self.shortcut(active))


class WideBody(nn.Module):
    """Images to pooled features, shape (B, 64 * width); any image size."""

    def __init__(
        self, channels: int, blocks: int, width: int, dropout: float, activation: Activation
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 16, 3, 1, 1, bias=False)
        self.block1 = stage(16, 16 * width, 1, blocks, dropout, activation)
        self.block2 = stage(16 * width, 32 * width, 2, blocks, dropout, activation)
        self.block3 = stage(32 * width, 64 * width, 2, blocks, dropout, activation)
        self.bn1 = nn.BatchNorm2d(64 * width)
        self.act = activation(64 * width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block3(self.block2(self.block1(self.conv1(x))))
        return F.adaptive_avg_pool2d(self.act(self.bn1(x)), 1).flatten(1)


def stage(
    inputs: int, outputs: int, stride: int, blocks: int, dropout: float, activation: Activation
) -> nn.Sequential:
    """Blocks of one resolution; the first changes width and stride."""
    first = Block(inputs, outputs, stride, dropout, activation)
    more = (Block(outputs, outputs, 1, dropout, activation) for _ in range(blocks - 1))
    return nn.Sequential(first, *more)


def wide_resnet(
    shape: tuple[int, int, int],
    classes: int,
    *,
    depth: Count,
    width: Count,
    dropout: Decay,
    initialisation: Literal["he", "torch"],
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
) -> Network:
    """WRN-`depth`-`width`: three stages of (depth - 4) / 6 blocks, 16, 32 and 64 times `width`.

    `initialisation`: `he` draws kernels from N(0, 2 / (k k C_out)) and zeroes the last bias, as
    TRADES does; `torch` leaves PyTorch's defaults, as Once-for-all does.
    Raises ValueError when `depth` is not 6 n + 4 or the initialisation is neither.
    """
    return assembled(shape, classes, depth, width, dropout, initialisation, mean, std, rectifier)


def assembled(
    shape: tuple[int, int, int],
    classes: int,
    depth: int,
    width: int,
    dropout: float,
    initialisation: Literal["he", "torch"],
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    activation: Activation,
) -> Network:
    """The same with `activation` in each place of a ReLU."""
    blocks, rest = divmod(depth - 4, 6)
    if rest or blocks < 1:
        raise ValueError(
            f"model.depth is {depth}; a wide ResNet has 6 n + 4 layers: 16, 28, 34, 40."
        )
    if initialisation not in ("he", "torch"):
        raise ValueError(f"model.initialisation is {initialisation!r}; allowed are he and torch.")
    body = WideBody(shape[0], blocks, width, dropout, activation)
    head = nn.Linear(64 * width, classes)
    if initialisation == "he":
        he_normal(body)
        nn.init.zeros_(head.bias)
    return Network(normalisation(shape[0], mean, std), body, head, accepts=(shape[0], None, None))

"""Residual networks (He et al. 2016, https://arxiv.org/abs/1512.03385).

Layers carry torchvision's names and stand in its order (conv1, bn1, layer1.0.conv1, ...,
downsample), so its weights fit by name. Fine-tuning on small images offers (MMAC of ResNet-18 at
32x32 and 10 classes):

| stem | MMAC | of torchvision's weights, all but |
| --- | --- | --- |
| imagenet | 37.0 | the head; the last map is one pixel |
| imagenet_stride1 | 563.3 | the head: 7x7 at stride 1, no max pool |
| cifar | 555.4 | head and stem: 3x3 at stride 1 |
| imagenet, resize 64, 128, 224 | 148.1, 592.2, 1813.6 | the head |

Networks called ResNet-18 at 32x32 and 10 classes, all of 11,173,962 parameters and 555.4 MMAC:

| file | |
| --- | --- |
| TRADES, MART, MAIR | followed here: no ReLU between the second batch norm and the sum |
| GAT, NuAT | one ReLU more, there: the same tensors, another function; see nuat_networks |

The 6 n + 2 family is the one of randomized smoothing (Cohen et al. 2019): basic blocks, 1x1
convolution with batch norm on shortcuts that change shape, He's initialisation. ResNet-110 has
1,730,714 parameters, and depth 50 has 758,554: not the bottleneck network of `resnet50`.
"""

from collections.abc import Sequence
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from advtrain.models.initialisation import he_normal
from advtrain.models.network import Network, normalisation
from advtrain.models.pretrained import Pretrained
from advtrain.ranges import Count

SMALL = 64  # the largest image side, in pixels, for which `auto` keeps full resolution
STEMS = ("auto", "imagenet_stride1", "cifar", "imagenet")


class Basic(nn.Module):
    """Two 3x3 convolutions; the first has the stride."""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = projection(inputs, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return F.relu(out + self.downsample(x))


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions; the 3x3 has the stride, as in torchvision."""

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = width * self.expansion
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.downsample = projection(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        return F.relu(out + self.downsample(x))


def projection(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    """The shortcut: 1x1 convolution and batch norm where the shape changes, else nothing."""
    if stride == 1 and inputs == outputs:
        return nn.Sequential()
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))


def stage(
    block: type[Basic] | type[Bottleneck], inputs: int, width: int, stride: int, count: int
) -> nn.Sequential:
    """`count` blocks of one resolution; the first changes width and stride."""
    outputs = width * block.expansion
    rest = (block(outputs, width, 1) for _ in range(count - 1))
    return nn.Sequential(block(inputs, width, stride), *rest)


def residual_body(
    stem: nn.Sequential,
    block: type[Basic] | type[Bottleneck],
    counts: Sequence[int],
    width: int,
) -> nn.Sequential:
    """Stem, stages of doubling width and halving resolution, global average pool: to (B, F)."""
    body, inputs = stem, width
    for index, count in enumerate(counts):
        planes = width * 2**index
        blocks = stage(block, inputs, planes, 1 if index == 0 else 2, count)
        body.add_module(f"layer{index + 1}", blocks)
        inputs = planes * block.expansion
    body.add_module("avgpool", nn.AdaptiveAvgPool2d(1))
    body.add_module("flatten", nn.Flatten())
    return body


def small_stem(channels: int, width: int) -> nn.Sequential:
    """3x3 convolution at full resolution."""
    stem = nn.Sequential()
    stem.add_module("conv1", nn.Conv2d(channels, width, 3, 1, 1, bias=False))
    stem.add_module("bn1", nn.BatchNorm2d(width))
    stem.add_module("relu", nn.ReLU())
    return stem


def large_stem(channels: int, stride: int) -> nn.Sequential:
    """7x7 convolution; max pool where both have `stride` 2, for ImageNet's sizes."""
    stem = nn.Sequential()
    stem.add_module("conv1", nn.Conv2d(channels, 64, 7, stride, 3, bias=False))
    stem.add_module("bn1", nn.BatchNorm2d(64))
    stem.add_module("relu", nn.ReLU())
    if stride > 1:
        stem.add_module("maxpool", nn.MaxPool2d(3, stride, 1))
    return stem


def resnet(
    shape: tuple[int, int, int],
    classes: int,
    block: type[Basic] | type[Bottleneck],
    counts: Sequence[int],
    weights: str,
    *,
    stem: Literal["auto", "cifar", "imagenet", "imagenet_stride1"],
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    resize: int | None,
    pretrained: str | None,
) -> Network:
    """Four stages of 64, 128, 256 and 512 channels.

    `weights`: what torchvision calls those that `pretrained=imagenet` means. `stem=auto` goes by
    the size that the body sees, and keeps a stem that pretrained weights fit. The small stem leaves
    PyTorch's initialisation, as TRADES does; the large ones use He's, as torchvision does.
    """
    if stem not in STEMS:
        raise ValueError(
            f"model.stem is {stem!r}; allowed are {', '.join(STEMS[:-1])} and imagenet."
        )
    start = None if pretrained is None else Pretrained(pretrained, weights)
    if start is not None:
        start.require_constants(mean, std, shape[0])
    if stem == "auto" and (resize or max(shape[1:])) <= SMALL:
        stem = "cifar" if start is None else "imagenet_stride1"
    if stem == "cifar":
        body = residual_body(small_stem(shape[0], 64), block, counts, 64)
    else:
        first = large_stem(shape[0], 1 if stem == "imagenet_stride1" else 2)
        body = residual_body(first, block, counts, 64)
        he_normal(body)
    return Network(
        normalisation(shape[0], mean, std),
        body,
        nn.Linear(512 * block.expansion, classes),
        accepts=(shape[0], None, None),
        resize=resize,
        pretrained=start,
    )


def resnet18(
    shape: tuple[int, int, int],
    classes: int,
    *,
    stem: Literal["auto", "cifar", "imagenet", "imagenet_stride1"],
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    resize: Count | None = None,
    pretrained: str | None = None,
) -> Network:
    """Basic blocks, 2-2-2-2."""
    return resnet(
        *(shape, classes, Basic, (2, 2, 2, 2), "ResNet18_Weights.IMAGENET1K_V1"),
        stem=stem,
        mean=mean,
        std=std,
        resize=resize,
        pretrained=pretrained,
    )


def resnet34(
    shape: tuple[int, int, int],
    classes: int,
    *,
    stem: Literal["auto", "cifar", "imagenet", "imagenet_stride1"],
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    resize: Count | None = None,
    pretrained: str | None = None,
) -> Network:
    """Basic blocks, 3-4-6-3."""
    return resnet(
        *(shape, classes, Basic, (3, 4, 6, 3), "ResNet34_Weights.IMAGENET1K_V1"),
        stem=stem,
        mean=mean,
        std=std,
        resize=resize,
        pretrained=pretrained,
    )


def resnet50(
    shape: tuple[int, int, int],
    classes: int,
    *,
    stem: Literal["auto", "cifar", "imagenet", "imagenet_stride1"],
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    resize: Count | None = None,
    pretrained: str | None = None,
) -> Network:
    """Bottleneck blocks, 3-4-6-3."""
    return resnet(
        *(shape, classes, Bottleneck, (3, 4, 6, 3), "ResNet50_Weights.IMAGENET1K_V1"),
        stem=stem,
        mean=mean,
        std=std,
        resize=resize,
        pretrained=pretrained,
    )


def cifar_resnet(
    shape: tuple[int, int, int],
    classes: int,
    *,
    depth: Count,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
) -> Network:
    """The thin family for 32x32: three stages of (depth - 2) / 6 basic blocks, 16, 32, 64 wide.

    Raises ValueError when `depth` is not 6 n + 2.
    """
    blocks, rest = divmod(depth - 2, 6)
    if rest or blocks < 1:
        raise ValueError(f"model.depth is {depth}; it must be 6 n + 2: 20, 32, 44, 50, 56 or 110.")
    body = residual_body(small_stem(shape[0], 16), Basic, (blocks,) * 3, 16)
    he_normal(body)
    head = nn.Linear(64, classes)
    return Network(normalisation(shape[0], mean, std), body, head, accepts=(shape[0], None, None))

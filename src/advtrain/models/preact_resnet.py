"""ResNet-18 with pre-activation (He et al. 2016, https://arxiv.org/abs/1603.05027).

Networks called PreAct ResNet-18, at 10 classes and 555.4 MMAC for 32x32:

| file | parameters | |
| --- | --- | --- |
| robust_overfitting, AWP | 11,172,170 | `shortcut="activated"`: projections read relu(bn(x)) |
| fast_adversarial | 11,172,170 | `shortcut="raw"`: they read x; same keys, another function |
| MAIR | 11,171,146 | no batch norm and ReLU before the pool; not offered |

Weights of one of the first two load into the other without a word and give wrong accuracies.
"""

from collections.abc import Sequence
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from advtrain.models.network import Network, normalisation


class PreActivated(nn.Module):
    """Batch norm and ReLU before each of two 3x3 convolutions; 1x1 shortcut without batch norm."""

    def __init__(
        self, inputs: int, outputs: int, stride: int, shortcut: Literal["activated", "raw"]
    ) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        projects = stride != 1 or inputs != outputs
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if projects else None
        self.raw = shortcut == "raw"

    def forward(self, x: Tensor) -> Tensor:
        active = F.relu(self.bn1(x))
        out = self.conv2(F.relu(self.bn2(self.conv1(active))))
        if self.shortcut is None:
            return out + x
        return out + self.shortcut(x if self.raw else active)


def preact_resnet18(
    shape: tuple[int, int, int],
    classes: int,
    *,
    shortcut: Literal["activated", "raw"],
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
) -> Network:
    """3x3 stem, four stages of two blocks, 64 to 512 wide; PyTorch's default initialisation."""
    if shortcut not in ("activated", "raw"):
        raise ValueError(f"model.shortcut is {shortcut!r}; allowed are activated and raw.")
    body = nn.Sequential()
    body.add_module("conv1", nn.Conv2d(shape[0], 64, 3, 1, 1, bias=False))
    inputs = 64
    for index, width in enumerate((64, 128, 256, 512)):
        first = PreActivated(inputs, width, 1 if index == 0 else 2, shortcut)
        second = PreActivated(width, width, 1, shortcut)
        body.add_module(f"layer{index + 1}", nn.Sequential(first, second))
        inputs = width
    body.add_module("bn", nn.BatchNorm2d(512))
    body.add_module("relu", nn.ReLU())
    body.add_module("avgpool", nn.AdaptiveAvgPool2d(1))
    body.add_module("flatten", nn.Flatten())
    head = nn.Linear(512, classes)
    return Network(normalisation(shape[0], mean, std), body, head, accepts=(shape[0], None, None))

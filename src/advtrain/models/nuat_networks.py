"""The networks of GAT and NuAT (Sriramanan et al. 2020, https://arxiv.org/abs/2011.14969; 2021,
https://openreview.net/forum?id=kuK2VARZGnI), where they differ from those of the same names.

| network | parameters | what is different |
| --- | --- | --- |
| ResNet-18 for 32x32 | 11,173,962 | a ReLU after a block's second batch norm, before the sum |
| WRN-34-10 | 46,172,810 | biases, stride on the second convolution, shortcut of the raw input |
| MNIST | 1,791,466 | four 5x5 convolutions, two pools, a layer of 512; GAT's "modified LeNet" |

With the ReLU before the sum a block only adds, and its last ReLU does nothing where the shortcut is
plain. The tensors are those of the usual network, the function is another.

Differs: their code adds in place to what a gradient still needs, which PyTorch now refuses.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from advtrain.models.network import Network, normalisation
from advtrain.models.resnet import Basic, residual_body, small_stem


class Adding(Basic):
    """Two 3x3 convolutions whose output, as what it is added to, is nowhere negative."""

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        return F.relu(out + self.downsample(x))


class WideBlock(nn.Module):
    """Two pre-activated 3x3 convolutions with biases; the second has the stride."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, 1, 1)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, stride, 1)
        plain = stride == 1 and inputs == outputs
        self.shortcut = nn.Sequential() if plain else nn.Conv2d(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv1(F.relu(self.bn1(x)))
        out = self.conv2(F.relu(self.bn2(out)))
        return out + self.shortcut(x)


def nuat_resnet18(
    shape: tuple[int, int, int],
    classes: int,
    *,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
) -> Network:
    """ResNet-18 with a 3x3 stem at full resolution; PyTorch's initialisation."""
    body = residual_body(small_stem(shape[0], 64), Adding, (2, 2, 2, 2), 64)
    head = nn.Linear(512, classes)
    return Network(normalisation(shape[0], mean, std), body, head, accepts=(shape[0], None, None))


def nuat_wide_resnet(
    shape: tuple[int, int, int],
    classes: int,
    *,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
) -> Network:
    """WRN-34-10; PyTorch's initialisation. Its last batch norm nearly forgets at every batch."""
    body, inputs = nn.Sequential(nn.Conv2d(shape[0], 16, 3, 1, 1)), 16
    for index, width in enumerate((160, 320, 640)):
        for block in range(5):
            body.append(WideBlock(inputs, width, 2 if index and not block else 1))
            inputs = width
    body.extend([nn.BatchNorm2d(640, momentum=0.9), nn.ReLU()])
    body.extend([nn.AdaptiveAvgPool2d(1), nn.Flatten()])
    head = nn.Linear(640, classes)
    return Network(normalisation(shape[0], mean, std), body, head, accepts=(shape[0], None, None))


def nuat_mnist_cnn(
    shape: tuple[int, int, int],
    classes: int,
    *,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
) -> Network:
    """Convolutions of 32, 32, 64 and 64 channels, a pool after each pair; no batch norm.

    Takes images of the size that it is made for. Raises ValueError for images below 4 by 4.
    """
    channels, height, width = shape
    if min(height, width) < 4:
        raise ValueError(f"nuat_mnist_cnn halves the image twice; {height} by {width} is too small")
    layers: list[nn.Module] = []
    for inputs, outputs in ((channels, 32), (32, 64)):
        layers += [nn.Conv2d(inputs, outputs, 5, 1, 2), nn.ReLU()]
        layers += [nn.Conv2d(outputs, outputs, 5, 1, 2), nn.ReLU(), nn.MaxPool2d(2)]
    layers += [nn.Flatten(), nn.Linear(64 * (height // 4) * (width // 4), 512), nn.ReLU()]
    head = nn.Linear(512, classes)
    return Network(
        normalisation(channels, mean, std),
        nn.Sequential(*layers),
        head,
        accepts=(channels, height, width),
    )

"""Small convolutional networks for small images: ours, and the one of "Fast is better than free".

`mnist_cnn` is the MNIST network of fast_adversarial (Wong et al. 2020,
https://arxiv.org/abs/2001.03994). Networks for MNIST that go by similar names:

| file | parameters | |
| --- | --- | --- |
| fast_adversarial | 166,406 | two 4x4 convolutions of stride 2; followed here |
| TRADES SmallCNN | 312,202 | four 3x3 convolutions, two pools, dropout; not offered |
| Madry MNIST | 3,274,634 | two 5x5 convolutions, two pools; not offered |
"""

from collections.abc import Sequence
from math import log2

from torch import Tensor, nn

from advtrain.models.network import Activation, Network, normalisation, rectifier


def small_cnn(
    shape: tuple[int, int, int],
    classes: int,
    *,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
) -> Network:
    """3x3 convolutions with batch norm, halving the image down to 4 by 4; then one linear layer.

    One convolution of 32 channels at full resolution, then one of 64 and stride 2 per halving: two
    convolutions for 8x8, three for 28x28, four for 32x32. No dropout. PyTorch's initialisation.
    """
    return halving(shape, classes, mean, std, rectifier)


def halving(
    shape: tuple[int, int, int],
    classes: int,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    activation: Activation,
) -> Network:
    """`small_cnn` with `activation` in each place of a ReLU."""
    halvings = max(1, int(log2(min(shape[1:]) / 4)))
    layers = convolution(shape[0], 32, 1, activation)
    for index in range(halvings):
        layers += convolution(32 if index == 0 else 64, 64, 2, activation)
    body = nn.Sequential(*layers, FourByFour(4), nn.Flatten())
    head = nn.Linear(64 * 4 * 4, classes)
    return Network(normalisation(shape[0], mean, std), body, head, accepts=(shape[0], None, None))


class FourByFour(nn.AdaptiveAvgPool2d):
    """Means of 4x4 windows. Maps of 4x4 stay: CUDA has no deterministic gradient of their means."""

    def forward(self, maps: Tensor) -> Tensor:
        return maps if maps.shape[2:] == (4, 4) else super().forward(maps)


def convolution(inputs: int, outputs: int, stride: int, activation: Activation) -> list[nn.Module]:
    """3x3 convolution, batch norm, activation."""
    kernel = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
    return [kernel, nn.BatchNorm2d(outputs), activation(outputs)]


def mnist_cnn(
    shape: tuple[int, int, int],
    classes: int,
    *,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
) -> Network:
    """Two 4x4 convolutions of stride 2, 16 and 32 wide, a layer of 100, a head; no batch norm.

    The first linear layer is as wide as this image size asks for (1,568 at 28x28), so the network
    takes no other size. Raises ValueError for images below 4 by 4.
    """
    return striding(shape, classes, mean, std, rectifier)


def striding(
    shape: tuple[int, int, int],
    classes: int,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    activation: Activation,
) -> Network:
    """`mnist_cnn` with `activation` in each place of a ReLU."""
    channels, height, width = shape
    if min(height, width) < 4:
        raise ValueError(f"mnist_cnn halves the image twice; {height} by {width} is too small.")
    body = nn.Sequential(
        nn.Conv2d(channels, 16, 4, 2, 1),
        activation(16),
        nn.Conv2d(16, 32, 4, 2, 1),
        activation(32),
        nn.Flatten(),
        nn.Linear(32 * (height // 4) * (width // 4), 100),
        activation(100),
    )
    head = nn.Linear(100, classes)
    return Network(
        normalisation(channels, mean, std), body, head, accepts=(channels, height, width)
    )

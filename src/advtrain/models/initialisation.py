"""He's initialisation for rectified convolutions (2015, https://arxiv.org/abs/1502.01852)."""

from math import sqrt

from torch import nn


def he_normal(body: nn.Module) -> None:
    """Draw every kernel from N(0, 2 / (k k C_out)), so that gradients keep their variance."""
    for layer in body.modules():
        if isinstance(layer, nn.Conv2d):
            fan_out = layer.out_channels * layer.kernel_size[0] * layer.kernel_size[1]
            nn.init.normal_(layer.weight, 0.0, sqrt(2 / fan_out))

"""Logits linear in the pixels: the one network whose robust accuracy has a closed form."""

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor, nn

from advtrain.models.network import Network, normalisation
from advtrain.ranges import NonNegative


class Affine(Network):
    """A network without a body that also takes flat images, shape (B, D) with D = C * H * W.

    `head.weight` (K, D) acts on raw pixels as long as there is no normalisation.
    """

    def features(self, x: Tensor) -> Tensor:
        flat = x.ndim == 2 and x.shape[1] == self.head.in_features
        return super().features(x.unflatten(1, self.accepts) if flat else x)


def linear(
    shape: tuple[int, int, int],
    classes: int,
    *,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    spread: NonNegative = 1.0,
) -> Network:
    """One fully connected layer on the flattened image.

    Initialised as PyTorch does, `spread` times as wide; 0 begins at logits of 0. Weights of pixels
    that are 0 in all training images keep that, and an adversary may use them.
    """
    channels, height, width = shape
    head = nn.Linear(prod(shape), classes)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.mul_(spread)
    return Affine(
        normalisation(channels, mean, std),
        nn.Flatten(),
        head,
        accepts=(channels, height, width),
    )

"""Logits linear in the pixels: the one network whose robust accuracy has a closed form."""

from collections.abc import Sequence
from math import prod

from torch import Tensor, nn

from advtrain.models.network import Network, normalisation


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
) -> Network:
    """One fully connected layer on the flattened image, PyTorch's default initialisation."""
    channels, height, width = shape
    return Affine(
        normalisation(channels, mean, std),
        nn.Flatten(),
        nn.Linear(prod(shape), classes),
        accepts=(channels, height, width),
    )

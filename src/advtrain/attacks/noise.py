"""Gaussian noise, drawn once for each image: not an attack, but what it does to accuracy is a row.

Cohen et al. 2019 (https://arxiv.org/abs/1902.02918) log the test accuracy of training by noise so:
one draw per image, of the scale trained with.
"""

from dataclasses import dataclass
from typing import Any

from torch import Generator, Tensor

from advtrain.draws import normal
from advtrain.ranges import Positive, Range, require
from advtrain.types import Classifier


@dataclass(frozen=True)
class Noise:
    """N(0, sigma^2) on every pixel, in units of [0, 1]; as at certification it is not clipped.

    No adversary chooses it and no ball holds it, so it has no threat, and images leave the box.
    The referee takes it for what it is (types.Corruption). ValueError: sigma not positive.
    """

    sigma: Positive

    def __post_init__(self) -> None:
        require("Noise.sigma", self.sigma, Range(0, open_low=True))

    def corrupted(self, x: Tensor, generator: Generator | None = None) -> Tensor:
        """`x` with fresh noise, in a tensor of its own."""
        return normal(x, generator, std=self.sigma).add_(x)

    def __call__(
        self,
        model: Classifier,
        x: Tensor,
        y: Tensor,
        *,
        generator: Generator | None = None,
        **overrides: Any,
    ) -> Tensor:
        """Never asks the model; takes the overrides that attacks take."""
        return self.corrupted(x.detach(), generator)

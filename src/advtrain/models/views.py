"""Views: what another classifier is made of a network, to be attacked or judged in its place.

A view is a function `(model, *, configuration) -> Classifier`: images in, logits out, gradients
through. What it returns keeps the network under the name `model`, so that whoever cares for modes
and precision finds it.
"""

from dataclasses import dataclass
from math import log

import torch
from torch import Generator, Tensor

from advtrain.ranges import Count, Natural, Positive, Range, require
from advtrain.types import Classifier


def smoothed(
    model: Classifier, *, sigma: Positive, draws: Count, seed: Natural | None
) -> "SoftSmoothed":
    """log of the mean of softmax(model(x + e)) over `draws` Gaussian draws e of deviation sigma.

    The differentiable stand-in for the smoothed classifier, whose votes have no gradient (Salman et
    al. 2019, https://arxiv.org/abs/1906.04584, eq. 6). sigma in pixel units of [0, 1]; noise is not
    clipped.

    With a `seed`, the noise is the same at each call and for each image, so the view is a plain
    function of an image, whoever else is in its batch; results of an attack are reproducible, and
    restarts comparable. With null each call and image has fresh noise, from the global random
    state. ValueError: sigma not positive, draws below 1.
    """
    require("sigma", sigma, Range(0, open_low=True))
    require("draws", draws, Range(1))
    return SoftSmoothed(model, sigma, draws, seed)


@dataclass(frozen=True)
class SoftSmoothed:
    """See `smoothed`. A call makes one forward pass of draws x B images, (draws, B) flattened."""

    model: Classifier
    sigma: float
    draws: int
    seed: int | None

    def __call__(self, x: Tensor) -> Tensor:
        """Logits (B, K): logarithms of probabilities that sum to 1."""
        noisy = x + self.sigma * self._noise(x)
        logits = self.model(noisy.flatten(0, 1))
        wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
        each = wide.log_softmax(1).unflatten(0, (self.draws, len(x)))
        return each.logsumexp(0) - log(self.draws)

    def _noise(self, x: Tensor) -> Tensor:
        """(draws, 1, ...) with a seed, and (draws, B, ...) without."""
        if self.seed is None:
            return torch.randn((self.draws, *x.shape), dtype=x.dtype, device=x.device)
        generator = Generator(x.device).manual_seed(self.seed)
        shape = (self.draws, 1, *x.shape[1:])
        return torch.randn(shape, generator=generator, dtype=x.dtype, device=x.device)

"""Several draws of a stochastic network as one classifier, and how many passes that takes.

A layer that draws random numbers in every pass, for each row of a batch its own, says so by an
attribute `stochastic = True`. Then the draws of an image go through the network side by side;
of any other network one after the other, for its draws may be of a whole batch.
"""

from math import prod

import torch
from torch import Tensor, nn

from advtrain.functional import log_probabilities

AT_ONCE = 1000  # rows of a pass, at most, where a batch has no more than that


class Averaged(nn.Module):
    """`draws` forward passes of `network` for one answer; in what way they are one is up to heirs.

    Memory for gradients is that of `draws` passes of a batch, however they are cut.
    """

    repeats = True

    def __init__(self, network: nn.Module, draws: int) -> None:
        super().__init__()
        self.network = network
        self.draws = draws
        self.training = network.training

    def around(self, network: nn.Module) -> "Averaged":
        """The same of another network."""
        return type(self)(network, self.draws)

    def together(self, images: int) -> int:
        """Draws of so many images that go through the network side by side."""
        if not is_stochastic(self.network):
            return 1
        return min(self.draws, max(1, AT_ONCE // max(images, 1)))

    def answers(self, x: Tensor) -> Tensor:
        """Log-probabilities of all draws at `x` (B, ...), (draws, B, K), in float32 at least."""
        together, found = self.together(len(x)), []
        for first in range(0, self.draws, together):
            count = min(together, self.draws - first)
            logits = self.network(x.repeat(count, *[1] * (x.ndim - 1)) if count > 1 else x)
            found.append(logits.unflatten(0, (count, len(x))))
        return log_probabilities(found[0] if len(found) == 1 else torch.cat(found))


def is_stochastic(model: nn.Module) -> bool:
    """Whether a layer of `model` says that it draws random numbers for each row of a batch."""
    return any(getattr(part, "stochastic", False) is True for part in model.modules())


def single(model: nn.Module) -> nn.Module:
    """The network of which `model` takes several draws; `model` itself if it takes one."""
    while isinstance(model, Averaged):
        model = model.network
    return model


def rewrapped(model: nn.Module, network: nn.Module) -> nn.Module:
    """What `model` does with draws of `single(model)`, done with draws of `network`."""
    if isinstance(model, Averaged):
        return model.around(rewrapped(model.network, network))
    return network


def rows(model: object, images: int) -> int:
    """Rows of the widest pass of `single(model)` for one call of `model` on so many images."""
    while isinstance(model, Averaged):
        images, model = images * model.together(images), model.network
    return images


def passes(model: object) -> int:
    """Forward passes of the network inside for one call of `model`.

    A module that says `repeats = True` makes `draws` of them.
    """
    if not isinstance(model, nn.Module):
        return 1
    draws: list[int] = [
        getattr(part, "draws", 1)
        for part in model.modules()
        if getattr(part, "repeats", False) is True
    ]
    return prod(draws)

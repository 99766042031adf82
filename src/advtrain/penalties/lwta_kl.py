"""How far winner-takes-all layers are from letting chance decide (Panousis et al. 2021).

The evidence lower bound of the paper is the log-likelihood less KL(q || p) over all winners, q =
softmax(h) in each block and p uniform; minimising its negative, the divergence is added:

    weight * sum over blocks of sum_u q_u (log q_u + log U), the mean over images and positions.

It is 0 where competitors are equal, and log U in each block where one is certain to win. With
`reduction: mean` the sum is divided by the number of blocks in the network, so that a weight means
the same for small and large ones. Of a loss with several passes all images count alike.

Differs: the authors compute a term with the sampled mask for q, sum it over blocks, divide by
1,000, and add it to no loss; their released networks are trained without it. The bound itself has
weight 1 for one draw per image, and sums over positions.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from advtrain.divergences import divergent, noted
from advtrain.ranges import NonNegative, Range, require


@dataclass(frozen=True)
class LwtaKl:
    """Reads what layers note during the loss (`watching`), hence works with any defense."""

    weight: NonNegative
    reduction: Literal["mean", "sum"]

    def __post_init__(self) -> None:
        require("penalty.lwta_kl.weight", self.weight, Range(0))
        if self.reduction not in ("mean", "sum"):
            raise ValueError(f"reduction is {self.reduction!r}; allowed are mean and sum.")

    @contextmanager
    def watching(self, model: nn.Module) -> Iterator[None]:
        """Inside, passes leave what the call then reads. ValueError: nothing would be noted."""
        if not divergent(model):
            raise ValueError(
                f"penalty=lwta_kl needs winner-takes-all layers, and {type(model).__name__} has "
                "none. Use model=lwta_cnn, lwta_mnist_cnn or lwta_wrn_34_1, or penalty=none."
            )
        with noted(model):
            yield

    def __call__(self, model: nn.Module) -> Tensor:
        notes = [torch.cat(layer.divergences) for layer in divergent(model) if layer.divergences]
        if not notes:
            raise ValueError("penalty=lwta_kl: the loss made no pass with gradients to read.")
        total = torch.stack([note.sum(1).mean() for note in notes]).sum()
        blocks = sum(note.shape[1] for note in notes)
        return self.weight * (total / blocks if self.reduction == "mean" else total)

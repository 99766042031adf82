"""Several runs of a gradient attack from random starts, of whose points `Best` keeps one per image.

Runs after the first are for the images that stand, packed into full batches, where nothing ties
the images of a batch to each other: in evaluation mode, and with a gain of an image's own. Else
each run is for all of them. Starts are drawn for all images and all runs either way, so who stands
changes no draw, and what is returned is the same.
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from advtrain.attacks.best import Best
from advtrain.attacks.survivors import Noise, Rated, placed, separable, until_fooled_or_best
from advtrain.ranges import Range, require
from advtrain.sharing import shared
from advtrain.types import Classifier

Rows = Tensor | slice
"""Which images of a batch: their indices (B,), or a slice."""

Runs = Callable[[Rows, Iterable[Tensor], Best | None], Tensor]
"""A run for these images from each of the starts (B, ...): the last point, (B, ...).

Points are offered to the choice, if there is one.
"""


def restarted(
    model: Classifier,
    x: Tensor,
    y: Tensor,
    runs: Runs,
    draw: Callable[[], Tensor],
    *,
    restarts: int,
    keep: str,
    targeted: bool,
    separate: bool,
) -> Tensor:
    """The points of `restarts` runs, each from a `draw` of starts for all images.

    One run with keep `last` returns its last points; else there is a choice to make. `separate`:
    whether what a run ascends for an image depends on that image alone.
    ValueError: restarts below 1, or another `keep` than `last` and `any`.
    """
    require("restarts", restarts, Range(1))
    if keep not in ("last", "any"):
        raise ValueError(f"keep is {keep!r}; allowed are last and any.")
    starts = (draw() for _ in range(restarts))
    if restarts == 1 and keep == "last":
        return runs(slice(None), starts, None)
    if restarts > 1 and separate and _apart(model, x):
        return _packed(model, x, y, runs, Noise(x, draw), restarts, targeted)
    best = Best(model, x, y, targeted=targeted)
    runs(slice(None), starts, best)
    return best.x


def _packed(
    model: Classifier,
    x: Tensor,
    y: Tensor,
    runs: Runs,
    noise: Noise,
    restarts: int,
    targeted: bool,
) -> Tensor:
    def run(index: Tensor, number: Tensor) -> Rated:
        best = Best(model, x[index], y[index], targeted=targeted)
        runs(index, [noise(index, number)], best)
        return Rated(best.x, best.certain(), best.gain)

    x_adv = until_fooled_or_best(x, torch.zeros_like(y, dtype=torch.bool), restarts, run)
    noise.draw_until(restarts)
    return x_adv


def _apart(model: Classifier, x: Tensor) -> bool:
    """Whether nothing ties the images to each other, or to their places in the batch.

    A lambda for each image is bound to a conditional network, and processes that share a minibatch
    draw for it in step.
    """
    return separable(model) and not placed(model) and shared(len(x)) is None

"""What a network shows on a few images before any attack: signs that its rows would mislead.

Signs of one kind are in its outputs, see `answers`; the others in its gradients, see `masking`.
Logits are also what a network is known again by: weights alone do not tell how they are used.
"""

import hashlib
from functools import partial
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from torch import Generator, Tensor, nn

from advtrain import answers, masking
from advtrain.answers import ROUNDING, asked, attacking, distance
from advtrain.files import write_atomic
from advtrain.foreign import content
from advtrain.masking import Slopes
from advtrain.modes import frozen
from advtrain.types import Threat

MOST = 32 << 20  # bytes of a portrait


def probe(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    threat: Threat,
    classes: int,
    generator: Generator | None = None,
) -> list[dict[str, str]]:
    """Warnings about `model`, which is in evaluation mode and in full precision.

    x (N, ...) in [0, 1] and y (N,), of which 128 are enough; `classes`: of the data. A warning
    `no_gradient` means that no attack by gradients can run, `chance` that the network has learned
    nothing, of which gradients tell no more. Draws of the network itself come from the global
    generator. Costs 121 forward and backward passes of the images, and 15 forward ones.
    ValueError where no evaluation means anything: logits that are not (N, K), not finite, or
    fewer than classes, or a network that raises an error.
    """
    if not len(x):
        return []
    with frozen(model), torch.enable_grad(), attacking(x):
        seen = answers.ask(model, x, y, classes)
        found = list(answers.signs(seen))
        right = (seen.logits.argmax(1) == y).nonzero().squeeze(1)
        if seen.differentiable and len(right) and "chance" not in dict(found):
            steady = answers.steady(seen)
            asking = partial(asked, model)
            slopes = Slopes(asking, x[right], y[right], threat, steady, generator)
            found += masking.signs(slopes)
    return [{"check": check, "row": "model", "message": message} for check, message in found]


def portrait(model: nn.Module, x: Tensor, threat: Threat) -> Tensor:
    """Logits of `x` (N, ...) and of points within `threat` of them, (2N, K), on the processor.

    The points are off the grid of grey levels, where networks may part that agree on images. They
    are drawn by the global generator of the processor, so that every device sees the same. What
    is not finite counts as 0.
    """
    around = threat.sample(x.cpu()).to(x.device)
    with torch.no_grad():
        logits = torch.cat([asked(model, x), asked(model, around)])
    return logits.float().nan_to_num(0.0, 0.0, 0.0).cpu()


def recognised(first: Tensor, again: Tensor, path: Path) -> str:
    """A name for the network of two portraits by the same draws; the same for the same network.

    The portrait at `path` stands for all that agree with it up to rounding, as of other threads or
    devices; any other takes its place. A network with draws that no seed reaches has no portrait,
    and is known by its weights alone.
    """
    if not alike(first, again):
        return "unsteady"
    kept = _kept(path)
    if kept is None or not alike(first, kept):
        write_atomic(path, lambda file: np.save(file, first.numpy(), allow_pickle=False))
        kept = first
    return hashlib.blake2b(kept.numpy().tobytes(), digest_size=16).hexdigest()


def _kept(path: Path) -> Tensor | None:
    try:
        return torch.from_numpy(np.lib.format.read_array(BytesIO(content(path, MOST))))
    except (OSError, ValueError, TypeError, EOFError, MemoryError):  # none, or damaged
        return None


def alike(first: Tensor, other: Tensor) -> bool:
    """Whether two portraits are the same bits, or differ by rounding."""
    same = first.shape == other.shape
    return same and (torch.equal(first, other) or distance(first, other) <= ROUNDING)

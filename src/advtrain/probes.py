"""What a network shows on a few images before any attack: signs that its rows would mislead.

Signs of one kind are in its outputs, see `answers`; the others in its gradients, see `masking`.
"""

import torch
from torch import Generator, Tensor, nn

from advtrain import answers, masking
from advtrain.masking import Slopes
from advtrain.modes import frozen
from advtrain.types import Threat


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
    `no_gradient` means that no attack by gradients can run. Draws of the network itself come from
    the global generator. Costs 121 forward and backward passes of the images, and 15 forward ones.
    ValueError where no evaluation means anything: logits that are not (N, K), not finite, or
    fewer than classes.
    """
    if not len(x):
        return []
    with frozen(model), torch.enable_grad():
        seen = answers.ask(model, x, y, classes)
        found = list(answers.signs(seen))
        right = (seen.logits.argmax(1) == y).nonzero().squeeze(1)
        if seen.differentiable and len(right):
            steady = answers.steady(seen)
            slopes = Slopes(model, x[right], y[right], threat, classes, steady, generator)
            found += masking.signs(slopes)
    return [{"check": check, "row": "model", "message": message} for check, message in found]

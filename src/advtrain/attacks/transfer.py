"""Transfer: examples crafted on one network, judged on another (Papernot et al. 2016,
https://arxiv.org/abs/1605.07277).

A black-box attack, and a check on the white-box ones: what a look-alike's examples break and a
gradient attack on the network itself does not was hidden, not absent.
"""

import torch
from torch import Generator, Tensor, nn

from advtrain.attacks.guard import guarded
from advtrain.modes import crafting
from advtrain.types import Attack, Classifier, Threat


@guarded
def transfer(
    model: Classifier,
    x: Tensor,
    y: Tensor,
    *,
    threat: Threat,
    attack: Attack,
    source: nn.Module,
    generator: Generator | None = None,
) -> Tensor:
    """What `attack` makes of the network `source`, in evaluation mode; `model` is not asked.

    `attack` must search the set `threat` or a part of it, and takes `generator=`; `source` is
    moved to the device of x and stays there, its mode is restored. An attack that keeps its last
    point, or the one of highest loss, transfers best.
    """
    source.to(x.device)
    with torch.enable_grad(), crafting(source, "eval"):
        return attack(source, x, y, generator=generator)

"""How the weights after an epoch do on the validation split."""

from functools import partial

import torch
from torch import Tensor, nn

from advtrain.evaluation import Row, Subject, judge
from advtrain.runs import Setting, Validation
from advtrain.seeding import stream
from advtrain.types import Defense

BATCH = 500


def validate(
    model: nn.Module, setting: Setting, validation: Validation, defense: Defense
) -> dict[str, float]:
    """Clean and adversarial accuracy on the validation split; the same draws at every epoch.

    The defense says what else the images are put through, by the metric that it gives, and what
    attacks work on.
    """
    split = setting.data.validation
    size = min(len(split), validation.size)
    if size == 0:
        return {}
    attacks = {"val_adv_acc": validation.attack, **defense.checks()}
    bits = dict.fromkeys(["val_acc", *attacks], "")
    rows = {name: Row("validation", "validation", attack, {}) for name, attack in attacks.items()}
    referee = partial(judge, Subject(model, defense.attacked(model)), key="validation")
    for start in range(0, size, BATCH):
        x, y = split.batch(slice(start, min(start + BATCH, size)))
        at, all_right = tuple(range(len(y))), torch.ones_like(y, dtype=torch.bool)
        with stream(x.device, setting.config["seed"], "validation", start):
            clean = referee(x, y, None, None, at=at, clean=all_right).robust
            bits["val_acc"] += clean
            right = _mask(clean, x)
            for name, row in rows.items():
                found = referee(x, y, row.plain, row.threat, at=at, clean=right)
                bits[name] += found.robust
    return {name: each.count("1") / size for name, each in bits.items()}


def _mask(bits: str, x: Tensor) -> Tensor:
    return torch.tensor([bit == "1" for bit in bits], device=x.device)

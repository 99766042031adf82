"""How the weights after an epoch do on the validation split."""

from collections.abc import Mapping
from functools import partial
from statistics import fmean

import torch
from torch import Tensor, nn

from advtrain.evaluation import Row, Subject, judge
from advtrain.exchange import of_all
from advtrain.plans import Validation
from advtrain.portions import Room
from advtrain.runs import Setting
from advtrain.seeding import stream
from advtrain.sharing import sharing
from advtrain.types import Defense
from advtrain.world import share

BATCH = 500


def validate(
    model: nn.Module,
    setting: Setting,
    validation: Validation,
    defense: Defense,
    room: Room | None = None,
) -> dict[str, float]:
    """Clean and adversarial accuracy on the validation split; the same draws at every epoch.

    The defense says what else the images are put through, by the metric that it gives, what attacks
    work on, and under which views: of several the mean is `val_acc` and so on, and each stands
    beside it as `val_acc[lambda=0.2]`. `room`: for how many images there is memory, as known.
    """
    room = Room() if room is None else room
    size = min(len(setting.data.validation), validation.size)
    if size == 0:
        return {}
    attacks = {"val_adv_acc": validation.attack, **defense.checks()}
    rows = {name: Row("validation", "validation", attack, {}) for name, attack in attacks.items()}

    def seen(network: nn.Module) -> dict[str, float]:
        return accuracies(Subject(network, defense.attacked(network), room), setting, rows, size)

    if not defense.views:
        return seen(model)
    found = {name: seen(view(model)) for name, view in defense.views.items()}
    metrics = ["val_acc", *rows]
    means = {metric: fmean(each[metric] for each in found.values()) for metric in metrics}
    return means | {
        f"{metric}[{name}]": value for name, each in found.items() for metric, value in each.items()
    }


def accuracies(
    subject: Subject, setting: Setting, rows: Mapping[str, Row], size: int
) -> dict[str, float]:
    """`val_acc`, and the accuracy in each of `rows`, on the first `size` validation images.

    Of several processes each judges its share.
    """
    right = dict.fromkeys(["val_acc", *rows], 0)
    referee, seed = partial(judge, subject, key="validation"), setting.config["seed"]
    for start in range(0, size, BATCH):
        x, y = setting.data.validation.batch(slice(start, min(start + BATCH, size)))
        images, part = len(y), share(len(y))
        x, y = x[part], y[part]
        at, all_right = tuple(range(len(y))), torch.ones_like(y, dtype=torch.bool)
        place = ("validation", start)
        with stream(x.device, seed, *place), sharing(images, x.device, seed, *place):
            clean = referee(x, y, None, None, at=at, clean=all_right).robust
            right["val_acc"] += clean.count("1")
            standing = _mask(clean, x)
            for name, row in rows.items():
                found = referee(x, y, row.plain, row.threat, at=at, clean=standing)
                right[name] += found.robust.count("1")
    parts = of_all(lambda: right)
    return {name: sum(each[name] for each in parts) / size for name in right}


def _mask(bits: str, x: Tensor) -> Tensor:
    return torch.tensor([bit == "1" for bit in bits], device=x.device)

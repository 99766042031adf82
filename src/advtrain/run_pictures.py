"""Adversarial examples of an evaluation, kept for the report in examples.npz."""

import numpy as np
import torch
from torch import Tensor

from advtrain.evaluation import Row, Show, Subject
from advtrain.files import write_atomic
from advtrain.modes import crafting
from advtrain.results import arguments, attack_name, unwrapped
from advtrain.runs import Setting

PICTURES = 8  # adversarial examples kept for the report


def keep_pictures(setting: Setting, subject: Subject, row: Row) -> Show | None:
    """Saves the first images of the last row that attacks with the training norm, and not in one
    step: in several, or exactly.
    """
    path = setting.directory / "examples.npz"
    norm = setting.build("threat").norm
    attack, _ = unwrapped(row.attack)
    fit = arguments(attack).get("steps") is not None or attack_name(attack) == "exact"
    if row.threat is None or row.threat.norm != norm or not fit:
        return None

    def show(x: Tensor, x_adv: Tensor, y: Tensor, adversarial: Tensor) -> None:
        with crafting(subject.model, "eval"), torch.no_grad():
            clean = subject.model(x[:PICTURES])
        arrays = {
            "clean": x,
            "adversarial": x_adv,
            "labels": y,
            "predicted_clean": clean.argmax(1),
            "predicted_adversarial": adversarial.argmax(1),
        }
        content = {name: value[:PICTURES].cpu().numpy() for name, value in arrays.items()}
        content |= {"row": np.array(row.name), "classes": np.array(setting.data.classes)}
        write_atomic(path, lambda stream: np.savez(stream, allow_pickle=False, **content))

    return show

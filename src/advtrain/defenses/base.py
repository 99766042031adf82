"""What defenses share: an empty state, cross-entropy, parcels, the attack of a moment."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from inspect import Parameter, signature
from typing import Any, NamedTuple

from torch import Tensor, nn

from advtrain.functional import cross_entropy
from advtrain.ranges import Decay
from advtrain.types import Attack, Moment, Rotation, TrainingAttack, View


@dataclass(kw_only=True)
class Defense:
    """The base of every method: crafts in evaluation mode, and keeps nothing between batches.

    A method defines `craft` and `loss` (types.Defense). One that offers the choice declares a
    field `craft_mode`, last. One that does not aim at robust accuracy is judged by `val_acc`.
    Every loss reports `acc`, the share of its inputs classified correctly: clean ones where it
    sees any (then `acc_adv` beside it), else those it trains on.
    `label_smoothing` is that of the cross-entropy in the loss, never of an attack.
    """

    label_smoothing: Decay = 0.0

    craft_mode = "eval"
    judged_by = "val_adv_acc"

    def ce(self, logits: Tensor, y: Tensor) -> Tensor:
        """Mean cross-entropy, with smoothed labels where the method was told so."""
        return cross_entropy(logits, y, self.label_smoothing).mean()

    @property
    def views(self) -> Mapping[str, View]:
        """What the network is validated through: itself, unless a method knows of others."""
        return {}

    def requires(self, model: nn.Module) -> None:
        """Raise ValueError if `model` cannot be trained so; asked once, before the first step."""

    def checks(self) -> Mapping[str, Attack]:
        """What else validation images are put through, by the metric that it gives."""
        return {}

    def attacked(self, model: nn.Module) -> nn.Module:
        """What the attack of a validation works on; the verdicts are of `model`."""
        return model

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to load."""


class Clean(NamedTuple):
    """Images (B, C, H, W) and labels (B,), as they come."""

    x: Tensor
    y: Tensor


class Pair(NamedTuple):
    """Images, their adversarial examples, and labels."""

    x: Tensor
    x_adv: Tensor
    y: Tensor


def accuracy(logits: Tensor, y: Tensor) -> Tensor:
    """The share of rows whose largest logit is at the label; a detached scalar."""
    return (logits.detach().argmax(1) == y).float().mean()


def warmed(attack: TrainingAttack, warmup: float, now: Moment) -> Attack:
    """The attack of this moment, at its radius: from 0 along the share `warmup` of a run.

    Radius and step size grow together, in a line. Short runs need it where the full radius keeps
    a network at chance from the start, as 0.3 on MNIST does. An attack without a set stays.
    """
    if isinstance(attack, Rotation):
        attack = attack.at(now)
    share = 1.0 if warmup == 0 else min(1.0, now.progress / warmup)
    if share == 1 or not isinstance(attack, partial) or "threat" not in attack.keywords:
        return attack
    changed = {
        "threat": replace(attack.keywords["threat"], eps=share * attack.keywords["threat"].eps)
    }
    if "step_size" in attack.keywords:
        changed["step_size"] = share * attack.keywords["step_size"]
    return partial(attack, **changed)


def require_guided(attack: TrainingAttack, defense: str) -> None:
    """Raise ValueError unless `attack` takes `objective=` and `start=` at the call."""
    for each in attack.members() if isinstance(attack, Rotation) else (attack,):
        missing = [name for name in ("objective", "start") if not _takes(each, name)]
        if missing:
            raise ValueError(
                f"{defense} chooses what its attack ascends and where it starts, and {_name(each)} "
                f"takes no {' and no '.join(missing)}. Use attack=pgd or attack=mim."
            )


def _name(attack: Attack) -> str:
    while isinstance(attack, partial):
        attack = attack.func
    return getattr(attack, "__name__", type(attack).__name__)


def _takes(attack: Attack, name: str) -> bool:
    parameters = signature(attack).parameters
    return name in parameters or any(
        each.kind is Parameter.VAR_KEYWORD for each in parameters.values()
    )

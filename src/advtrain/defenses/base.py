"""What defenses share: an empty state, parcels, the warm-up of the radius, small questions."""

from dataclasses import replace
from functools import partial
from inspect import Parameter, signature
from typing import Any, NamedTuple

from torch import Tensor

from advtrain.types import Attack, Moment


class Defense:
    """The base of every method: crafts in evaluation mode, and keeps nothing between batches.

    A method defines `craft` and `loss` (types.Defense). One that offers the choice declares a
    field `craft_mode`, last. One that does not aim at robust accuracy is judged by `val_acc`.
    Every loss reports `acc`, the share of its inputs classified correctly: clean ones where it
    sees any (then `acc_adv` beside it), else those it trains on.
    """

    craft_mode = "eval"
    judged_by = "val_adv_acc"

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


def warmed(attack: Attack, warmup: float, now: Moment) -> Attack:
    """`attack` at the radius of this moment: from 0 to its own along the share `warmup` of a run.

    Radius and step size grow together, in a line. Short runs need it where the full radius keeps
    a network at chance from the start, as 0.3 on MNIST does. An attack without a set stays.
    """
    share = 1.0 if warmup == 0 else min(1.0, now.progress / warmup)
    if share == 1 or not isinstance(attack, partial) or "threat" not in attack.keywords:
        return attack
    changed = {
        "threat": replace(attack.keywords["threat"], eps=share * attack.keywords["threat"].eps)
    }
    if "step_size" in attack.keywords:
        changed["step_size"] = share * attack.keywords["step_size"]
    return partial(attack, **changed)


def require_guided(attack: Attack, defense: str) -> None:
    """Raise ValueError unless `attack` takes `objective=` and `start=` at the call."""
    takes = signature(attack).parameters
    missing = [name for name in ("objective", "start") if name not in takes]
    if missing and all(p.kind is not Parameter.VAR_KEYWORD for p in takes.values()):
        raise ValueError(
            f"{defense} chooses what its attack ascends and where it starts, and this attack takes "
            f"no {' and no '.join(missing)}. Use attack=pgd or attack=mim."
        )

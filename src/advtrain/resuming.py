"""The state of a training out of a file, or a sentence why it is none.

The folder of a run may be of others, or its network's code another than before.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from advtrain.checkpoints import CheckpointError, restore, weights
from advtrain.foreign import brief, require_plain
from advtrain.machine import of_machine
from advtrain.portions import out_of_memory
from advtrain.rescue import Rescue

WRONG = (ValueError, TypeError, KeyError, AttributeError, IndexError, RuntimeError)
"""What comes of values that are of another kind or shape than is believed."""


@contextmanager
def understood(path: Path) -> Iterator[None]:
    """Errors inside are of what the checkpoint `path` holds: CheckpointError."""
    try:
        yield
    except CheckpointError:
        raise
    except WRONG as error:
        if of_machine(error) or out_of_memory(error):
            raise
        raise CheckpointError(
            f"{path} holds no state that this training could go on from "
            f"({type(error).__name__}: {brief(error)}). Put back a copy of it, or start again by "
            "resume=false."
        ) from error


def resume(rescue: Rescue, training: Any, path: Path) -> None:
    """Let training stand where the entry `training` of the checkpoint `path` left it.

    CheckpointError: it is of another network, or of no training.
    """
    with understood(path):
        require_plain(training, beside=(Tensor,), keys=(str, int))
        state = training["state"]
        _require_sound(state)
        restore(rescue.state.model, weights({"model": state["model"]}, path), path)
        rescue.load_state_dict(training)


def _require_sound(state: Mapping[str, Any]) -> None:
    """ValueError: a count is none, or what was measured of the steps no numbers."""
    meter = state["meter"]
    for name, count in (("step", state["step"]), ("examples", meter["examples"])):
        if type(count) is not int or count < 0:
            raise ValueError(f"{name} is no count")
    for name, logs in (("last", state["last"]), ("sums", meter["sums"])):
        if not all(isinstance(each, Tensor) for each in logs.values()):
            raise ValueError(f"{name} is no table of numbers")
    if type(meter["seconds"]) is not float:
        raise ValueError("seconds is no number")

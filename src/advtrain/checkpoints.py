"""Checkpoints: plain containers and tensors, written atomically, read without running anything.

`last.pt` and `best.pt` hold `model` (the weights that are judged), `epoch`, `config` and `data`
(what the network was built for); `last.pt` also holds `training`, all that resuming needs.
Files of other people may be a plain state dict, or hold one under an entry of WEIGHTS.
"""

import pickle
import warnings
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from advtrain.dense import require_dense
from advtrain.files import naming, write_atomic
from advtrain.foreign import SLACK, Refused, require_plain, require_stored
from advtrain.intact import damage
from advtrain.machine import of_machine
from advtrain.parts import within
from advtrain.portions import out_of_memory

WEIGHTS = ("model", "state_dict", "model_state_dict", "net")
PLAIN = ("config", "choices", "data", "judged_by", "scores")
"""Entries of ours beside tensors: values as YAML and JSON have them."""
PREFIXES = ("module.", "_orig_mod.")
COUNTER = "num_batches_tracked"  # of batch norm, which files of before torch 0.4.1 lack


class CheckpointError(ValueError):
    """A checkpoint is missing, damaged, or of another model; the message names the file."""


class Damaged(CheckpointError):
    """A checkpoint is there, but not as it was written; `why`: what shows it."""

    def __init__(self, message: str, why: str = "") -> None:
        super().__init__(message)
        self.why = why


def save(path: Path, content: Mapping[str, Any], *, kept: Path | None = None) -> None:
    """Write `content` so that `path` is at every moment a whole file, the old one or the new.

    `kept`: where the old one stays.
    """
    try:
        write_atomic(path, lambda stream: torch.save(dict(content), stream), kept=kept)
    except RuntimeError as error:  # torch tells where in the file it was, not of a full disk
        if isinstance(error.__context__, OSError):
            cause = error.__context__
            raise OSError(cause.errno, cause.strerror, str(path)) from error
        raise


def load(path: Path, key: str = "checkpoint") -> dict[str, Any]:
    """The content of a checkpoint, tensors on the CPU; nothing in the file is executed.

    CheckpointError: no such file, or one with more in it than weights; Damaged: one that is not as
    it was written. The message begins with `key`. OSError, MemoryError: the machine could not read
    it now, which says nothing of the file.
    """
    with naming(path):
        return _content(path, key)


def _content(path: Path, key: str) -> dict[str, Any]:
    if not path.is_file():
        raise CheckpointError(
            f"{key}={path}: there is no such file. Give a run directory, a checkpoint file of "
            "advtrain, or a state dict saved by torch.save."
        )
    if why := damage(path):
        raise Damaged(f"{key}={path} is damaged: {why}.", why)
    try:
        require_stored(path)
        with warnings.catch_warnings(action="ignore"):  # torch's own words on foreign objects
            content = torch.load(path, map_location="cpu", weights_only=True)
        require_dense(content, path.stat().st_size + SLACK)
        if isinstance(content, Mapping):
            require_plain([content.get(key) for key in PLAIN])
    except Refused as error:
        raise CheckpointError(f"{key}={path} is not opened: {error}.") from error
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{key}={path} is damaged, or holds objects beside weights and plain values, and "
            "is not opened: they could run code. Save model.state_dict() alone and give that file."
        ) from error
    except Exception as error:  # a damaged file fails in any way, deep inside the reader
        if of_machine(error) or out_of_memory(error):
            raise
        why = "it is no whole file of torch.save"
        raise Damaged(f"{key}={path} is damaged or no checkpoint at all.", why) from error
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{key}={path} holds a {type(content).__name__}, not a state dict.")
    return dict(content)


def locate(given: str) -> Path:
    """The file meant by `checkpoint=`: the file itself, or best.pt (else last.pt) of a run."""
    path = Path(given)
    if not path.is_dir():
        return path
    candidates = [
        directory / name
        for directory in (path / "checkpoints", path)
        for name in ("best.pt", "last.pt")
    ]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise CheckpointError(f"checkpoint={given}: no best.pt or last.pt in that directory.")


def weights(content: Mapping[str, Any], path: Path, key: str = "checkpoint") -> dict[str, Tensor]:
    """The state dict inside a checkpoint, of ours or of others; known prefixes are taken off."""
    inner: Any = next(
        (content[key] for key in WEIGHTS if isinstance(content.get(key), Mapping)), content
    )
    tensors = {
        name: value
        for name, value in inner.items()
        if isinstance(value, Tensor) and isinstance(name, str)
    }
    if not tensors or len(tensors) < len(inner):
        entries = _few([ascii(name)[:60] for name in content])
        raise CheckpointError(f"{key}={path} holds no state dict: its entries are {entries}.")
    for prefix in PREFIXES:
        if all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
    return tensors


def load_weights(model: nn.Module, path: Path, fresh: Collection[str] = ()) -> None:
    """Put the weights of a checkpoint into `model`; CheckpointError tells what does not fit."""
    restore(model, weights(load(path), path), path, fresh)


def restore(
    model: nn.Module,
    tensors: Mapping[str, Tensor],
    path: Path,
    fresh: Collection[str] = (),
    key: str = "checkpoint",
) -> None:
    """Put `tensors` into `model`, which must have the same; counters of batches may be missing.

    The parts `fresh` stay as they are, and may be of any size.
    """
    own = {name: value for name, value in model.state_dict().items() if not within(name, fresh)}
    counters = {name: own[name] for name in own if name.endswith(COUNTER)}
    tensors = counters | {name: v for name, v in tensors.items() if not within(name, fresh)}
    missing = [name for name in own if name not in tensors]
    foreign = [name for name in tensors if name not in own]
    shapes = [
        f"{name} is {tuple(tensors[name].shape)} there and {tuple(own[name].shape)} here"
        for name in own
        if name in tensors and tensors[name].shape != own[name].shape
    ]
    if missing or foreign or shapes:
        told = [
            *(["it lacks " + _few(missing)] if missing else []),
            *(["it has in addition " + _few(foreign)] if foreign else []),
            *([_few(shapes)] if shapes else []),
        ]
        part = shapes[0].partition(" ")[0].rpartition(".")[0] if len(told) == 1 and shapes else ""
        rest = f" Training may start from the rest of it: fresh=[{part}]." if part else ""
        raise CheckpointError(
            f"{key}={path} is of another model than this {type(model).__name__}: "
            f"{'; '.join(told)}. Choose the model= that was saved, or model=custom with "
            f"model.factory=pkg.module.fn.{rest}"
        )
    model.load_state_dict(tensors, strict=not fresh)


def _few(names: list[str]) -> str:
    shown = [name if name.isprintable() else ascii(name) for name in names[:3]]
    return ", ".join(name[:120] for name in shown) + (
        f" and {len(names) - 3} more" if len(names) > 3 else ""
    )

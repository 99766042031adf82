"""Which jobs of a grid a folder holds already, and how far each has come.

A job is known by its identity, a fingerprint of its configuration, and not by its number: a grid
that is given again with more seeds finds the old ones where they are.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from advtrain import inert, status
from advtrain.config import ConfigError, uniform
from advtrain.fingerprints import fingerprint
from advtrain.foreign import MAX_RESULTS, read_json
from advtrain.lock import locked

VERSION = "2"
"""Of how identities are made: a folder with those of another version is not gone on with."""
BEGINNING = 60.0  # seconds that a process may take until its job leaves a trace
TRACES = (status.FILE, "results.json", "metrics.jsonl", "checkpoints")
SILENT = (
    "the process ended without a word: it was killed, perhaps because memory ran out, or it "
    "crashed. The same command with the same hydra.sweep.dir goes on from what was saved."
)


@dataclass(frozen=True)
class Place:
    """A job in its folder. `state`: as in status.json, `done` only where its results are there."""

    folder: Path
    state: str
    error: str | None


def identity(config: Mapping[str, Any], choices: Mapping[str, str | None]) -> str:
    """The name of a job: equal for plain configurations, and choices, that compute the same.

    A plan has the name of the job that is planned.
    """
    if config.get("job") == "plan":
        config = {**config, "job": config["plan"]["job"]}
    kept = inert.without(uniform(config))
    if "root" in kept["dataset"]:
        kept["dataset"]["root"] = str(Path(str(kept["dataset"]["root"])).expanduser().absolute())
    named = {group: option for group, option in choices.items() if group != "logger"}
    return f"{VERSION}-{fingerprint(kept, named)}"


def survey(sweep: Path) -> dict[str, Place]:
    """The jobs in the folder of a grid, by identity.

    ConfigError: it holds results that are not of a grid of this version; nothing was touched.
    """
    if (sweep / status.FILE).exists():
        raise ConfigError(
            f"hydra.sweep.dir={sweep} is the folder of a single run; choose another for the grid."
        )
    folders = sorted(path for path in sweep.glob("[!.]*") if path.is_dir())
    traced = [path for path in folders if any((path / name).exists() for name in TRACES)]
    return {_identity(sweep, folder): _place(folder) for folder in traced}


def close(sweep: Path) -> None:
    """Record as failed what a dead process has left as running."""
    for folder in (path.parent for path in sweep.glob(f"*/{status.FILE}")):
        if status.read(folder).get("state") == "running" and _is_free(folder):
            status.write(folder, "failed", SILENT, exit_code=1)


def await_others(folders: Sequence[Path]) -> None:
    """Wait while a job is at work in one of them, or may still begin."""
    seen = time.monotonic()
    while time.monotonic() - seen < BEGINNING:
        states = {folder: status.read(folder).get("state") for folder in folders}
        at_work = [f for f, state in states.items() if state == "running" and not _is_free(f)]
        if not at_work and all(states.values()):
            return
        seen = time.monotonic() if at_work else seen
        time.sleep(0.5)


def codes(sweep: Path) -> list[int]:
    """The exit code of each job that was begun."""
    found = [status.read(path.parent) for path in sweep.glob(f"*/{status.FILE}")]
    return [0 if each.get("state") == "done" else _code(each.get("exit_code")) for each in found]


def _code(told: Any) -> int:
    """The exit code of a job that is not done: 1 where its status tells none, or what is none."""
    return told if type(told) is int and told else 1


def _identity(sweep: Path, folder: Path) -> str:
    from advtrain.reporting.reading import SCHEMA  # the command starts without it

    known = status.read(folder)
    if not known:
        what = "cannot be read" if (folder / status.FILE).exists() else "is missing"
        why = f"its {status.FILE} {what}"
    elif not str(known.get("identity")).startswith(f"{VERSION}-"):
        why = f"its {status.FILE} is of no grid, or of an older advtrain"
    elif (schema := _results(folder).get("schema", SCHEMA)) != SCHEMA:
        why = f"its results.json has schema {schema}, this advtrain writes {SCHEMA}"
    else:
        return str(known["identity"])
    raise ConfigError(
        f"hydra.sweep.dir={sweep}: {folder.name}/ holds results that cannot be gone on with ({why})"
        "; move it away, or choose another folder."
    )


def _place(folder: Path) -> Place:
    known = status.read(folder)
    state, error = str(known.get("state")), known.get("error")
    config = known.get("config")
    config = config if isinstance(config, Mapping) else {}
    evaluated = config.get("job") != "train" and config.get("eval")
    if state == "done" and evaluated and not _results(folder):
        state, error = "interrupted", "its results.json cannot be read"
    if state == "done" and _is_stale(folder, config.get("checkpoint")):
        state, error = "interrupted", "its checkpoint= is newer than its results"
    return Place(folder, state, error)


def _results(folder: Path) -> Mapping[str, Any]:
    try:
        content = read_json(folder / "results.json", MAX_RESULTS)
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _is_stale(folder: Path, checkpoint: Any) -> bool:
    """Whether the checkpoint that the job judged, or began with, has changed since."""
    if not isinstance(checkpoint, str):
        return False
    path = Path(checkpoint)
    file = path / "checkpoints" / "best.pt" if path.is_dir() else path
    return file.exists() and file.stat().st_mtime > (folder / status.FILE).stat().st_mtime


def _is_free(folder: Path) -> bool:
    """Whether no process is at work there."""
    try:
        with locked(folder / ".lock", wait=0):
            return True
    except OSError:
        return False

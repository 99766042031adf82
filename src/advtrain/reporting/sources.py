"""What the arguments of a report hold: runs, certification logs, and what is left out."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from advtrain.reporting.logs import kind
from advtrain.reporting.reading import find_runs
from advtrain.reporting.values import shown

MAX_FILES = 20_000
DEPTH = 8
SHOWN = 4
REASONS = {
    "predict": "PREDICT's columns, answers without radii",
    "similar": "the columns are not those of a certification log",
}


@dataclass(frozen=True)
class Sources:
    """Folders of runs and log files, resolved, in order; a sentence for each file left out."""

    runs: tuple[Path, ...]
    logs: tuple[Path, ...]
    left_out: tuple[str, ...]


def find(paths: Sequence[Path]) -> Sources:
    """Every run and every certification log in or below `paths`; a log inside a run is the run's.

    FileNotFoundError: a path does not exist. ValueError: nothing is found.
    """
    runs = tuple(find_runs([path for path in paths if not path.is_file()]))
    logs: dict[Path, None] = {}
    others: dict[str, list[Path]] = {"predict": [], "similar": []}
    for path in paths:
        if path.is_file():
            logs[path.resolve()] = None  # whatever it is, reading it tells
            continue
        for file in _files(path, DEPTH):
            what = kind(file)
            if what == "certify":
                logs[file.resolve()] = None
            elif what:
                others[what].append(file)
    left_out = [_told(files, REASONS[what]) for what, files in others.items() if files]
    if not runs and not logs:
        places = ", ".join(str(path) for path in paths)
        raise ValueError(
            f"No runs in {places}: no folder there holds results.json or status.json, and no file "
            f"is a certification log. {' '.join(left_out[:1])} Give the directory of a run or of a "
            "grid, as outputs/multirun/2026-01-31_12-00-00, or a log."
        )
    return Sources(runs, tuple(logs), tuple(left_out))


def _told(files: Sequence[Path], reason: str) -> str:
    named = ", ".join(shown(file) for file in files[:SHOWN])
    more = f" and {len(files) - SHOWN} more" if len(files) > SHOWN else ""
    return f"Left out: {named}{more}: {reason}."


def _files(folder: Path, depth: int, budget: list[int] | None = None) -> Iterator[Path]:
    """Files of folders that are no run, in order; links and hidden ones are passed by."""
    budget = budget if budget is not None else [MAX_FILES]
    if (folder / "results.json").is_file() or (folder / "status.json").is_file():
        return
    for entry in sorted(_entries(folder)):
        if entry.name.startswith(".") or entry.is_symlink():
            continue
        if entry.is_dir() and depth and entry.name not in ("wandb", "checkpoints"):
            yield from _files(entry, depth - 1, budget)
        elif entry.is_file() and budget[0] > 0:
            budget[0] -= 1
            yield entry


def _entries(folder: Path) -> Iterable[Path]:
    try:
        return list(folder.iterdir())
    except PermissionError:
        return ()

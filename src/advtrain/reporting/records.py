"""What a run directory says, read with distrust: a damaged file becomes a note, never a crash.

Only files within the bounds below are read, and only values of the expected kind are kept, so
everything behind this module may rely on the types.
"""

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SCHEMA = 1
MAX_BYTES = {"results.json": 32 << 20, "status.json": 8 << 20, "metrics.jsonl": 64 << 20}
MAX_ROWS = 2_000
MAX_EPOCHS = 20_000
MAX_RUNS = 5_000
MAX_TEXT = 400
UNFINISHED = ("running", "failed", "interrupted", "invalid", "unreadable")


@dataclass(frozen=True)
class Row:
    """One accuracy, a fraction of `n` examples; None stands for what was not told."""

    name: str
    view: str
    accuracy: float
    n: int | None = None
    low: float | None = None
    high: float | None = None
    norm: str | None = None
    eps: float | None = None
    steps: int | None = None
    restarts: int | None = None
    forward_passes: int | None = None
    backward_passes: int | None = None
    seconds: float | None = None
    attack: str = ""
    selected_on: str = ""


@dataclass(frozen=True)
class Certified:
    """What smoothing certified; `at_radius` maps a radius to the accuracy proven there."""

    accuracy: float | None
    acr: float | None
    at_radius: dict[float, float]
    sigma: float | None = None
    n0: int | None = None
    n: int | None = None
    alpha: float | None = None
    examples: int | None = None
    abstain: float | None = None


@dataclass(frozen=True)
class Note:
    """A warning: what raised it, the row and view that it concerns (or None), what it says."""

    check: str
    row: str | None
    message: str
    view: str | None = None


@dataclass(frozen=True)
class Run:
    """One run directory. `state` is done, running, failed, interrupted, invalid or unreadable."""

    directory: Path
    name: str
    state: str
    error: str = ""
    seed: int | None = None
    dataset: str = ""
    split: str = ""
    model: str = ""
    parameters: int | None = None
    defense: str = ""
    norm: str = ""
    eps: float | None = None
    checkpoint: str = ""
    selected_on: str = ""
    rows: tuple[Row, ...] = ()
    worst_case: dict[str, float] = field(default_factory=dict)
    certified: Certified | None = None
    notes: tuple[Note, ...] = ()
    published: dict[str, float] = field(default_factory=dict)
    choices: dict[str, str] = field(default_factory=dict)
    overrides: tuple[str, ...] = ()
    config: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    seconds: float | None = None

    @property
    def views(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(row.view for row in self.rows))


def find_runs(paths: Iterable[Path]) -> list[Path]:
    """Every folder in or below `paths` that holds results.json or status.json, once, in order.

    Raises FileNotFoundError or NotADirectoryError for a path that is no folder.
    """
    found: dict[Path, None] = {}
    for path in paths:
        if not path.exists():
            raise FileNotFoundError(f"{path} does not exist; give run or sweep directories.")
        if not path.is_dir():
            raise NotADirectoryError(f"{path} is a file; give the run directory that holds it.")
        for directory in _walk(path, depth=8):
            found[directory.resolve()] = None
            if len(found) >= MAX_RUNS:
                return list(found)
    return list(found)


def _walk(path: Path, depth: int) -> Iterator[Path]:
    if (path / "results.json").is_file() or (path / "status.json").is_file():
        yield path
        return
    try:
        below = [p for p in path.iterdir() if p.is_dir() and not p.is_symlink()]
    except PermissionError:
        return
    for child in sorted(below, key=lambda p: (not p.name.isdigit(), p.name.zfill(12))):
        if depth and not child.name.startswith(".") and child.name not in ("wandb", "checkpoints"):
            yield from _walk(child, depth - 1)


def read_run(directory: Path) -> Run:
    """All that `directory` says about its run; what cannot be read is told in `notes`."""
    results, trouble = _read_object(directory / "results.json")
    status, status_trouble = _read_object(directory / "status.json")
    notes = [Note("unreadable", None, text) for text in (trouble, status_trouble) if text]
    schema = results.get("schema")
    if results and schema != SCHEMA:
        said = f"results.json has schema {_text(schema)}, this program writes {SCHEMA}"
        notes.append(Note("schema", None, f"{said}; shown as far as it is understood."))
    rows, broken = _rows(results.get("rows"))
    if broken:
        notes.append(Note("unreadable", None, f"{broken} row(s) of results.json make no sense."))
    notes += _notes(results.get("warnings"))
    dataset, model = _named(results.get("dataset")), _named(results.get("model"))
    threat = _named(results.get("threat"))
    choices = _texts(status.get("choices")) | _texts(results.get("choices"))
    config = _mapping(results.get("config")) or _mapping(status.get("config"))
    certified = results.get("certified")
    return Run(
        directory=directory,
        name=_text(results.get("name")) or directory.name,
        state=_state(status, results, trouble),
        error=_text(status.get("error")) or trouble,
        seed=_integer(results.get("seed", config.get("seed"))),
        dataset=_text(dataset.get("name")) or choices.get("dataset", ""),
        split=_text(dataset.get("split")),
        model=_text(model.get("name")) or choices.get("model", ""),
        parameters=_integer(model.get("parameters")),
        defense=_text(results.get("defense")) or choices.get("defense", ""),
        norm=_text(threat.get("norm") or threat.get("name")),
        eps=_number(threat.get("eps")),
        checkpoint=_text(results.get("checkpoint")),
        selected_on=_text(results.get("selected_on")),
        rows=rows,
        worst_case=_fractions(results.get("worst_case")),
        certified=_certified(certified) if isinstance(certified, Mapping) else None,
        notes=tuple(notes),
        published={
            k: float(v) for k, v in _mapping(results.get("published")).items() if _is_real(v)
        },
        choices=choices,
        overrides=tuple(_text(word) for word in _list(status.get("overrides"))),
        config=config,
        environment=_texts(results.get("environment")),
        seconds=_number(results.get("seconds")),
    )


def read_metrics(directory: Path) -> list[dict[str, float]]:
    """The numbers of each epoch in `metrics.jsonl`; lines that are damaged are left out.

    An epoch that was repeated after a resume counts once, as it was written last.
    """
    path = directory / "metrics.jsonl"
    epochs: dict[float, dict[str, float]] = {}
    if not path.is_file() or path.stat().st_size > MAX_BYTES["metrics.jsonl"]:
        return []
    with path.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            try:
                entry = json.loads(line)
            except (ValueError, RecursionError):
                continue
            numbers = {k: float(v) for k, v in _mapping(entry).items() if _is_real(v)}
            if math.isfinite(numbers.get("epoch", math.nan)) and len(epochs) < MAX_EPOCHS:
                epochs[numbers["epoch"]] = numbers
    return [epochs[index] for index in sorted(epochs)]


def _read_object(path: Path) -> tuple[dict[str, Any], str]:
    """The object in a JSON file and "", or {} and why not; a file that is absent is just {}."""
    try:
        if not path.is_file():
            return {}, ""
        if path.stat().st_size > MAX_BYTES[path.name]:
            return {}, f"{path.name} is larger than {MAX_BYTES[path.name] >> 20} MiB, not read."
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        return {}, f"{path.name} cannot be read: {error.strerror}."
    except (ValueError, RecursionError):
        return {}, f"{path.name} is damaged: it is no JSON."
    if not isinstance(value, dict):
        return {}, f"{path.name} was written by something else: it holds no object."
    if path.name == "results.json" and not isinstance(value.get("rows"), list):
        return value, "results.json was written by something else: it has no list of rows."
    return value, ""


def _state(status: Mapping[str, Any], results: Mapping[str, Any], trouble: str) -> str:
    if trouble:
        return "unreadable"
    state = _text(status.get("state"))
    return state if state in UNFINISHED else "done"


def _rows(value: Any) -> tuple[tuple[Row, ...], int]:
    rows, broken = [], 0
    for entry in _list(value)[:MAX_ROWS]:
        row = _mapping(entry)
        accuracy = _fraction(row.get("accuracy"))
        if accuracy is None or not _text(row.get("name")):
            broken += 1
            continue
        low, high = [_fraction(end) for end in [*_list(row.get("ci95")), None, None][:2]]
        rows.append(
            Row(
                name=_text(row["name"]),
                view=_text(row.get("view")) or "identity",
                accuracy=accuracy,
                n=_integer(row.get("n")),
                low=low if high is not None else None,
                high=high if low is not None else None,
                norm=_text(row.get("norm")) or None,
                eps=_number(row.get("eps")),
                steps=_integer(row.get("steps")),
                restarts=_integer(row.get("restarts")),
                forward_passes=_integer(row.get("forward_passes")),
                backward_passes=_integer(row.get("backward_passes")),
                seconds=_number(row.get("seconds")),
                attack=_text(row.get("attack")),
                selected_on=_text(row.get("selected_on")),
            )
        )
    return tuple(rows), broken + max(0, len(_list(value)) - MAX_ROWS)


def _certified(value: Mapping[str, Any]) -> Certified:
    radii: dict[float, float] = {}
    for key, accuracy in _fractions(value.get("accuracy_at_radius")).items():
        try:
            radii[float(key)] = accuracy
        except ValueError:
            continue
    return Certified(
        accuracy=_fraction(value.get("accuracy")),
        acr=_number(value.get("acr")),
        at_radius={r: radii[r] for r in sorted(radii) if math.isfinite(r)},
        sigma=_number(value.get("sigma")),
        n0=_integer(value.get("n0")),
        n=_integer(value.get("n")),
        alpha=_number(value.get("alpha")),
        examples=_integer(value.get("examples")),
        abstain=_number(value.get("abstain")),
    )


def _notes(value: Any) -> list[Note]:
    entries = [_mapping(entry) for entry in _list(value)[:MAX_ROWS]]
    return [
        Note(
            check=_text(e.get("check")),
            row=_text(e.get("row")) or None,
            message=_text(e.get("message")),
            view=_text(e.get("view")) or None,
        )
        for e in entries
        if e.get("message")
    ]


def _named(value: Any) -> dict[str, Any]:
    return {"name": value} if isinstance(value, str) else _mapping(value)


def _mapping(value: Any) -> dict[str, Any]:
    return {str(k): v for k, v in value.items()} if isinstance(value, Mapping) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _texts(value: Any) -> dict[str, str]:
    return {key: _text(entry) for key, entry in _mapping(value).items() if entry is not None}


def _text(value: Any) -> str:
    """One bounded line, without control characters; what is no scalar is no text."""
    if value is None or isinstance(value, Mapping | list):
        return ""
    line = " ".join(str(value).split())
    line = "".join(letter if letter.isprintable() else "?" for letter in line)
    return line if len(line) <= MAX_TEXT else f"{line[: MAX_TEXT - 1]}…"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_real(value: Any) -> bool:
    """A number that a float holds; nan and inf are, since a loss may be."""
    return _is_number(value) and not 1e300 < abs(value) < math.inf


def _number(value: Any) -> float | None:
    return float(value) if _is_number(value) and abs(value) < 1e300 else None


def _integer(value: Any) -> int | None:
    number = _number(value)
    return int(number) if number is not None and number == int(number) else None


def _fraction(value: Any) -> float | None:
    number = _number(value)
    return number if number is not None and 0 <= number <= 1 else None


def _fractions(value: Any) -> dict[str, float]:
    known = {key: _fraction(entry) for key, entry in _mapping(value).items()}
    return {key: entry for key, entry in known.items() if entry is not None}

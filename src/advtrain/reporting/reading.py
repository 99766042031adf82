"""What a run directory says, read with distrust: a damaged file becomes a note, never a crash.

Only files within the bounds below are read, and only values of the expected kind are kept, so
everything behind this module may rely on the types.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from advtrain.foreign import MAX_RESULTS, MAX_STATUS, MEMBERS, Refused, parsed, read_json
from advtrain.reporting import values
from advtrain.reporting.reading_proofs import certified, exact, study
from advtrain.reporting.records import Draws, Note, Paper, Row, Run, Stage

SCHEMA = 1
MAX_BYTES = {
    "results.json": MAX_RESULTS,
    "status.json": MAX_STATUS,
    "metrics.jsonl": 64 << 20,
}
MAX_ROWS = 2_000
MAX_EPOCHS = 20_000
MAX_LINES = 10 * MAX_EPOCHS  # of metrics.jsonl; an epoch may be told again after each resume
MAX_RUNS = 5_000
MAX_STAGES = 100
MAX_CLASSES = 100
MAX_COMMAND = 20_000  # characters
UNFINISHED = ("running", "failed", "interrupted", "invalid", "unreadable")


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
        said = f"results.json has schema {values.text(schema)}, this program writes {SCHEMA}"
        notes.append(Note("schema", None, f"{said}; shown as far as it is understood."))
    rows, broken = _rows(results.get("rows"))
    if broken:
        notes.append(Note("unreadable", None, f"{broken} row(s) of results.json make no sense."))
    notes += _notes(results.get("warnings"))
    dataset, model = values.named(results.get("dataset")), values.named(results.get("model"))
    threat = values.named(results.get("threat"))
    choices = values.texts(status.get("choices")) | values.texts(results.get("choices"))
    config = values.clean(results.get("config")) or values.clean(status.get("config"))
    return Run(
        directory=directory,
        name=values.text(results.get("name")) or values.text(directory.name),
        state=_state(status, results, trouble),
        error=values.text(status.get("error")) or trouble,
        seed=values.integer(results.get("seed", config.get("seed"))),
        dataset=values.text(dataset.get("name")) or choices.get("dataset", ""),
        split=values.text(dataset.get("split")),
        examples=values.text(dataset.get("examples")),
        model=values.text(model.get("name")) or choices.get("model", ""),
        parameters=values.integer(model.get("parameters")),
        defense=values.text(results.get("defense")) or choices.get("defense", ""),
        norm=values.text(threat.get("norm") or threat.get("name")),
        eps=values.number(threat.get("eps")),
        checkpoint=values.text(results.get("checkpoint")),
        selected_on=values.text(results.get("selected_on")),
        train_acc=values.fraction(values.mapping(results.get("training")).get("train_acc")),
        train_images=values.integer(dataset.get("train_images")),
        rows=rows,
        worst_case=values.fractions(results.get("worst_case")),
        certified=certified(results.get("certified")),
        study=study(results.get("predict_study")),
        exact=exact(results.get("exact")),
        worst_by_view={
            view: values.fractions(worst)
            for view, worst in values.mapping(results.get("worst_case_by_view")).items()
        },
        notes=tuple(notes),
        published={
            k: float(v)
            for k, v in values.mapping(results.get("published", config.get("published"))).items()
            if values.is_real(v)
        },
        paper=_paper(values.mapping(config.get("paper"))),
        choices=choices,
        overrides=tuple(values.text(word) for word in values.items(status.get("overrides"))),
        arguments=_arguments(status),
        config=config,
        environment=values.texts(results.get("environment")),
        seconds=values.number(results.get("seconds")),
    )


def _arguments(status: Mapping[str, Any]) -> tuple[str, ...] | None:
    given, folder = status.get("overrides"), status.get("config_dir")
    if not isinstance(given, list):
        return None
    words = [*(["--config-dir", folder] if folder is not None else []), *given]
    plain = all(isinstance(word, str) and word.isprintable() for word in words)
    return tuple(words) if plain and sum(map(len, words)) <= MAX_COMMAND else None


def read_metrics(directory: Path) -> list[dict[str, float]]:
    """The numbers of each epoch in `metrics.jsonl`; lines that are damaged are left out.

    An epoch that was repeated after a resume counts once, as it was written last.
    """
    path = directory / "metrics.jsonl"
    epochs: dict[float, dict[str, float]] = {}
    taken = 0
    if not path.is_file() or path.stat().st_size > MAX_BYTES["metrics.jsonl"]:
        return []
    with path.open("rb") as lines:
        for line in islice(lines, MAX_LINES):
            try:
                entry = parsed(line)
            except ValueError:
                continue
            numbers = {k: float(v) for k, v in values.mapping(entry).items() if values.is_real(v)}
            taken += len(numbers)
            if taken > MEMBERS:
                break
            if math.isfinite(numbers.get("epoch", math.nan)) and len(epochs) < MAX_EPOCHS:
                epochs[numbers["epoch"]] = numbers
    return [epochs[index] for index in sorted(epochs)]


def _read_object(path: Path) -> tuple[dict[str, Any], str]:
    """The object in a JSON file and "", or {} and why not; a file that is absent is just {}."""
    try:
        if not path.is_file():
            return {}, ""
        value = read_json(path, MAX_BYTES[path.name])
    except OSError as error:
        return {}, f"{path.name} cannot be read: {error.strerror}."
    except Refused as error:
        return {}, f"{path.name} is refused: {error}."
    except ValueError:
        return {}, f"{path.name} is damaged: it is no JSON."
    if not isinstance(value, dict):
        return {}, f"{path.name} was written by something else: it holds no object."
    if path.name == "results.json" and not isinstance(value.get("rows"), list):
        return value, "results.json was written by something else: it has no list of rows."
    return value, ""


def _state(status: Mapping[str, Any], results: Mapping[str, Any], trouble: str) -> str:
    if trouble:
        return "unreadable"
    state = values.text(status.get("state"))
    return state if state in UNFINISHED else "done"


def _rows(value: Any) -> tuple[tuple[Row, ...], int]:
    rows, broken = [], 0
    for entry in values.items(value)[:MAX_ROWS]:
        row = values.mapping(entry)
        accuracy = values.fraction(row.get("accuracy"))
        if accuracy is None or not values.text(row.get("name")):
            broken += 1
            continue
        low, high = [
            values.fraction(end) for end in [*values.items(row.get("ci95")), None, None][:2]
        ]
        rows.append(
            Row(
                name=values.text(row["name"]),
                view=values.text(row.get("view")) or "identity",
                accuracy=accuracy,
                n=values.integer(row.get("n")),
                low=low if high is not None else None,
                high=high if low is not None else None,
                norm=values.text(row.get("norm")) or None,
                eps=values.number(row.get("eps")),
                steps=values.integer(row.get("steps")),
                restarts=values.integer(row.get("restarts")),
                version=values.text(row.get("version")),
                queries=values.integer(row.get("queries")),
                forward_passes=values.integer(row.get("forward_passes")),
                backward_passes=values.integer(row.get("backward_passes")),
                seconds=values.number(row.get("seconds")),
                attack=values.text(row.get("attack")),
                step_size=values.number(row.get("step_size")),
                keep=values.text(row.get("keep")),
                loss=values.text(row.get("loss")),
                objective=values.text(row.get("objective")),
                start=values.text(row.get("start")),
                configuration=values.text(row.get("configuration")),
                selected_on=values.text(row.get("selected_on")),
                stages=_stages(row.get("stages")),
                standing=_standing(row.get("robust"), accuracy),
                through=values.text(row.get("through")),
                draws=_draws(values.mapping(row.get("draws"))),
                confusion=_confusion(row.get("confusion")),
            )
        )
    return tuple(rows), broken + max(0, len(values.items(value)) - MAX_ROWS)


def _stages(value: Any) -> tuple[Stage, ...]:
    stages = []
    for entry in values.items(value)[:MAX_STAGES]:
        stage = values.mapping(entry)
        name, accuracy = values.text(stage.get("name")), values.fraction(stage.get("accuracy"))
        if name and accuracy is not None:
            stages.append(
                Stage(
                    name=name,
                    accuracy=accuracy,
                    n=values.integer(stage.get("n")),
                    forward_passes=values.integer(stage.get("forward_passes")),
                    backward_passes=values.integer(stage.get("backward_passes")),
                    seconds=values.number(stage.get("seconds")),
                )
            )
    return tuple(stages)


def _draws(value: Mapping[str, Any]) -> Draws | None:
    n, mean = values.integer(value.get("n")), values.fraction(value.get("mean"))
    return None if n is None or mean is None else Draws(n, mean, values.number(value.get("sd")))


def _confusion(value: Any) -> tuple[tuple[int, ...], ...]:
    """A square of counts, or nothing."""
    table = values.items(value)
    counts = [[values.integer(count) for count in values.items(line)] for line in table]
    square = len(table) <= MAX_CLASSES and all(len(line) == len(table) for line in counts)
    known = [[each for each in line if each is not None and each >= 0] for line in counts]
    return tuple(map(tuple, known)) if square and known == counts else ()


def _paper(value: Mapping[str, Any]) -> Paper:
    remarks = values.mapping(value.get("remarks"))
    return Paper(
        source=values.text(value.get("source")),
        setting=values.texts(value.get("setting")),
        given=tuple(map(values.text, values.items(value.get("given")))),
        remarks={key: tuple(map(values.text, values.items(v))) for key, v in remarks.items()},
    )


def _standing(value: Any, accuracy: float) -> str:
    if not isinstance(value, str) or not value or value.strip("01"):
        return ""
    return value if abs(value.count("1") / len(value) - accuracy) < 1e-6 else ""


def _notes(value: Any) -> list[Note]:
    entries = [values.mapping(entry) for entry in values.items(value)[:MAX_ROWS]]
    return [
        Note(
            check=values.text(e.get("check")),
            row=values.text(e.get("row")) or None,
            message=values.text(e.get("message")),
            view=values.text(e.get("view")) or None,
        )
        for e in entries
        if e.get("message")
    ]

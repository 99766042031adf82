"""What jobs leave, held against each other: what is finished, and what came out otherwise."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

APPENDED = ("verdicts.jsonl", "certify.tsv", "draws.tsv", "soundness.tsv")


def finished(folder: Path, damaged: Path | None = None) -> set[tuple[str, str]]:
    """What is done, line by line with the seconds that it took: verdicts, certificates, epochs.

    Without the last epoch where its checkpoint is `damaged`.
    """
    found = set()
    for name in (*APPENDED, "metrics.jsonl"):
        for path in folder.rglob(name):
            lines = path.read_bytes().split(b"\n")[:-1]  # of the last nothing, or a part
            run = path.parent
            if name == "metrics.jsonl" and damaged == run / "checkpoints" / "last.pt":
                lines = lines[:-1]
            told = [line.decode(errors="replace") for line in lines]
            found |= {(str(path.relative_to(folder)), line) for line in told}
    return found


def differences(whole: Path, other: Path) -> Iterator[str]:
    """What is not as it is in the undisturbed folder, in words; times are passed by."""
    for path in sorted(whole.rglob("status.json")):
        run, there = path.parent, other / path.parent.relative_to(whole)
        if not (there / "status.json").exists():
            yield f"{there}: no status"
            continue
        state = json.loads((there / "status.json").read_text())["state"]
        if state != "done":
            yield f"{there}: {state}"
        for name in ("last", "best"):
            yield from _of_checkpoints(run, there, f"checkpoints/{name}.pt")
        yield from _of_texts(run, there)
    for name in ("table.md", "table.tex", "table.csv"):
        for path in sorted(whole.rglob(name)):
            there = other / path.relative_to(whole)
            if not there.exists() or _named(path, whole) != _named(there, other):
                yield f"{there} is another"
    if left := [*other.rglob(".*.tmp")]:
        yield f"left behind: {left}"


def _of_checkpoints(run: Path, there: Path, name: str) -> Iterator[str]:
    if (run / name).exists():
        a, b = (torch.load(each / name, weights_only=True) for each in (run, there))
        if not same(a, b):
            yield f"{there / name} is another"


def _of_texts(run: Path, there: Path) -> Iterator[str]:
    for name in ("results.json", "metrics.jsonl", *APPENDED):
        if (run / name).exists() and _content(run / name) != _content(there / name):
            yield f"{there / name} is another"


def _content(path: Path) -> Any:
    """What a file says, without times."""
    if path.suffix == ".tsv":
        lines = [line.split("\t") for line in path.read_text().splitlines()]
        columns = 7 if path.name == "soundness.tsv" else 5  # before the time
        return [line[:columns] for line in lines]
    if path.suffix == ".jsonl":
        return [_timeless(json.loads(line)) for line in path.read_text().splitlines()]
    content = _timeless(json.loads(path.read_text()))
    return {key: value for key, value in content.items() if key not in ("overrides", "training")}


TIMES = ("seconds", "examples_per_second", "crc32")


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _timeless(each) for key, each in value.items() if key not in TIMES}
    return [_timeless(each) for each in value] if isinstance(value, list | tuple) else value


def _named(path: Path, folder: Path) -> str:
    """A table without the time that rows took, and the name of its folder."""
    text = path.read_text().replace(folder.name, "FOLDER")
    return re.sub(r"[0-9.]+ (s|min|h)\b", "TIME", text)


def same(a: Any, b: Any) -> bool:
    """Whether two checkpoints hold the same bits, times apart."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and torch.equal(a, b)
    if isinstance(a, dict):
        kept = [key for key in a if key not in TIMES]
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in kept)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)

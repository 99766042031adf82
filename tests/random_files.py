"""Damaged files of every kind that is read here, and what each of them has to become.

A sound file is made once and then damaged: bytes changed, cut, repeated, numbers blown up. Whatever
comes of it, its reader answers with what it could read, or with one error of ours.
"""

import io
import json
import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from data_files import write_idx
from hostile_files import png, sound
from hypothesis import strategies as st
from PIL import Image
from report_files import results

from advtrain import status
from advtrain.certification.log import HEADER, Certificate
from advtrain.certification.log import repair as repaired
from advtrain.checkpoints import CheckpointError, load, weights
from advtrain.data import readers
from advtrain.data.decode import Broken, Recipe, decode
from advtrain.data.errors import DataError
from advtrain.records import VerdictLog
from advtrain.reporting.logs import read_log
from advtrain.reporting.reading import read_metrics, read_run
from advtrain.reporting.series import read_examples
from advtrain.reporting.writing import write_run
from advtrain.runs import load_run


@dataclass(frozen=True)
class Reader:
    """A kind of file: where it lies in a folder, a sound one, and what reads it.

    `refused`: the errors that are sentences; readers of reports take what they can, without any.
    """

    name: str
    sound: Callable[[], bytes]
    read: Callable[[Path], Any]
    refused: tuple[type[Exception], ...] = ()


def _image(kind: str) -> Callable[[], bytes]:
    def make() -> bytes:
        out = io.BytesIO()
        pixels = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(out, kind)
        return out.getvalue()

    return make


@cache
def _checkpoint() -> bytes:
    out = io.BytesIO()
    torch.save(sound(), out)
    return out.getvalue()


def _log() -> bytes:
    lines = [Certificate(i, i % 3, i % 2, 0.25 * (i % 2 == i % 3), 1.5).line() for i in range(9)]
    return "".join(f"{line}\n" for line in [HEADER, *lines]).encode()


def _examples() -> bytes:
    out, images = io.BytesIO(), np.full((2, 1, 4, 4), 0.5, np.float32)
    told = {key: np.zeros(2, np.int64) for key in ("labels", "predicted_clean")}
    np.savez(
        out,
        allow_pickle=False,
        clean=images,
        adversarial=images,
        predicted_adversarial=np.ones(2, np.int64),
        row=np.array("pgd"),
        classes=np.array(["a", "b"]),
        **told,
    )
    return out.getvalue()


def _verdicts() -> bytes:
    line = {
        **{"row": "a", "at": [0, 1], "adversarial": "01", "robust": "01", "outside": 0},
        **{"non_finite": 0, "forward_passes": 2, "backward_passes": 2, "seconds": 0.1},
    }
    return "".join(json.dumps({**line, "at": [2 * i, 2 * i + 1]}) + "\n" for i in range(4)).encode()


def _metrics() -> bytes:
    return "".join(
        json.dumps({"epoch": i, "train_loss": 1 / (i + 1), "val_acc": 0.5}) + "\n" for i in range(4)
    ).encode()


def _status() -> bytes:
    content = {"state": "failed", "choices": {"dataset": "digits"}, "config": {"name": "a"}}
    return json.dumps({**content, "error": "it is so", "overrides": ["seed=1"]}).encode()


def _idx() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        write_idx(Path(folder), "MNIST")
        return (Path(folder) / IDX).read_bytes()


IDX = "MNIST/raw/train-images-idx3-ubyte"


def _read_idx(path: Path) -> None:
    root = path.parents[2]
    if not (root / "MNIST/raw/t10k-images-idx3-ubyte").exists():
        kept = path.read_bytes()
        path.unlink()
        path.parent.rmdir()
        write_idx(root, "MNIST")
        path.write_bytes(kept)
    readers.read(readers.mnist(), str(root), False)


def _read_checkpoint(path: Path) -> None:
    weights(load(path), path)
    load_run(path)


def _read_report(path: Path) -> None:
    read_run(path.parent)
    read_metrics(path.parent)


def _decoded(path: Path) -> None:
    found = decode(str(path), Recipe("RGB", (8, 8), cut=True))
    assert found.shape == (3, 8, 8) and found.dtype == np.uint8


def _logged(path: Path) -> None:
    for each in read_log(path).radii:
        assert each == -1 or 0 <= each < float("inf")
    repaired(path)


KINDS = (
    Reader("evil.pt", _checkpoint, _read_checkpoint, (CheckpointError, ValueError)),
    Reader("certify.tsv", _log, _logged, (ValueError,)),
    Reader("examples.npz", _examples, lambda path: read_examples(path.parent), (ValueError,)),
    Reader("verdicts.jsonl", _verdicts, VerdictLog, (ValueError,)),
    Reader("results.json", lambda: json.dumps(results()).encode(), _read_report),
    Reader("metrics.jsonl", _metrics, _read_report),
    Reader("status.json", _status, lambda path: (status.read(path.parent), _read_report(path))),
    Reader(IDX, _idx, _read_idx, (DataError,)),
    Reader("a.png", _image("PNG"), _decoded, (Broken,)),
    Reader("a.jpg", _image("JPEG"), _decoded, (Broken,)),
    Reader("a.bmp", _image("BMP"), _decoded, (Broken,)),
    Reader("a.tif", _image("TIFF"), _decoded, (Broken,)),
    Reader("a.webp", _image("WEBP"), _decoded, (Broken,)),
    Reader("a.ppm", _image("PPM"), _decoded, (Broken,)),
    Reader("thin.png", lambda: png(1, 900, b"\0\0" * 900), _decoded, (Broken,)),
)


@dataclass(frozen=True)
class Damage:
    """A kind of file, by its place in KINDS, and what is done to a sound one, in order."""

    kind: int
    changes: tuple[tuple[str, float, bytes], ...]

    def done(self) -> bytes:
        content = KINDS[self.kind].sound()
        for how, place, more in self.changes:
            at = int(place * len(content))
            content = CHANGES[how](content, at, more)
        return content


def _blown(content: bytes, at: int, more: bytes) -> bytes:
    """The first number after `at`, in text, becomes another one."""
    found = re.compile(rb"-?[0-9]+(\.[0-9]+)?").search(content, at)
    return content if found is None else content[: found.start()] + more + content[found.end() :]


CHANGES: dict[str, Callable[[bytes, int, bytes], bytes]] = {
    "cut": lambda content, at, more: content[:at],
    "headless": lambda content, at, more: content[at:],
    "insert": lambda content, at, more: content[:at] + more + content[at:],
    "replace": lambda content, at, more: content[:at] + more + content[at + len(more) :],
    "repeat": lambda content, at, more: content + content[at:],
    "number": _blown,
}
WORDS = (
    *(b"\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"-1", b"1e999", b"NaN", b"9" * 400),
    *(
        b"null",
        b"{}",
        b"[]",
        b'"',
        b"\n",
        b"\t",
        b"true",
        b"[" * 2000,
        b"<script>",
        b"\xed\xa0\x80",
    ),
)
damages = st.builds(
    Damage,
    st.integers(0, len(KINDS) - 1),
    st.lists(
        st.tuples(
            st.sampled_from(list(CHANGES)),
            st.floats(0, 1, allow_subnormal=False),
            st.sampled_from(WORDS) | st.binary(min_size=1, max_size=4),
        ),
        min_size=1,
        max_size=4,
    ).map(tuple),
)


def read(damage: Damage, folder: Path) -> str:
    """`answered` or `refused`; any other error is one of ours."""
    kind = KINDS[damage.kind]
    path = folder / kind.name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(damage.done())
    if kind.name in ("examples.npz", "metrics.jsonl"):
        (path.parent / "results.json").write_text(json.dumps(results()))
    try:
        kind.read(path)
    except kind.refused as error:
        told = str(error)
        assert 10 < len(told) < 1000 and len(told.splitlines()) == 1, told
        return "refused"
    return "answered"


def reported(damage: Damage, folder: Path) -> str:
    """The page and the tables of a run with that file; whatever it holds, they are written."""
    read(damage, folder)
    write_run(folder)
    assert "<script>alert" not in (folder / "report.html").read_text(encoding="utf-8")
    return "answered"

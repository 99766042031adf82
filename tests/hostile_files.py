"""Files that mean harm, each made by a test where it is needed; none is kept in the repository.

A maker gets an empty folder and the path of a canary, which its payload would create if anything
in the file were executed. Tables by the reader that meets the file: CHECKPOINTS, RUNS, REPORTS,
LOGS, IMAGES, SETS, SETTINGS, STATES. LOCKS are of whoever takes a lock.
"""

import io
import json
import os
import pickle
import pickletools
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from data_files import write_cifar, write_folder, write_idx, write_svhn
from report_files import results
from running import configuration

from advtrain.certification.log import HEADER
from advtrain.models.linear import linear

Maker = Callable[[Path, Path], Any]
TAG = "<script>alert(1)</script>"
BELL = "\x1b]0;owned\x07\x1b[31m"


class Payload:
    """Creates the canary when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.canary}",)


def sound() -> dict[str, Any]:
    """A checkpoint of ours, as training of model=linear on digits leaves it."""
    model = linear((1, 8, 8), 10, mean=None, std=None)
    return {
        "model": model.state_dict(),
        "epoch": 1,
        "config": configuration("model=linear", "dataset=digits", "logger=none"),
        "choices": {"dataset": "digits", "model": "linear", "threat": "linf", "defense": "pgd_at"},
        "data": {"shape": [1, 8, 8], "classes": 10, "names": list("0123456789"), "summary": ""},
        "judged_by": "val_adv_acc",
        "torch": "2.11",
    }


def _saved(change: Callable[[dict[str, Any], Path], Any], **how: Any) -> Maker:
    """A checkpoint of ours after `change`, which may return another content."""

    def make(folder: Path, canary: Path) -> None:
        content = sound()
        torch.save(change(content, canary) or content, folder / "evil.pt", **how)

    return make


def _node(group: str, node: Any) -> Maker:
    """A checkpoint of ours in which the configuration of `group` is another; CANARY is its path."""

    def change(content: dict[str, Any], canary: Path) -> None:
        content["config"][group] = json.loads(json.dumps(node).replace("CANARY", str(canary)))

    return _saved(change)


def _bytes(content: Callable[[Path], bytes], name: str = "evil.pt") -> Maker:
    def make(folder: Path, canary: Path) -> None:
        (folder / name).write_bytes(content(canary))

    return make


def _packed(content: Any) -> bytes:
    out = io.BytesIO()
    torch.save(content, out)
    return out.getvalue()


def _rewritten(change: Callable[[str, bytes], bytes], *, times: int = 1, deflate: bool) -> bytes:
    """The archive of a sound checkpoint with its members changed, and written again."""
    out = io.BytesIO()
    kind = zipfile.ZIP_DEFLATED if deflate else zipfile.ZIP_STORED
    with (
        zipfile.ZipFile(io.BytesIO(_packed(sound()))) as old,
        zipfile.ZipFile(out, "w", kind) as new,
    ):
        for member in old.infolist():
            for _ in range(times):
                with warnings.catch_warnings(action="ignore"):  # of a name that is there
                    new.writestr(member.filename, change(member.filename, old.read(member)))
    return out.getvalue()


def _zeros(name: str, content: bytes) -> bytes:
    return bytes(400 << 20) if name.endswith("/data/0") else content


@cache
def _bomb() -> bytes:
    """A compressed checkpoint that unpacks to a thousand times its size."""
    return _rewritten(_zeros, deflate=True)


def _two_lists() -> bytes:
    """The bomb, and between its list of parts and its end another list, of parts without a byte.

    It says where the first is, from the beginning; the second is where an end has its list.
    """
    whole = _bomb()
    end = len(whole) - 22
    size, place = struct.unpack("<2L", whole[end + 12 : end + 20])
    other, at = bytearray(whole[place : place + size]), 0
    while (at := other.find(b"PK\1\2", at)) >= 0:
        other[at + 16 : at + 28] = bytes(12)  # checksum and sizes
        at += 28
    return whole[:end] + bytes(other) + whole[end:]


def _unfilled(canary: Path) -> bytes:
    """In the old format: a weight in a storage of 480 MB, of which the file brings nothing."""
    out = io.BytesIO()
    torch.save(sound(), out, _use_new_zipfile_serialization=False)
    parts, stream = [], io.BytesIO(out.getvalue())
    for _ in range(4):
        began = stream.tell()
        list(pickletools.genops(stream))
        parts.append(out.getvalue()[began : stream.tell()])
    parts[3] = parts[3].replace(b"M\x80\x02", b"J" + struct.pack("<i", 120_000_000), 1)
    return b"".join(parts) + pickle.dumps([], 2)


def _shared(content: dict[str, Any], canary: Path) -> None:
    """4,000 names for one storage of a megabyte, and a network of 10**9 numbers."""
    one = torch.zeros(250_000)
    content["model"] = {f"w{i}": one for i in range(4_000)}
    content["config"]["model"] = {**WIDE, "width": 70}


def _longer(name: str, content: bytes) -> bytes:
    """The weight (10, 64) of the linear model claims 2**31 - 1 rows."""
    return (
        content.replace(b"K\nK@\x86", b"J\xff\xff\xff\x7fK@\x86") if "data.pkl" in name else content
    )


def _more(name: str, content: bytes) -> bytes:
    """The storage of 640 numbers claims a hundred million."""
    claim = b"J" + struct.pack("<i", 100_000_000)
    return content.replace(b"M\x80\x02", claim, 1) if "data.pkl" in name else content


def _deeply() -> list[Any]:
    value: list[Any] = ["lol"]
    for _ in range(60):
        value = [value, value]
    return value


def _doubled(content: dict[str, Any], canary: Path) -> None:
    content["config"]["model"]["mean"] = _deeply()


def _circular(content: dict[str, Any], canary: Path) -> None:
    node: dict[str, Any] = {"_target_": "advtrain.models.linear.linear"}
    node["mean"] = [node]
    content["config"]["model"] = node


def _deep(content: dict[str, Any], canary: Path) -> None:
    value: Any = 1
    for _ in range(200):
        value = {"a": value}
    content["config"]["model"] = {"_target_": "advtrain.models.linear.linear", "mean": value}


def _put(*path: str, value: Any) -> Callable[[dict[str, Any], Path], None]:
    def change(content: dict[str, Any], canary: Path) -> None:
        node = content
        for key in path[:-1]:
            node = node[key]
        node[path[-1]] = value

    return change


def _weights(change: Callable[[torch.Tensor], torch.Tensor]) -> Maker:
    def swap(content: dict[str, Any], canary: Path) -> None:
        content["model"] = {name: change(value) for name, value in content["model"].items()}

    return _saved(swap)


def _named(name: str) -> Callable[[dict[str, Any], Path], None]:
    def change(content: dict[str, Any], canary: Path) -> None:
        content["model"] = {name: content["model"]["head.weight"]}

    return change


WIDE = {
    **{"_target_": "advtrain.models.wide_resnet.wide_resnet", "depth": 16, "dropout": 0.0},
    **{"width": 10**7, "initialisation": "torch", "mean": None, "std": None},
}
CUSTOM = {
    "_target_": "advtrain.models.custom.custom",
    "factory": "os.system",
    "arguments": {"command": "touch CANARY"},
}

CHECKPOINTS: dict[str, Maker] = {
    "pickle that executes": _bytes(lambda canary: pickle.dumps(Payload(canary))),
    "pickle that evaluates": _bytes(
        lambda canary: f"cbuiltins\neval\n(S\"open(r'{canary}', 'w')\"\ntR.".encode()
    ),
    "archive with a payload": _saved(lambda content, canary: {"model": Payload(canary)}),
    "old format with a payload": _saved(
        lambda content, canary: {"model": Payload(canary)}, _use_new_zipfile_serialization=False
    ),
    "payload in the configuration": _saved(
        lambda content, canary: {**content, "config": Payload(canary)}
    ),
    "payload for a second reader": _bytes(
        lambda canary: (
            b"ctorch.storage\n_load_from_bytes\n(c_codecs\nencode\n(V"
            + pickle.dumps(Payload(canary), 0).decode("latin-1").encode("unicode_escape")
            + b"\nVlatin-1\ntRtR."
        )
    ),
    "whole module": _saved(lambda content, canary: torch.nn.Linear(2, 2)),
    "compressed bomb": _bytes(lambda canary: _bomb()),
    "compressed bomb with a torn end": _bytes(lambda canary: _bomb() + b"PK\5\6"),
    "compressed bomb with another list": _bytes(lambda canary: _two_lists()),
    "storage that the file does not fill": _bytes(_unfilled),
    "storage beyond its part": _bytes(lambda canary: _rewritten(_more, deflate=False)),
    "members twice": _bytes(
        lambda canary: _rewritten(lambda name, content: content, times=2, deflate=False)
    ),
    "shape beyond its storage": _bytes(lambda canary: _rewritten(_longer, deflate=False)),
    "one number as a trillion": _weights(lambda value: torch.zeros(()).expand(10**6, 10**6)),
    "sparse tensors": _weights(lambda value: value.to_sparse()),
    "tensors without numbers": _weights(lambda value: value.to("meta")),
    "lists that double": _saved(_doubled),
    "node in itself": _saved(_circular),
    "nested without end": _saved(_deep),
    "target os.system": _node("model", {"_target_": "os.system", "command": "touch CANARY"}),
    "target eval": _node("model", {"_target_": "builtins.eval", "_args_": ["open('CANARY','w')"]}),
    "target bound for later": _node(
        "model", {"_target_": "os.mkdir", "_partial_": True, "path": "CANARY"}
    ),
    "target below a flag of Hydra": _node(
        "model",
        {
            "_target_": "advtrain.models.linear.linear",
            "_recursive_": True,
            "mean": [{"_target_": "os.mkdir", "path": "CANARY"}],
        },
    ),
    "factory of others": _node("model", CUSTOM),
    "factory in a factory": _node(
        "model", {**CUSTOM, "factory": "advtrain.models.custom.custom", "arguments": CUSTOM}
    ),
    "import by our own modules": _node(
        "model", {"_target_": "advtrain.models.custom.import_module", "name": "antigravity"}
    ),
    "target of ours with another role": _node("model", {"_target_": "advtrain.runs.load_run"}),
    "target that starts a worker": _node(
        "dataset", {"_target_": "advtrain.data.decode.start_worker"}
    ),
    "target of a data set": _node("dataset", {"_target_": "os.mkdir", "path": "CANARY"}),
    "target of a threat": _node("threat", {"_target_": "os.mkdir", "path": "CANARY"}),
    "variable of the environment": _node(
        "model", {"_target_": "advtrain.models.linear.linear", "mean": "${oc.env:HOME}", "std": [1]}
    ),
    "resolver of ours": _node(
        "threat", {"_target_": "advtrain.threat.Linf", "eps": "${times:1,0.1}"}
    ),
    "network without end": _node("model", WIDE),
    "network of one number by many names": _saved(_shared),
    "number of a billion digits": _node("model", {**WIDE, "dropout": "1e9999999999"}),
    "number beyond all floats": _node("model", {**WIDE, "dropout": "1e400"}),
    "whole number beyond all floats": _node("model", {**WIDE, "dropout": 10**400}),
    "images without end": _saved(_put("data", "shape", value=[65_536, 65_536, 65_536])),
    "shape of words": _saved(_put("data", "shape", value=["1", None, float("nan")])),
    "classes without end": _saved(_put("data", "classes", value=10**12)),
    "configuration of text": _saved(_put("config", "model", value="linear")),
    "configuration with tensors": _saved(_put("config", "model", value={"a": torch.zeros(2)})),
    "weights that are numbers": _saved(_put("model", value={"a": 1, "b": float("nan")})),
    "list of weights": _saved(lambda content, canary: [content]),
    "names that speak to a terminal": _saved(_named(f"{TAG}{BELL}")),
    "cut in the middle": _bytes(lambda canary: _packed(sound())[:3000]),
    "two files in one": _bytes(lambda canary: _packed(sound())[:-30] + _packed(sound())[:200]),
    "empty": _bytes(lambda canary: b""),
    "text": _bytes(lambda canary: TAG.encode()),
}


def _status(content: Callable[[Path], str | dict[str, Any]]) -> Maker:
    """A run directory with that status.json and a sound checkpoint."""

    def make(folder: Path, canary: Path) -> None:
        (folder / "checkpoints").mkdir()
        torch.save(sound(), folder / "checkpoints" / "best.pt")
        found = content(canary)
        text = found if isinstance(found, str) else json.dumps(found)
        (folder / "status.json").write_text(text)

    return make


def _pipe(folder: Path, canary: Path) -> None:
    _status(lambda canary: "{}")(folder, canary)
    (folder / "status.json").unlink()
    os.mkfifo(folder / "status.json")


def _endless(folder: Path, canary: Path) -> None:
    _status(lambda canary: "{}")(folder, canary)
    (folder / "status.json").unlink()
    (folder / "status.json").symlink_to("/dev/zero")


RUNS: dict[str, Maker] = {
    "status nested without end": _status(lambda canary: "[" * 1_000_000),
    "status with a key twice": _status(lambda canary: '{"choices": {}, "choices": {"model": "x"}}'),
    "status of gigabytes": _status(lambda canary: '{"a": "' + "x" * (9 << 20) + '"}'),
    "status that is a pipe": _pipe,
    "status that never ends": _endless,
    "choices that are overrides": _status(
        lambda canary: {
            "choices": {"model": f"linear hydra.run.dir={canary}", "dataset": "../../etc/passwd"},
            "config": {"name": f"x' hydra.run.dir='{canary}"},
        }
    ),
    "choices that interpolate": _status(
        lambda canary: {
            "choices": {"model": "${oc.env:HOME}"},
            "config": {"name": "${oc.env:HOME}"},
        }
    ),
}
"""What is said there is not believed; the run is then that of its checkpoint."""


def _result(**more: Any) -> str:
    return json.dumps(results(**more))


def _reported(text: Callable[[Path], str], name: str = "results.json") -> Maker:
    def make(folder: Path, canary: Path) -> None:
        if name != "results.json":
            (folder / "results.json").write_text(_result())
        (folder / name).write_text(text(canary))

    return make


def _arrays(content: Callable[[Path], bytes]) -> Maker:
    def make(folder: Path, canary: Path) -> None:
        (folder / "results.json").write_text(_result())
        (folder / "examples.npz").write_bytes(content(canary))

    return make


def _array(header: dict[str, Any], data: bytes = b"") -> bytes:
    out = io.BytesIO()
    np.lib.format.write_array_header_1_0(out, header)
    return out.getvalue() + data


def _archive(members: dict[str, bytes], kind: int = zipfile.ZIP_STORED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", kind) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return out.getvalue()


def _pictures(kind: int = zipfile.ZIP_STORED, **arrays: Any) -> bytes:
    """Two pairs of images, with other `arrays` in place."""
    images = np.full((2, 1, 4, 4), 0.5, np.float32)
    index = np.zeros(2, np.int64)
    told = {"labels": index, "predicted_clean": index, "predicted_adversarial": index}
    whole = {"clean": images, "adversarial": images, **told, "row": np.array("pgd"), **arrays}
    members = {}
    for name, array in whole.items():
        out = io.BytesIO()
        np.lib.format.write_array(out, array) if isinstance(array, np.ndarray) else out.write(array)
        members[f"{name}.npy"] = out.getvalue()
    return _archive(members, kind)


def _pickled(canary: Path) -> bytes:
    out = io.BytesIO()
    np.savez(out, allow_pickle=True, clean=np.array([Payload(canary)], dtype=object))
    return out.getvalue()


PROMISE = {"descr": "|u1", "fortran_order": False, "shape": (2**31, 3, 8, 8)}
LARGE = {"descr": "|u1", "fortran_order": False, "shape": (1, 1, 17_000, 17_000)}

REPORTS: dict[str, Maker] = {
    "results nested without end": _reported(lambda canary: "[" * 1_000_000),
    "results nested deeply": _reported(
        lambda canary: '{"rows":[],"a":' + "[" * 300 + "]" * 300 + "}"
    ),
    "results with a key twice": _reported(lambda canary: '{"schema": 1, "rows": [], "rows": []}'),
    "results of gigabytes": _reported(
        lambda canary: '{"rows": [], "a": "' + "x" * (33 << 20) + '"}'
    ),
    "results of a million lists": _reported(
        lambda canary: '{"rows": [], "a": [' + "[]," * 8_000_000 + "[]]}"
    ),
    "results of another kind": _reported(lambda canary: "[1, 2]"),
    "results cut in the middle": _reported(lambda canary: _result()[:200]),
    "results twice": _reported(lambda canary: _result() + _result()),
    "pictures that execute": _arrays(_pickled),
    "pictures that are promised": _arrays(lambda canary: _archive({"clean.npy": _array(PROMISE)})),
    "pictures that unpack": _arrays(
        lambda canary: _archive(
            {"clean.npy": _array(LARGE, bytes(289_000_000))}, zipfile.ZIP_DEFLATED
        )
    ),
    "pictures that are compressed": _arrays(lambda canary: _pictures(zipfile.ZIP_DEFLATED)),
    "pictures of many": _arrays(
        lambda canary: _pictures(
            clean=np.zeros((5_000_000, 1, 1, 1), np.uint8),
            adversarial=np.zeros((5_000_000, 1, 1, 1), np.uint8),
            labels=np.zeros(5_000_000, np.uint8),
        )
    ),
    "classes without a letter": _arrays(
        lambda canary: _pictures(classes=_array({**PROMISE, "descr": "|V0", "shape": (10**12,)}))
    ),
    "pictures that are none": _arrays(lambda canary: TAG.encode()),
}
"""Run directories that are reported with a note, or a warning, that names the file."""


def _log(text: str) -> Maker:
    return _bytes(lambda canary: text.encode(), "certify.tsv")


LOGS: dict[str, Maker] = {
    "log of empty lines": _log(HEADER + "\n" * 5_000_000),
    "log of one line": _log(f"{HEADER}\n{'9' * (4 << 20)}\n"),
    "log of gigabytes": _log(f"{HEADER}\n" + "x" * (65 << 20)),
    "log of enormous numbers": _log(f"{HEADER}\n{'9' * 4000}\t1\t1\t0.5\t1\t0:00:01\n"),
    "log of numbers that are none": _log(
        f"{HEADER}\n0\t1\t1\tnan\t1\t1\n1\t1\t1\tinf\t1\t1\n2\t1\t1\t0.5\t1\t1e308:1e308:1\n"
    ),
    "log without its header": _log("0\t1\t1\t0.5\t1\t1\n"),
    "log of tags": _log(f"{TAG}\n"),
}


def _image(content: Callable[[Path], bytes]) -> Maker:
    """A folder of images of which one is replaced."""

    def make(folder: Path, canary: Path) -> None:
        write_folder(folder, {"train": 6, "test": 2})
        (folder / "train" / "ant" / "000.png").write_bytes(content(canary))

    return make


def png(width: int, height: int, rows: bytes | None = None) -> bytes:
    """A grey PNG that says it has that size, with these compressed rows."""

    def chunk(name: bytes, content: bytes) -> bytes:
        told = struct.pack(">I", len(content)) + name + content
        return told + struct.pack(">I", zlib.crc32(name + content))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    body = zlib.compress(b"" if rows is None else rows)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def _postscript(canary: Path) -> bytes:
    return (
        f"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n"
        f"(%pipe%touch {canary}) (w) file\nshowpage\n%%EOF\n"
    ).encode()


IMAGES: dict[str, Maker] = {
    "gigapixel header": _image(lambda canary: png(60_000, 60_000)),
    "header beyond all": _image(lambda canary: png(2**31 - 1, 2**31 - 1)),
    "thread of pixels": _image(lambda canary: png(1, 60_000, b"\0\0" * 60_000)),
    "PostScript as an image": _image(_postscript),
    "text as an image": _image(lambda canary: TAG.encode()),
    "image without pixels": _image(lambda canary: png(8, 8)),
    "pickle as an image": _image(lambda canary: pickle.dumps(Payload(canary))),
}


def _idx(images: int, rows: int, columns: int) -> Maker:
    def make(folder: Path, canary: Path) -> None:
        write_idx(folder, "MNIST")
        path = folder / "MNIST" / "raw" / "train-images-idx3-ubyte"
        body = path.read_bytes()[16:]
        path.write_bytes(struct.pack(">iiii", 0x803, images, rows, columns) + body)

    return make


def _cifar(folder: Path, canary: Path) -> None:
    names = {f"data_batch_{i}": 10 for i in range(1, 6)} | {"test_batch": 10}
    write_cifar(folder, "cifar-10-batches-py", names, "labels")
    (folder / "cifar-10-batches-py" / "data_batch_1").write_bytes(pickle.dumps(Payload(canary)))


def _svhn(folder: Path, canary: Path) -> None:
    write_svhn(folder)
    (folder / "train_32x32.mat").write_bytes(pickle.dumps(Payload(canary)))


SETS: dict[str, tuple[str, Maker]] = {
    "IDX that promises images": ("mnist", _idx(2**31 - 1, 28, 28)),
    "IDX that promises pixels": ("mnist", _idx(60, 2**31 - 1, 2**31 - 1)),
    "IDX of negative sizes": ("mnist", _idx(-60, 28, 28)),
    "CIFAR that executes": ("cifar10", _cifar),
    "SVHN that executes": ("svhn", _svhn),
}


def _link(path: Path, canary: Path) -> None:
    path.symlink_to(canary)


def _to_mine(path: Path, canary: Path) -> None:
    mine = canary.with_name("mine")
    mine.write_text("keys")
    path.symlink_to(mine)


LOCKS: dict[str, Maker] = {
    "lock that is a link": _to_mine,
    "lock that is a link to nothing": _link,
    "lock that is a pipe": lambda path, canary: os.mkfifo(path),
    "lock that is a folder": lambda path, canary: path.mkdir(),
}
"""In place of a lock file, which the maker gets instead of a folder."""


def _at(*path: Any, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(content: dict[str, Any]) -> None:
        _put(*path, value=value)(content, Path())

    return change


def _without(name: str) -> Callable[[dict[str, Any]], None]:
    def change(content: dict[str, Any]) -> None:
        del content[name]

    return change


STATE = ("training", "state")
MOMENT = (*STATE, "optimizer", "state", 0, "momentum_buffer")
STATES: dict[str, Callable[[dict[str, Any]], None]] = {
    "training that is a number": _at("training", value=1),
    "no configuration": _without("config"),
    "configuration of text": _at("config", value="linear"),
    "no data": _without("data"),
    "moments that double": _at(*MOMENT, value=_deeply()),
    "moments of another shape": _at(*MOMENT, value=torch.zeros(7)),
    "moments that are text": _at(*MOMENT, value="lol"),
    "moments of another optimizer": _at(*MOMENT[:-1], "exp_avg", value=torch.zeros(())),
    "moments of no tensor": _at(*MOMENT[:-2], 99, value={"momentum_buffer": torch.zeros(())}),
    "optimizer without groups": _at(*STATE, "optimizer", "param_groups", value=[]),
    "rate that is text": _at(*STATE, "optimizer", "param_groups", 0, "lr", value="lol"),
    "average of another network": _at(*STATE, "average", "model", value={"a": torch.zeros(2)}),
    "weights of another shape": _at(*STATE, "model", "head.bias", value=torch.zeros(3)),
    "weights that are text": _at(*STATE, "model", value="lol"),
    "step before the first": _at(*STATE, "step", value=-5),
    "step that is a half": _at(*STATE, "step", value=0.5),
    "last logs of text": _at(*STATE, "last", value={"loss": "lol"}),
    "meter of another kind": _at(*STATE, "meter", "evil", value=1),
    "reports that double": _at("training", "history", "reports", value=_deeply()),
    "reports of text": _at("training", "history", "reports", value=[{"loss": "lol"}]),
    "history with a method": _at("training", "history", "improves", value=1),
    "history that counts in text": _at("training", "history", "waited", value="lol"),
    "state to return to that is none": _at("training", "good", value={"step": 3}),
}
"""What becomes of the content of last.pt in a run that is to go on."""


def _setting(group: str, text: str) -> Maker:
    """A folder for --config-dir with group/evil.yaml; CANARY is its path."""

    def make(folder: Path, canary: Path) -> None:
        (folder / group).mkdir()
        (folder / group / "evil.yaml").write_text(text.replace("CANARY", str(canary)))

    return make


LOL = "\n".join(
    ["a0: &a0 [lol, lol]"] + [f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 40)]
)


def _linked(folder: Path, canary: Path) -> None:
    """The group is a link to a folder that lies elsewhere."""
    (folder.parent / "assets").mkdir()
    (folder.parent / "assets" / "evil.yaml").write_text(LOL)
    (folder / "attack").symlink_to("../assets")


def _elsewhere(folder: Path, canary: Path) -> None:
    """A harmless option takes a file outside of the folder among its defaults."""
    (folder.parent / "assets").mkdir()
    (folder.parent / "assets" / "evil.yaml").write_text(LOL)
    _setting("attack", "defaults:\n  - ../../assets/evil@_here_\n")(folder, canary)


SETTINGS: dict[str, tuple[str, Maker]] = {
    "callback of others": (
        "experiment",
        _setting(
            "experiment",
            "# @package _global_\nhydra:\n  callbacks:\n    evil:\n"
            "      _target_: shutil.copy\n      src: /etc/hostname\n      dst: CANARY\n",
        ),
    ),
    "logging handler of others": (
        "experiment",
        _setting(
            "experiment",
            "# @package _global_\nhydra:\n  job_logging:\n    handlers:\n      evil:\n"
            "        (): shutil.copy\n        src: /etc/hostname\n        dst: CANARY\n",
        ),
    ),
    "launcher of others": (
        "experiment",
        _setting(
            "experiment",
            "# @package _global_\nhydra:\n  launcher:\n    _target_: shutil.copy\n"
            "    src: /etc/hostname\n    dst: CANARY\n",
        ),
    ),
    "attack of others": (
        "attack",
        _setting("attack", "_target_: os.system\n_partial_: true\ncommand: touch CANARY\n"),
    ),
    "object of Python": (
        "attack",
        _setting("attack", '!!python/object/apply:os.system ["touch CANARY"]\n'),
    ),
    "aliases that double": ("attack", _setting("attack", LOL)),
    "aliases behind a link to a folder": ("attack", _linked),
    "aliases in a file elsewhere": ("attack", _elsewhere),
    "key twice": ("attack", _setting("attack", "_target_: a.b\n_target_: os.system\n")),
    "environment into a target": (
        "attack",
        _setting("attack", "_target_: ${oc.env:HOME}\n_partial_: true\n"),
    ),
}

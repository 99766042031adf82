"""Tiny files in the true formats of the data sets, with labels that cycle through the classes."""

import hashlib
import pickle
from pathlib import Path

import numpy as np
import scipy.io
from PIL import Image

Examples = tuple[np.ndarray, np.ndarray]


def examples(n: int, shape: tuple[int, ...], classes: int, seed: int) -> Examples:
    images = np.random.default_rng(seed).integers(0, 256, (n, *shape), dtype=np.uint8)
    return images, np.arange(n, dtype=np.uint8) % classes


def write_idx(root: Path, name: str) -> tuple[Examples, Examples]:
    """MNIST's big-endian format: magic number, sizes, bytes."""
    raw = root / name / "raw"
    raw.mkdir(parents=True)
    train, test = examples(60, (28, 28), 10, 0), examples(30, (28, 28), 10, 1)
    for part, (images, labels) in (("train", train), ("t10k", test)):
        header = np.array([0x803, *images.shape], dtype=">i4").tobytes()
        (raw / f"{part}-images-idx3-ubyte").write_bytes(header + images.tobytes())
        header = np.array([0x801, len(labels)], dtype=">i4").tobytes()
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(header + labels.tobytes())
    return train, test


def write_cifar(root: Path, folder: str, batches: dict[str, int], key: str) -> dict[str, Examples]:
    """Pickles of rows of 3,072 bytes, red plane first, as the Python version has them."""
    where = root / folder
    where.mkdir(parents=True)
    classes = 100 if key == "fine_labels" else 10
    written = {}
    for seed, (name, n) in enumerate(batches.items()):
        images, labels = written[name] = examples(n, (3, 32, 32), classes, seed)
        content = {"data": images.reshape(n, -1), key: labels.tolist()}
        (where / name).write_bytes(pickle.dumps(content, protocol=2))
    meta, names = (
        ("meta", "fine_label_names") if classes == 100 else ("batches.meta", "label_names")
    )
    content = {names: [f"class{i}" for i in range(classes)]}
    (where / meta).write_bytes(pickle.dumps(content, protocol=2))
    return written


def write_svhn(root: Path) -> tuple[Examples, Examples]:
    """MATLAB files: X (32, 32, 3, N), y (N, 1) with 10 for the digit 0."""
    parts = examples(40, (3, 32, 32), 10, 0), examples(20, (3, 32, 32), 10, 1)
    for name, (images, labels) in zip(("train", "test"), parts, strict=True):
        y = np.where(labels == 0, 10, labels)[:, None]
        content = {"X": images.transpose(2, 3, 1, 0), "y": y}
        scipy.io.savemat(root / f"{name}_32x32.mat", content)
    return parts


def write_stl10(root: Path) -> tuple[Examples, Examples]:
    """Bytes, each plane column by column, and labels from 1."""
    where = root / "stl10_binary"
    where.mkdir(parents=True)
    parts = examples(20, (3, 96, 96), 10, 0), examples(20, (3, 96, 96), 10, 1)
    for name, (images, labels) in zip(("train", "test"), parts, strict=True):
        (where / f"{name}_X.bin").write_bytes(images.transpose(0, 1, 3, 2).tobytes())
        (where / f"{name}_y.bin").write_bytes((labels + 1).tobytes())
    (where / "class_names.txt").write_text("\n".join(f"class{i}" for i in range(10)))
    return parts


def write_folder(
    root: Path, parts: dict[str, int], *, size: tuple[int, int] = (8, 8), suffix: str = ".png"
) -> dict[str, dict[str, np.ndarray]]:
    """root/<part>/<class>/<i><suffix>, that many of each of three classes; their pixels."""
    written: dict[str, dict[str, np.ndarray]] = {}
    generator = np.random.default_rng(0)
    for part, n in parts.items():
        for name in ("ant", "bee", "cat"):
            where = root / part / name
            where.mkdir(parents=True)
            pixels = generator.integers(0, 256, (n, *size, 3), dtype=np.uint8)
            written.setdefault(part, {})[name] = pixels
            for i, image in enumerate(pixels):
                Image.fromarray(image).save(where / f"{i:03}{suffix}")
    return written


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()

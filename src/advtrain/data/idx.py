"""The IDX files of MNIST, and of sets that were made in its place (LeCun et al. 1998).

Read here, for torchvision takes more than a second to import, longer than a small job's evaluation;
and it reads `MNIST/processed/*.pt` in their place where a folder has them.
"""

from math import prod
from pathlib import Path
from typing import NamedTuple

import numpy as np

BYTES = 0x08  # the code of uint8, in the third byte
SIDE = 28  # pixels of an image


class Examples(NamedTuple):
    """Images uint8 (N, 28, 28), labels uint8 (N,), and the names of the classes."""

    data: np.ndarray
    targets: np.ndarray
    classes: tuple[str, ...]


def examples(folder: Path, part: str, classes: tuple[str, ...]) -> Examples:
    """Of `part`, train or t10k. ValueError, OSError: files that are not as they should be."""
    images = read(folder / f"{part}-images-idx3-ubyte", (SIDE, SIDE))
    return Examples(images, read(folder / f"{part}-labels-idx1-ubyte", ()), classes)


def read(path: Path, each: tuple[int, ...]) -> np.ndarray:
    """The numbers, uint8 (N, *each). ValueError: other ones, or fewer or more than the head says.

    The head is two zero bytes, the type, the count of axes, and their lengths in 4 bytes each, the
    highest first.
    """
    with path.open("rb") as file:
        head = file.read(4)
        if head != bytes((0, 0, BYTES, 1 + len(each))):
            raise ValueError(f"{path.name} does not begin as it should")
        shape = tuple(int.from_bytes(file.read(4)) for _ in range(1 + len(each)))
        held = path.stat().st_size - file.tell()
        if shape[1:] != each or prod(shape) != held:
            size = " x ".join(map(str, shape))
            raise ValueError(f"{path.name} promises {size} bytes and holds {held}")
        return np.fromfile(file, np.uint8).reshape(shape)

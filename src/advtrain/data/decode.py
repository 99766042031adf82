"""Image files to pixels, in worker processes; nothing here imports torch, so they start fast."""

import os
import signal
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import parent_process
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from advtrain.files import naming
from advtrain.foreign import brief
from advtrain.machine import of_machine

FORMATS = ("JPEG", "PNG", "BMP", "PPM", "TIFF", "WEBP")
MOST = 1 << 26
"""Pixels of an image: 8192 x 8192. A header can promise more than any memory holds."""
VERSION = 1
"""Raised when the same file would decode to other pixels than before."""


class Recipe(NamedTuple):
    """mode: RGB or L. size: (height, width) of the result. cut: whether images of another size
    are resized, the short side to fit, and cut in the middle (`size` is then a square); else they
    are errors."""

    mode: str
    size: tuple[int, int]
    cut: bool


class Broken(Exception):
    """A file that is no usable image; the message is a sentence naming it."""


def decode(path: str, recipe: Recipe) -> np.ndarray:
    """Pixels uint8 (C, H, W). Resizing is bilinear with a low-pass filter, as torchvision's."""
    with _opened(path) as file:
        image = file.convert(recipe.mode)
    height, width = recipe.size
    if image.size != (width, height):
        if not recipe.cut:
            raise Broken(
                f"{path} is {image.height} x {image.width} pixels, others {height} x {width}. Set "
                "dataset.image_size (32 or 224, say) to bring all images to one size."
            )
        if height * max(image.size) / min(image.size) * height > MOST:
            raise Broken(
                f"{path} is {image.height} x {image.width} pixels, too long and thin to be resized "
                "by its short side. Replace or remove it."
            )
        image = _fit(image, height)
    return np.atleast_3d(np.asarray(image)).transpose(2, 0, 1)


def _fit(image: Image.Image, side: int) -> Image.Image:
    """The middle square, `side` pixels; rounds as torchvision's Resize and CenterCrop do."""
    short = min(image.size)
    width, height = (side if n == short else int(side * n / short) for n in image.size)
    image = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = round((width - side) / 2), round((height - side) / 2)
    return image.crop((left, top, left + side, top + side))


def fill(target: str, first: int, paths: list[str], recipe: Recipe) -> str | None:
    """Decode `paths` into rows from `first` of the array file `target`; the complaint, if any."""
    rows = np.lib.format.open_memmap(target, mode="r+")
    try:
        for row, path in enumerate(paths, start=first):
            rows[row] = decode(path, recipe)
    except Broken as error:
        return str(error)
    return None


def size_of(path: Path) -> tuple[int, int]:
    """(height, width), from the header alone. Broken: it is no image."""
    with _opened(path) as image:
        return image.height, image.width


@contextmanager
def _opened(path: str | Path) -> Iterator[Image.Image]:
    """An image file, its pixels not read yet. Broken: whatever goes wrong in the block, or more
    pixels than MOST. OSError, MemoryError: the machine cannot read it now.

    Only FORMATS are known: what else Pillow opens may start other programs, as PostScript does.
    """
    try:
        with (
            naming(Path(path)),
            warnings.catch_warnings(action="ignore"),
            Image.open(path, formats=FORMATS) as image,
        ):
            if image.width * image.height > MOST:
                raise ValueError(f"{image.height} x {image.width} pixels, more than {MOST:,}")
            yield image
    except Exception as error:  # a damaged file fails in any way, deep inside a decoder
        if of_machine(error):
            raise
        raise Broken(
            f"{path} cannot be read as an image ({brief(error)}). Replace or remove it."
        ) from error


def start_worker() -> None:
    """Leave Ctrl-C to the parent, and end when the parent ends, however it does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = parent_process()

    def follow() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=follow, daemon=True).start()

"""Image files to pixels, in worker processes; nothing here imports torch, so they start fast."""

import os
import signal
import threading
from multiprocessing import parent_process
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

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
    try:
        with Image.open(path) as file:
            image = file.convert(recipe.mode)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise Broken(
            f"{path} cannot be read as an image ({error}). Replace or remove it."
        ) from error
    height, width = recipe.size
    if image.size != (width, height):
        if not recipe.cut:
            raise Broken(
                f"{path} is {image.height} x {image.width} pixels, others {height} x {width}. Set "
                "dataset.image_size (32 or 224, say) to bring all images to one size."
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
    try:
        with Image.open(path) as image:
            return image.height, image.width
    except (OSError, ValueError, SyntaxError) as error:
        raise Broken(
            f"{path} cannot be read as an image ({error}). Replace or remove it."
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

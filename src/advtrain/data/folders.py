"""Folders of images: root/{train, val, test}/<class>/*, classes in alphabetical order."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from advtrain.data.errors import DataError

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".ppm", ".pgm", ".tif", ".tiff", ".webp"}


class Listing(NamedTuple):
    """N image files, by class and then by name, and their labels."""

    paths: list[Path]
    labels: list[int]


def class_names(train: Path) -> tuple[str, ...]:
    """The folders in `train`, sorted: the order of the labels. Hidden ones are left out."""
    names = sorted(e.name for e in os.scandir(train) if e.is_dir() and not e.name.startswith("."))
    if not names:
        raise DataError(
            f"{train} has no folder in it; each class needs one, train/<class>/<image>."
        )
    return tuple(names)


def listing(part: Path, *, classes: Sequence[str], among: bool) -> Listing:
    """The images of `classes` in the folder `part`; with `among`, other folders are left alone.

    DataError: there is a folder that is no class (a label nobody learnt), or no image at all.
    """
    if not among:
        strange = sorted(set(class_names(part)) - set(classes))
        if strange:
            raise DataError(
                f"{part} has a folder {strange[0]!r} that train/ has not, so its images have no "
                "label. Both need the same class folders."
            )
    paths: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        found = sorted(_images(part / name))
        paths += found
        labels += [label] * len(found)
    if not paths:
        kinds = " ".join(sorted(SUFFIXES))
        raise DataError(f"{part} has class folders but no image in them (looked for {kinds}).")
    return Listing(paths, labels)


def parts(root: Path) -> tuple[Path, Path | None, Path]:
    """The folders of train, validation (where there is one) and test.

    `val` is the test set where no `test` is, as in ImageNet, whose own test has no labels.
    """
    if not root.is_dir():
        raise DataError(
            f"dataset.root is {root}, which is no folder. Point it, or the variable ADVTRAIN_DATA, "
            "at a folder with train/<class>/<image> and test/<class>/<image>."
        )
    train, val, test = (root / name for name in ("train", "val", "test"))
    present = sorted(e.name for e in os.scandir(root) if e.is_dir() and not e.name.startswith("."))
    if not train.is_dir() or not (val.is_dir() or test.is_dir()):
        raise DataError(
            f"dataset.root is {root}, which needs the folders train and test (or val), each with "
            f"<class>/<image>; it has {', '.join(present[:5]) or 'no folder'}."
        )
    if not test.is_dir():
        return train, None, val
    return train, (val if val.is_dir() else None), test


def _images(where: Path) -> list[Path]:
    if not where.is_dir():
        return []
    return [
        Path(e.path)
        for e in os.scandir(where)
        if e.is_file() and Path(e.name).suffix.lower() in SUFFIXES and not e.name.startswith(".")
    ]

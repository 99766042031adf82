"""Images in folders, decoded once: anyone's own, and the 100 classes of ImageNet."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from advtrain.data import cache as caches
from advtrain.data import decode, folders
from advtrain.data.assembly import Assembly, Part
from advtrain.data.augment import Augment, Size
from advtrain.data.errors import DataError
from advtrain.data.folders import Listing
from advtrain.data.split import Data
from advtrain.ranges import Count, Natural


def imagefolder(
    device: torch.device,
    seed: int,
    *,
    root: str,
    download: bool,
    train_size: Count | None,
    test_size: Count | None,
    max_train_size: Count | None,
    max_test_size: Count | None,
    validation: Natural,
    augment: Augment,
    subset: Literal["imagenet100"] | None,
    channels: Literal[1, 3],
    image_size: Count | None,
    resize: Count | None,
    cache: str | None,
    device_limit: Natural,
    workers: Natural,
) -> Data:
    """root/{train, val, test}/<class>/<image>; labels number train's folders alphabetically.

    Where both are there, `val` is the validation split (`validation` is then unused) and `test`
    the test set; else the one that is there is the test set. subset: only the classes in
    advtrain/data/<subset>_classes.txt. image_size: height and width that the network sees, cut
    from the middle after the short side was made `resize` (null: image_size); null: all images
    have one size, and keep it. Images that are used are decoded once, by `workers` processes
    (0: one per core), into `cache` (null: root/.advtrain-cache, or the user's cache folder); up to
    `device_limit` bytes of pixels live on the device, more are read ahead from there.
    DataError: folders or images are missing or broken, or `download` is asked for.
    """
    if download:
        raise DataError(
            "dataset.download is true, but folders of images have no address to be fetched from. "
            "Set dataset.download=false and point dataset.root at the folder."
        )
    where = Path(root).expanduser().absolute()
    try:
        train, val, test = folders.parts(where)
        classes = folders.class_names(train) if subset is None else _subset(subset, train, test)
        find = partial(folders.listing, classes=classes, among=subset is not None)
        listed = find(train)
        recipe, size = _sizes(listed.paths[0], "RGB" if channels == 3 else "L", image_size, resize)
        files = _Files(recipe, where, caches.folder(where, cache), workers)
        assembly = Assembly(
            name=f"the folder {where}",
            classes=classes,
            device=torch.device(device),
            seed=seed,
            train_size=train_size,
            test_size=test_size,
            max_train_size=max_train_size,
            max_test_size=max_test_size,
            validation=validation,
            augment=augment,
            size=size,
            device_limit=device_limit,
        )
        own = None if val is None else files.part(find(val))
        return assembly(files.part(listed), files.part(find(test)), own)
    except decode.Broken as error:
        raise DataError(str(error)) from error
    except OSError as error:
        raise DataError(
            f"dataset.root is {where}, and {error.filename or 'a file in it'} cannot be read "
            f"({error.strerror or error})."
        ) from error


@dataclass(frozen=True)
class _Files:
    """How the files of this data set become pixels."""

    recipe: decode.Recipe
    root: Path
    cache: Path
    workers: int

    def part(self, listing: Listing) -> Part:
        return Part(torch.tensor(listing.labels), partial(self._pixels, listing.paths))

    def _pixels(self, paths: Sequence[Path], rows: np.ndarray) -> Tensor:
        chosen = [paths[row] for row in rows]
        array = caches.decoded(
            chosen, self.recipe, root=self.root, where=self.cache, workers=self.workers
        )
        return torch.from_numpy(array)


def _subset(name: str, train: Path, test: Path) -> tuple[str, ...]:
    text = resources.files("advtrain.data").joinpath(f"{name}_classes.txt").read_text("utf-8")
    classes = sorted(text.split())
    for part in (train, test):
        missing = [each for each in classes if not (part / each).is_dir()]
        if missing:
            raise DataError(
                f"{name} needs {len(classes)} class folders in {part}; {len(missing)} of them are "
                f"not there, the first is {missing[0]}. Point dataset.root at ImageNet's folder, "
                "with train/<wnid> and val/<wnid>."
            )
    return tuple(classes)


def _sizes(
    example: Path, mode: str, image_size: int | None, resize: int | None
) -> tuple[decode.Recipe, Size]:
    """How to decode, and what the network sees; without `image_size`, the size of `example`."""
    if image_size is None:
        if resize is not None:
            raise DataError(
                f"dataset.resize is {resize}, but dataset.image_size is null. Set image_size to "
                f"what the network shall see, at most {resize}."
            )
        size = decode.size_of(example)
        return decode.Recipe(mode, size, cut=False), size
    side = image_size if resize is None else resize
    if side < image_size:
        raise DataError(
            f"dataset.resize is {side}, less than dataset.image_size, {image_size}. It is the "
            "short side before the cut: make it at least as large."
        )
    return decode.Recipe(mode, (side, side), cut=True), (image_size, image_size)

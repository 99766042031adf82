"""The data sets: `(device, seed, *, keys of conf/dataset/<name>.yaml) -> Data`.

`seed` is that of the class-balanced order in which examples come, and of which `train_size` and
`test_size` take the first; `max_train_size` and `max_test_size` are bounds on those, for whatever
set. Which images are for validation is fixed, whatever the seed. Pixels are as published:
normalisation is the network's first layer, so that eps means the same everywhere.
"""

from functools import partial

import numpy as np
import torch

from advtrain.data import digits as embedded
from advtrain.data import readers
from advtrain.data.assembly import Assembly, Part
from advtrain.data.augment import Augment
from advtrain.data.order import balanced_order
from advtrain.data.readers import Raw, Source
from advtrain.data.split import Data
from advtrain.ranges import Count, Natural


def digits(
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
    kept: Count | None = None,
) -> Data:
    """1,797 handwritten digits of 8 x 8 pixels (UCI optdigits' test file), shipped in scikit-learn.

    36 of each class are the test set, drawn once and for all; 1,437 remain. Grey levels 0 to 16
    become 0 to 255. `kept`: so many of the classes, the first. root and download are keys of every
    set; here nothing is read or fetched.
    """
    pixels, labels = embedded.load()
    images = torch.from_numpy(np.round(pixels * 255 / 16).astype(np.uint8)).view(-1, 1, 8, 8)
    raw = Raw(images, torch.from_numpy(labels.astype(np.int64)))
    tested = np.sort(balanced_order(raw.labels, seed=0)[:360])
    rest = np.setdiff1d(np.arange(len(labels)), tested)
    count = len(readers.DIGITS) if kept is None else min(kept, len(readers.DIGITS))
    rest, tested = (rows[labels[rows] < count] for rows in (rest, tested))
    assembly = Assembly(
        name="digits",
        classes=readers.DIGITS[:count],
        device=torch.device(device),
        seed=seed,
        train_size=train_size,
        test_size=test_size,
        max_train_size=max_train_size,
        max_test_size=max_test_size,
        validation=validation,
        augment=augment,
    )
    train, test = (_part(raw.only(torch.from_numpy(rows))) for rows in (rest, tested))
    return assembly(train, test)


def published(
    device: torch.device,
    seed: int,
    *,
    source: Source,
    root: str,
    download: bool,
    train_size: Count | None,
    test_size: Count | None,
    max_train_size: Count | None,
    max_test_size: Count | None,
    validation: Natural,
    augment: Augment,
) -> Data:
    """A set that torchvision reads: `source` is one of `advtrain.data.readers`.

    root: the folder in torchvision's layout; download: fetch what is missing there. Raises
    DataError, with what is missing, where it was looked for and how to get it.
    """
    train, test, classes = readers.read(source, root, download)
    assembly = Assembly(
        name=source.name,
        classes=classes,
        device=torch.device(device),
        seed=seed,
        train_size=train_size,
        test_size=test_size,
        max_train_size=max_train_size,
        max_test_size=max_test_size,
        validation=validation,
        augment=augment,
    )
    return assembly(_part(train), _part(test))


def _part(raw: Raw) -> Part:
    return Part(raw.labels, partial(_pick, raw.images))


def _pick(images: torch.Tensor, rows: np.ndarray) -> torch.Tensor:
    return images if len(rows) == len(images) else images[torch.from_numpy(rows)]

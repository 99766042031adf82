"""Published data sets as plain tensors, with what goes wrong said in a sentence.

torchvision fetches them all, and reads them but for MNIST and its like (`idx`). A download is
checked against its md5; so are, each time, the files of CIFAR, SVHN and STL-10 (MNIST's only when
they are fetched: there is no checksum of the unpacked ones).
"""

import logging
import socket
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from advtrain.data import idx
from advtrain.data.errors import DataError
from advtrain.foreign import words
from advtrain.lock import locked
from advtrain.machine import of_machine
from advtrain.portions import out_of_memory

log = logging.getLogger(__name__)

DIGITS = tuple("0123456789")
CLOTHES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)


class Raw(NamedTuple):
    """Images uint8 (N, C, H, W) and labels int64 (N,) on the host, in file order."""

    images: Tensor
    labels: Tensor

    def only(self, chosen: Tensor) -> "Raw":
        """The examples at positions, or where a mask (N,) holds, in order."""
        return Raw(self.images[chosen], self.labels[chosen])


class Source(NamedTuple):
    """How to open one set. open(root, train, download) gives an object with `data` and `targets`
    or `labels`, as torchvision's have; `files` are what it reads, relative to the root; `kept`:
    only labels below it are (null: all)."""

    name: str
    files: tuple[str, ...]
    open: Callable[[str, bool, bool], Any]
    kept: int | None = None


def mnist() -> Source:
    """Handwritten digits (LeCun et al. 1998): 60,000 and 10,000, 28 x 28 grey."""
    return _idx("mnist", "MNIST", DIGITS)


def mnist01() -> Source:
    """The zeros and ones of MNIST: 12,665 and 2,115 images."""
    return _idx("mnist01", "MNIST", DIGITS)._replace(kept=2)


def fashion_mnist() -> Source:
    """Pieces of clothing (Xiao et al. 2017), in the sizes of MNIST."""
    return _idx("fashion_mnist", "FashionMNIST", CLOTHES)


def cifar10() -> Source:
    """50,000 and 10,000 photographs (Krizhevsky 2009), 32 x 32 colour, in the Python version."""
    return _cifar("cifar10", _torchvision().CIFAR10)


def cifar100() -> Source:
    """CIFAR-100, the fine labels."""
    return _cifar("cifar100", _torchvision().CIFAR100)


def svhn() -> Source:
    """House numbers (Netzer et al. 2011), cropped; label 10 of the files means 0, and is 0 here."""
    reader = _torchvision().SVHN
    return Source(
        "svhn",
        ("train_32x32.mat", "test_32x32.mat"),
        lambda root, train, fetch: reader(root, split="train" if train else "test", download=fetch),
    )


def stl10() -> Source:
    """The labelled 5,000 and 8,000 photographs (Coates et al. 2011), 96 x 96 colour."""
    whole: Any = _torchvision().STL10

    class Labelled(whole):
        """Without the 2.8 GB of unlabelled images, which nobody here reads."""

        train_list = whole.train_list[:2]

    names = [file for file, _ in (*Labelled.train_list, *Labelled.test_list)]
    return Source(
        "stl10",
        tuple(f"{Labelled.base_folder}/{file}" for file in (*names, Labelled.class_names_file)),
        lambda root, train, fetch: Labelled(
            root, split="train" if train else "test", download=fetch
        ),
    )


def _torchvision() -> Any:
    """Its data sets: more than a second to import, which sets that are read here do without."""
    from torchvision import datasets

    return datasets


def _idx(name: str, folder: str, classes: tuple[str, ...]) -> Source:
    """`folder`: of the files under the root, and torchvision's name of who fetches them."""
    parts = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")

    def opened(root: str, train: bool, fetch: bool) -> Any:
        if fetch:
            getattr(_torchvision(), folder)(root, train=train, download=True)
        return idx.examples(Path(root) / folder / "raw", "train" if train else "t10k", classes)

    return Source(name, tuple(f"{folder}/raw/{part}-ubyte" for part in parts), opened)


def _cifar(name: str, reader: type[Any]) -> Source:
    names = [file for file, _ in (*reader.train_list, *reader.test_list)]
    return Source(
        name,
        tuple(f"{reader.base_folder}/{file}" for file in (*names, reader.meta["filename"])),
        lambda root, train, fetch: reader(root, train=train, download=fetch),
    )


def read(source: Source, root: str, download: bool) -> tuple[Raw, Raw, tuple[str, ...]]:
    """Training and test examples and the names of the classes; fetches files if that is allowed.

    DataError: files are missing, cannot be fetched, or are not what they should be.
    """
    try:
        return _open(source, root)
    except DataError as error:
        if not download:
            raise DataError(f"{error} Or set dataset.download=true to fetch the files.") from error
        _fetch(source, root, str(error))
    return _open(source, root)


def _open(source: Source, root: str) -> tuple[Raw, Raw, tuple[str, ...]]:
    where = Path(root).expanduser().absolute()
    missing = [file for file in source.files if not (where / file).is_file()]
    if missing:
        more = f" (with {len(missing) - 1} more)" if missing[1:] else ""
        raise DataError(
            f"{source.name}: {missing[0]}{more} was looked for in {where} (dataset.root), in "
            "vain. Point dataset.root, or the variable ADVTRAIN_DATA, at the folder that has them."
        )
    try:
        with _quiet():
            train, test = (source.open(str(where), part, False) for part in (True, False))
            parts = _raw(train), _raw(test)
    except Exception as error:  # a foreign file can fail anywhere in a reader
        if of_machine(error) or out_of_memory(error):
            raise
        raise DataError(
            f"{source.name}: the files in {where} (dataset.root) are damaged or not the original "
            f"ones ({_brief(error)}). Remove {', '.join(source.files)} and get them again."
        ) from error
    classes = tuple(getattr(train, "classes", DIGITS))
    for raw, part in zip(parts, ("training", "test"), strict=True):
        _verify(source.name, raw, part, len(classes))
    if source.kept is None:
        return *parts, classes
    kept, rest = (raw.only(raw.labels < source.kept) for raw in parts)
    return kept, rest, classes[: source.kept]


def _raw(dataset: Any) -> Raw:
    labels = dataset.targets if hasattr(dataset, "targets") else dataset.labels
    pixels = dataset.data
    if pixels.ndim == 3:  # MNIST has no axis of channels
        pixels = pixels[:, None]
    elif pixels.shape[-1] == 3:  # CIFAR, the channels last
        pixels = pixels.transpose(0, 3, 1, 2)
    images = torch.from_numpy(np.ascontiguousarray(pixels, dtype=np.uint8))
    return Raw(images, torch.from_numpy(np.asarray(labels, dtype=np.int64).reshape(-1)))


def _verify(name: str, raw: Raw, part: str, classes: int) -> None:
    if len(raw.images) != len(raw.labels) or not len(raw.labels):
        raise DataError(
            f"{name}: the {part} files hold {len(raw.images)} images and {len(raw.labels)} labels; "
            "they do not belong together. Get them again."
        )
    low, high = int(raw.labels.min()), int(raw.labels.max())
    if low < 0 or high >= classes:
        raise DataError(
            f"{name}: the {part} labels run from {low} to {high}, but there are {classes} classes "
            f"(0 to {classes - 1}). These are not the files of {name}."
        )


def _fetch(source: Source, root: str, why: str) -> None:
    where = Path(root).expanduser().absolute()
    log.info("fetching %s into %s", source.name, where)
    try:
        with locked(where / f".{source.name}.lock"), _patience(seconds=60), _quiet():
            for part in (True, False):
                source.open(str(where), part, True)
    except Exception as error:  # urllib, tarfile and the readers raise many kinds
        raise DataError(
            f"{why} Fetching failed as well ({_brief(error)}): connect to the network, or copy "
            f"the files there and set dataset.download=false."
        ) from error


def _brief(error: Exception) -> str:
    """The end of a message: where several mirrors failed, the last reason."""
    lines = [line for line in words(error).splitlines() if line.strip()]
    return lines[-1].strip().rstrip(".") if lines else type(error).__name__


@contextmanager
def _patience(seconds: float) -> Iterator[None]:
    """A silent server is an error after this time; urllib would wait for ever."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the readers' progress bars, prints and warnings (the old pickles cause some)."""
    with redirect_stdout(StringIO()), redirect_stderr(StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield

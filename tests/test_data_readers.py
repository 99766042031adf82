"""Published sets, read from tiny files in their true formats through the public function."""

import errno
import urllib.error
import urllib.request
from pathlib import Path

import data_files
import numpy as np
import pytest
import torch
from torchvision import datasets

from advtrain.data import readers
from advtrain.data.augment import ShiftFlip
from advtrain.data.errors import DataError
from advtrain.data.sets import published
from advtrain.data.split import Data

PLAIN = ShiftFlip(pad=0, fill="zeros", flip=False)


def load(source: readers.Source, root: Path, **changes) -> Data:
    keys = dict.fromkeys(["train_size", "test_size", "max_train_size", "max_test_size"])
    keys |= {"root": str(root), "download": False, "validation": 0, "augment": PLAIN}
    return published(torch.device("cpu"), 0, source=source, **keys | changes)


def holds(split, images: np.ndarray, labels: np.ndarray) -> bool:
    """Whether the split is these examples, once put in the order of the file."""
    x, y = split.take(split.source.argsort()).batch(slice(None))
    expected = torch.from_numpy(images).reshape(x.shape).float() / 255
    return torch.equal(x, expected) and y.tolist() == labels.tolist()


@pytest.fixture
def offline(monkeypatch):
    def refuse(*_, **__):
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)


@pytest.fixture
def cifar(tmp_path, monkeypatch):
    """CIFAR-10 in little, with torchvision's checksums made those of the little files."""
    batches = dict.fromkeys([f"data_batch_{i}" for i in range(1, 6)], 20) | {"test_batch": 30}
    written = data_files.write_cifar(tmp_path, "cifar-10-batches-py", batches, "labels")
    where = tmp_path / "cifar-10-batches-py"
    trust_cifar(monkeypatch, datasets.CIFAR10, where, [*batches])
    return tmp_path, written


def trust_cifar(monkeypatch, reader, where: Path, names: list[str]) -> None:
    sums = [[name, data_files.md5(where / name)] for name in names]
    monkeypatch.setattr(reader, "train_list", sums[:-1])
    monkeypatch.setattr(reader, "test_list", sums[-1:])
    meta = reader.meta | {"md5": data_files.md5(where / reader.meta["filename"])}
    monkeypatch.setattr(reader, "meta", meta)


@pytest.mark.parametrize(
    ("source", "folder"),
    [(readers.mnist, "MNIST"), (readers.fashion_mnist, "FashionMNIST")],
)
def test_idx_files_come_out_as_written(tmp_path, source, folder):
    train, test = data_files.write_idx(tmp_path, folder)
    data = load(source(), tmp_path)
    assert holds(data.train, *train) and holds(data.test, *test)
    assert data.shape == (1, 28, 28) and len(data.classes) == 10


def test_mnist_classes_are_named_by_their_digits(tmp_path):
    data_files.write_idx(tmp_path, "MNIST")
    assert load(readers.mnist(), tmp_path).classes == tuple("0123456789")


def test_zeros_and_ones_are_two_classes(tmp_path):
    (images, labels), _ = data_files.write_idx(tmp_path, "MNIST")
    data = load(readers.mnist01(), tmp_path)
    assert data.classes == ("0", "1")
    assert holds(data.train, images[labels < 2], labels[labels < 2])


def test_cifar10_joins_its_five_batches(cifar):
    root, written = cifar
    data = load(readers.cifar10(), root)
    train = [written[f"data_batch_{i}"] for i in range(1, 6)]
    images, labels = (np.concatenate(each) for each in zip(*train, strict=True))
    assert holds(data.train, images, labels) and holds(data.test, *written["test_batch"])
    assert data.classes[0] == "class0"


def test_cifar100_has_fine_labels(tmp_path, monkeypatch):
    batches = {"train": 200, "test": 100}
    written = data_files.write_cifar(tmp_path, "cifar-100-python", batches, "fine_labels")
    trust_cifar(monkeypatch, datasets.CIFAR100, tmp_path / "cifar-100-python", [*batches])
    data = load(readers.cifar100(), tmp_path)
    assert holds(data.train, *written["train"]) and len(data.classes) == 100


def test_svhn_label_ten_is_the_digit_zero(tmp_path, monkeypatch):
    train, test = data_files.write_svhn(tmp_path)
    sums = {
        part: ["", f"{part}_32x32.mat", data_files.md5(tmp_path / f"{part}_32x32.mat")]
        for part in ("train", "test")
    }
    monkeypatch.setattr(datasets.SVHN, "split_list", sums)
    data = load(readers.svhn(), tmp_path)
    assert holds(data.train, *train) and holds(data.test, *test)


def test_stl10_needs_no_unlabelled_images(tmp_path, monkeypatch):
    train, test = data_files.write_stl10(tmp_path)
    where = tmp_path / "stl10_binary"
    for part, name in (("train_list", "train"), ("test_list", "test")):
        files = [f"{name}_X.bin", f"{name}_y.bin"]
        sums = [[file, data_files.md5(where / file)] for file in files]
        absent = [["unlabeled_X.bin", ""]] if name == "train" else []
        monkeypatch.setattr(datasets.STL10, part, [*sums, *absent])
    data = load(readers.stl10(), tmp_path)
    assert holds(data.train, *train) and holds(data.test, *test)
    assert data.shape == (3, 96, 96)


def test_missing_files_are_named_with_where_and_how(tmp_path):
    with pytest.raises(DataError, match=r"(?s)data_batch_1.*ADVTRAIN_DATA.*download=true") as error:
        load(readers.cifar10(), tmp_path / "absent")
    assert str(tmp_path / "absent") in str(error.value)


def test_a_failed_download_is_a_sentence(tmp_path, offline, capfd):
    for source in (readers.mnist(), readers.cifar10(), readers.svhn(), readers.stl10()):
        with pytest.raises(DataError, match=r"Fetching failed.*no route to host.*network"):
            load(source, tmp_path, download=True)
    assert capfd.readouterr() == ("", "")


def test_files_that_are_there_are_never_fetched(tmp_path, offline):
    data_files.write_idx(tmp_path, "MNIST")
    assert len(load(readers.mnist(), tmp_path, download=True).train) == 60


@pytest.mark.parametrize("kept", [0, 3, 500])
def test_a_truncated_idx_file_is_refused(tmp_path, kept):
    data_files.write_idx(tmp_path, "MNIST")
    path = tmp_path / "MNIST/raw/train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(DataError, match=r"damaged or not the original"):
        load(readers.mnist(), tmp_path)


def test_a_foreign_file_fails_torchvisions_checksum(cifar):
    root, _ = cifar
    path = root / "cifar-10-batches-py/data_batch_3"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(DataError, match=r"damaged or not the original"):
        load(readers.cifar10(), root)


def test_the_real_checksums_are_in_force(tmp_path):
    batches = dict.fromkeys([f"data_batch_{i}" for i in range(1, 6)], 20) | {"test_batch": 30}
    data_files.write_cifar(tmp_path, "cifar-10-batches-py", batches, "labels")
    with pytest.raises(DataError, match=r"damaged or not the original"):
        load(readers.cifar10(), tmp_path)


def test_labels_of_another_set_are_refused(tmp_path):
    data_files.write_idx(tmp_path, "MNIST")
    path = tmp_path / "MNIST/raw/t10k-labels-idx1-ubyte"
    path.write_bytes(path.read_bytes()[:-1] + bytes([17]))
    with pytest.raises(DataError, match=r"test labels run from 0 to 17, but there are 10 classes"):
        load(readers.mnist(), tmp_path)


def test_images_and_labels_must_match_in_number(tmp_path):
    data_files.write_idx(tmp_path, "MNIST")
    path = tmp_path / "MNIST/raw/train-labels-idx1-ubyte"
    content = path.read_bytes()
    path.write_bytes(content[:4] + np.array([50], dtype=">i4").tobytes() + content[8:58])
    with pytest.raises(DataError, match=r"60 images and 50 labels"):
        load(readers.mnist(), tmp_path)


def test_pickles_of_old_versions_do_not_replace_the_files_that_were_looked_for(tmp_path):
    train, _ = data_files.write_idx(tmp_path, "MNIST")
    old = tmp_path / "MNIST" / "processed"
    old.mkdir()
    for name in ("training.pt", "test.pt"):
        torch.save((torch.zeros(9, 28, 28, dtype=torch.uint8), torch.arange(9)), old / name)
    assert holds(load(readers.mnist(), tmp_path).train, *train)


@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error"), MemoryError()])
def test_what_cannot_be_read_now_is_not_called_damaged(tmp_path, monkeypatch, error):
    def fail(*_):
        raise error

    data_files.write_idx(tmp_path, "MNIST")
    monkeypatch.setattr("advtrain.data.idx.read", fail)
    with pytest.raises(type(error)) as raised:
        load(readers.mnist(), tmp_path)
    assert raised.value is error

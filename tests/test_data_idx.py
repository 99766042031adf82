"""IDX files: read as torchvision reads them, and refused where they are not as their head says."""

import numpy as np
import pytest
import torchvision
from data_files import write_idx

from advtrain.data import idx

CLASSES = tuple("0123456789")


@pytest.fixture
def raw(tmp_path):
    write_idx(tmp_path, "MNIST")
    return tmp_path / "MNIST" / "raw"


@pytest.mark.parametrize("part", ["train", "t10k"])
def test_holds_what_torchvision_reads(raw, part):
    found = idx.examples(raw, part, CLASSES)
    theirs = torchvision.datasets.MNIST(str(raw.parent.parent), train=part == "train")
    assert np.array_equal(found.data, theirs.data.numpy()) and found.data.dtype == np.uint8
    assert np.array_equal(found.targets, theirs.targets.numpy())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda old: b"", "does not begin"),
        (lambda old: b"\0\0\x0d\x03" + old[4:], "does not begin"),  # floats
        (lambda old: b"\0\0\x08\x01" + old[4:], "does not begin"),  # labels
        (lambda old: old[:-1], "promises"),
        (lambda old: old + b"\0", "promises"),
        (lambda old: old[:8] + b"\xff\xff\xff\xff" + old[12:], "promises"),
        (lambda old: old[:12] + b"\0\0\0\x1d" + old[16:], "promises"),  # 29 columns
        (lambda old: old[:6], "promises"),
    ],
)
def test_refuses_what_its_head_does_not_describe(raw, change, said):
    path = raw / "train-images-idx3-ubyte"
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ValueError, match=said):
        idx.read(path, (28, 28))

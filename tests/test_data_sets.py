"""Splits and subsets, on the embedded digits; and the configuration of every set."""

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from advtrain import signatures
from advtrain.config import FACTS
from advtrain.data.augment import ShiftFlip
from advtrain.data.errors import DataError
from advtrain.data.order import balanced_order, first_of_each_class
from advtrain.data.sets import digits
from advtrain.data.split import Data

PLAIN = ShiftFlip(pad=0, fill="zeros", flip=False)
CONF = Path(__file__).parents[1] / "conf/dataset"


def load(seed: int = 0, **changes) -> Data:
    keys = dict.fromkeys(["train_size", "test_size", "max_train_size", "max_test_size"])
    keys |= {"root": "", "download": False, "validation": 200, "augment": PLAIN}
    return digits(torch.device("cpu"), seed, **keys | changes)


def fingerprints(split) -> set[bytes]:
    return {bytes(image) for image in split.store.fetch(slice(None)).flatten(1).numpy()}


def test_digits_are_the_published_images_in_256_levels():
    from sklearn.datasets import load_digits

    data = load()
    grey = {round(v * 255 / 16) for v in range(17)}
    assert set(data.train.store.fetch(slice(None)).unique().tolist()) <= grey
    published = {bytes(np.round(v * 255 / 16).astype(np.uint8)) for v in load_digits().data}
    shown = [fingerprints(part) for part in (data.train, data.validation, data.test)]
    assert set.union(*shown) == published


def test_digits_splits_have_fixed_sizes_and_share_no_image():
    data = load()
    assert [len(part) for part in (data.train, data.validation, data.test)] == [1237, 200, 360]
    assert torch.bincount(data.test.labels).tolist() == [36] * 10
    assert torch.bincount(data.validation.labels).tolist() == [20] * 10
    train, validation, test = map(fingerprints, (data.train, data.validation, data.test))
    assert not train & test and not validation & test and not train & validation


def test_zeros_and_ones_of_digits_are_split_as_they_are_among_all():
    data, everything = load(kept=2, validation=40), load()
    assert data.classes == ("0", "1")
    assert [len(part) for part in (data.train, data.validation, data.test)] == [248, 40, 72]
    for part in ("train", "validation", "test"):
        assert getattr(data, part).labels.max() == 1
        assert fingerprints(getattr(data, part)) < fingerprints(getattr(everything, part))


def test_no_seed_moves_an_image_to_another_split():
    for part in ("train", "validation", "test"):
        first, second = (getattr(load(seed), part).source.tolist() for seed in (0, 1))
        assert sorted(first) == sorted(second) and first != second


def test_validation_is_the_first_of_each_class_in_file_order():
    everything = load(validation=0)
    y = everything.train.take(everything.train.source.argsort()).labels
    expected = {i for k in range(10) for i in (y == k).nonzero()[:20, 0].tolist()}
    assert set(load().validation.source.tolist()) == expected
    assert len(everything.validation) == 0


def test_any_number_of_first_examples_is_balanced():
    for part in (load().train, load().validation, load().test):
        for n in (1, 7, 10, 95, 200):
            counts = torch.bincount(part.labels[:n], minlength=10)
            assert counts.max() - counts.min() <= 1


def test_a_smaller_train_size_takes_the_first_of_a_larger_one():
    small, large = load(train_size=50), load(train_size=500)
    assert small.train.source.tolist() == large.train.source[:50].tolist()
    assert load(seed=1, train_size=50).train.source.tolist() != small.train.source.tolist()


def test_bounds_lower_sizes_and_may_exceed_what_there_is():
    data = load(max_train_size=50, max_test_size=10_000)
    assert len(data.train) == 50 and len(data.test) == 360
    assert len(load(train_size=40, max_train_size=50).train) == 40
    assert len(load(train_size=400, max_train_size=50).train) == 50


def test_order_of_uneven_classes_uses_the_small_ones_up_first():
    y = torch.tensor([0] * 50 + [1] * 5 + [2] * 20)
    order = balanced_order(y, seed=3)
    assert sorted(order) == list(range(75))
    assert np.bincount(y[order[:15]]).tolist() == [5, 5, 5]
    assert np.bincount(y[order[:45]]).tolist() == [20, 5, 20]


def test_held_out_sizes_need_not_be_multiples_of_the_classes():
    y = torch.tensor([2, 0, 0, 1, 2, 1, 0, 2])
    assert first_of_each_class(y, 4, 3).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_size": 1400}, r"dataset.train_size is 1400, .* 1237 .*\(1437 less validation\)"),
        ({"test_size": 361}, r"dataset.test_size is 361, .* Allowed is 1 to 360"),
        ({"train_size": 0}, r"dataset.train_size is 0"),
        ({"validation": 1437}, r"dataset.validation is 1437, but digits has 1437"),
        ({"validation": 1420}, r"dataset.validation is 1420, .* class '8' of digits has 138"),
    ],
)
def test_impossible_sizes_are_refused(changes, message):
    with pytest.raises(DataError, match=message):
        load(**changes)


def test_the_summary_is_plain_and_says_how_the_split_was_made():
    assert load().summary() == {
        "train": 1237,
        "validation": 200,
        "test": 360,
        "shape": [1, 8, 8],
        "classes": 10,
        "split": "validation: the first 200 of train, by class, in file order",
        "augment": "ShiftFlip(pad=0, fill='zeros', flip=False)",
    }


@pytest.mark.parametrize("path", sorted(CONF.glob("*.yaml")), ids=lambda path: path.stem)
def test_a_set_is_configured_by_the_keys_of_its_function_and_the_facts(path):
    node = yaml.safe_load(path.read_text())
    signature = signatures.read(node["_target_"])
    assert signature.data == ("device", "seed")
    assert set(node) == {"_target_", *signature.keys, *FACTS["dataset"]}
    assert path.read_text().startswith("# ")


def test_every_named_set_has_a_configuration():
    assert {path.stem for path in CONF.glob("*.yaml")} == {
        *("digits", "digits01", "mnist", "mnist01", "fashion_mnist", "cifar10", "cifar100"),
        *("svhn", "stl10", "imagenet100", "imagefolder"),
    }


def test_digits_are_read_from_the_file_as_scikit_learn_reads_them(monkeypatch):
    from sklearn.datasets import load_digits

    from advtrain.data import digits as embedded

    pixels, labels = load_digits(return_X_y=True)
    for file in (embedded.FILE, "of another version"):
        monkeypatch.setattr(embedded, "FILE", file)
        found = embedded.load()
        assert np.array_equal(found[0], pixels) and np.array_equal(found[1], labels)

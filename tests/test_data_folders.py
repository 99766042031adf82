"""Folders of images: labels, sizes, the cache of decoded images, and what is said when it fails."""

import errno
import os
from importlib import resources
from pathlib import Path
from types import SimpleNamespace

import data_files
import numpy as np
import pytest
import torch
from PIL import Image
from running import run

from advtrain.data import cache, decode
from advtrain.data.augment import ShiftFlip
from advtrain.data.errors import DataError
from advtrain.data.imagefolder import imagefolder
from advtrain.data.loader import Batches
from advtrain.data.split import Data
from advtrain.data.store import Mapped, Resident

SHIFT = ShiftFlip(pad=2, fill="zeros", flip=True)


def load(root: Path, **changes) -> Data:
    optional = ["train_size", "test_size", "max_train_size", "max_test_size"]
    keys = dict.fromkeys([*optional, "subset", "image_size", "resize", "cache"])
    keys |= {"root": str(root), "download": False, "validation": 3, "augment": SHIFT}
    keys |= {"channels": 3, "device_limit": 2**31, "workers": 1}
    return imagefolder(torch.device("cpu"), 0, **keys | changes)


def pixels(split) -> np.ndarray:
    """Images uint8 (N, H, W, C) in the order of the files."""
    ordered = split.take(split.source.argsort())
    return ordered.store.fetch(slice(None)).permute(0, 2, 3, 1).numpy()


def caches(root: Path) -> set[Path]:
    return set((root / ".advtrain-cache").glob("*.npy"))


@pytest.fixture
def decoding(monkeypatch):
    """Counts the images that are decoded."""
    seen: list[str] = []

    def counted(path, recipe):
        seen.append(path)
        return original(path, recipe)

    original = decode.decode
    monkeypatch.setattr(decode, "decode", counted)
    return seen


def test_classes_are_the_folders_in_alphabetical_order(tmp_path):
    written = data_files.write_folder(tmp_path, {"train": 4, "test": 2})
    data = load(tmp_path, validation=0)
    assert data.classes == ("ant", "bee", "cat") and data.shape == (3, 8, 8)
    assert np.array_equal(pixels(data.train), np.concatenate([*written["train"].values()]))
    assert np.array_equal(pixels(data.test), np.concatenate([*written["test"].values()]))
    assert sorted(data.train.labels.tolist()) == [0] * 4 + [1] * 4 + [2] * 4


def test_val_is_the_test_set_where_there_is_no_test(tmp_path):
    written = data_files.write_folder(tmp_path, {"train": 4, "val": 2})
    data = load(tmp_path)
    assert np.array_equal(pixels(data.test), np.concatenate([*written["val"].values()]))
    assert [len(data.train), len(data.validation)] == [9, 3]


def test_val_beside_test_is_the_validation_split(tmp_path):
    written = data_files.write_folder(tmp_path, {"train": 4, "val": 2, "test": 1})
    data = load(tmp_path)
    assert np.array_equal(pixels(data.validation), np.concatenate([*written["val"].values()]))
    assert [len(data.train), len(data.test)] == [12, 3]
    assert data.summary()["split"] == "validation: a folder of its own"


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".JPEG"])
def test_images_are_what_pillow_decodes(tmp_path, suffix):
    data_files.write_folder(tmp_path, {"train": 2, "test": 1}, size=(16, 12), suffix=suffix)
    data = load(tmp_path, validation=0)
    files = sorted((tmp_path / "train").rglob(f"*{suffix}"))
    assert np.array_equal(pixels(data.train), np.stack([np.asarray(Image.open(f)) for f in files]))


def test_larger_images_are_resized_and_cut_as_torchvision_does(tmp_path):
    from torchvision import transforms

    data_files.write_folder(tmp_path, {"train": 2, "test": 2}, size=(30, 43))
    data = load(tmp_path, image_size=12, resize=16, validation=0)
    ordered = data.test.take(data.test.source.argsort())
    way = [transforms.Resize(16), transforms.CenterCrop(12), transforms.ToTensor()]
    files = sorted((tmp_path / "test").rglob("*.png"))
    expected = torch.stack([transforms.Compose(way)(Image.open(f)) for f in files])
    assert data.shape == (3, 12, 12)
    assert torch.equal(ordered.batch(slice(None))[0], expected)


def test_grey_images_keep_one_channel_if_asked(tmp_path):
    data_files.write_folder(tmp_path, {"train": 2, "test": 1})
    assert load(tmp_path, channels=1).shape == (1, 8, 8)


def test_mixed_sizes_need_an_image_size(tmp_path):
    data_files.write_folder(tmp_path, {"train": 2, "test": 1})
    Image.new("RGB", (20, 10)).save(tmp_path / "train/bee/x.png")
    with pytest.raises(DataError, match=r"x\.png is 10 x 20 .* 8 x 8\. Set dataset\.image_size"):
        load(tmp_path)
    assert load(tmp_path, image_size=6).shape == (3, 6, 6)


def test_images_from_a_file_train_bit_for_bit_as_from_memory(tmp_path):
    data_files.write_folder(tmp_path, {"train": 7, "test": 2}, size=(12, 12))
    keys = {"image_size": 10, "resize": 12, "train_size": 14}
    resident, mapped = (load(tmp_path, device_limit=limit, **keys) for limit in (2**31, 0))
    assert isinstance(resident.train.store, Resident) and isinstance(mapped.train.store, Mapped)
    for epoch in range(2):
        pairs = zip(*(Batches(d.train, 4, 7).epoch(epoch) for d in (resident, mapped)), strict=True)
        for (x, y), (u, v) in pairs:
            assert torch.equal(x, u) and torch.equal(y, v)
    for part in ("validation", "test"):
        left, right = (getattr(d, part).batch(slice(None)) for d in (resident, mapped))
        assert torch.equal(left[0], right[0]) and torch.equal(left[1], right[1])


def test_images_are_decoded_once(tmp_path, decoding):
    data_files.write_folder(tmp_path, {"train": 4, "test": 2})
    first = load(tmp_path)
    assert len(decoding) == len(set(decoding)) == 18
    second = load(tmp_path)
    assert len(decoding) == 18 and np.array_equal(pixels(first.train), pixels(second.train))


def test_only_what_is_used_is_decoded(tmp_path, decoding):
    data_files.write_folder(tmp_path, {"train": 6, "test": 4})
    load(tmp_path, train_size=3, max_test_size=3)
    assert len(decoding) == 3 + 3 + 3


def test_a_changed_image_is_decoded_again(tmp_path):
    data_files.write_folder(tmp_path, {"train": 3, "test": 1})
    before = load(tmp_path, validation=0)
    path = tmp_path / "train/ant/000.png"
    stat = path.stat()
    Image.new("RGB", (8, 8), (1, 2, 3)).save(path)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    after = load(tmp_path, validation=0)
    assert not np.array_equal(pixels(before.train)[0], pixels(after.train)[0])
    assert (pixels(after.train)[0] == [1, 2, 3]).all()


def test_other_decoding_has_another_cache(tmp_path):
    data_files.write_folder(tmp_path, {"train": 3, "test": 1})
    load(tmp_path)
    before = caches(tmp_path)
    load(tmp_path, image_size=6)
    assert len(caches(tmp_path) - before) == 2


def test_what_a_killed_writer_left_is_no_cache(tmp_path, monkeypatch):
    data_files.write_folder(tmp_path, {"train": 3, "test": 1})

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(decode, "fill", killed)
        with pytest.raises(KeyboardInterrupt):
            load(tmp_path)
    assert not caches(tmp_path) and not [*tmp_path.rglob("*.part")]
    for name in (path.stem for path in [*tmp_path.rglob("*.lock")]):  # killed without a clean-up
        (tmp_path / f".advtrain-cache/{name}.part").write_bytes(b"\x93NUMPY half an array")
    assert len(load(tmp_path).train) == 6
    assert not [*tmp_path.rglob("*.part")]


def test_a_truncated_cache_is_made_again(tmp_path):
    data_files.write_folder(tmp_path, {"train": 3, "test": 1})
    before = pixels(load(tmp_path).train)
    for path in caches(tmp_path):
        path.write_bytes(path.read_bytes()[:200])
    assert np.array_equal(pixels(load(tmp_path).train), before)


def test_worker_processes_fill_the_same_cache(tmp_path, monkeypatch):
    data_files.write_folder(tmp_path, {"train": 5, "test": 1})
    alone = pixels(load(tmp_path, cache=str(tmp_path / "one")).train)
    monkeypatch.setattr(cache, "CHUNK", 8)
    shared = load(tmp_path, cache=str(tmp_path / "two"), workers=2)
    assert np.array_equal(pixels(shared.train), alone)


def test_a_broken_image_in_a_worker_is_named(tmp_path, monkeypatch):
    data_files.write_folder(tmp_path, {"train": 5, "test": 1})
    (tmp_path / "train/cat/004.png").write_bytes(b"not a picture")
    monkeypatch.setattr(cache, "CHUNK", 8)
    with pytest.raises(DataError, match=r"cat/004\.png cannot be read as an image"):
        load(tmp_path, validation=0, workers=2)
    assert not caches(tmp_path)


@pytest.mark.parametrize("kept", [0, 40, 100])
def test_a_truncated_image_is_named(tmp_path, kept):
    data_files.write_folder(tmp_path, {"train": 2, "test": 1})
    path = tmp_path / "train/bee/001.png"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(DataError, match=r"bee/001\.png cannot be read as an image .* Replace"):
        load(tmp_path)


def test_caches_of_read_only_data_go_to_the_user(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    monkeypatch.setattr(os, "access", lambda *_: False)
    data_files.write_folder(tmp_path / "data", {"train": 2, "test": 1})
    load(tmp_path / "data")
    assert len([*(tmp_path / "user/advtrain").glob("*.npy")]) == 2
    assert not caches(tmp_path / "data")


def test_a_full_disk_is_noticed_before_it_is_full(tmp_path, monkeypatch):
    data_files.write_folder(tmp_path, {"train": 2, "test": 1})
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda _: SimpleNamespace(free=10))
    with pytest.raises(DataError, match=r"dataset\.cache"):
        load(tmp_path)


def test_a_cache_that_cannot_be_written_is_a_sentence(tmp_path):
    data_files.write_folder(tmp_path, {"train": 2, "test": 1})
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"cannot be kept in .*file/cache .* dataset\.cache"):
        load(tmp_path, cache=str(tmp_path / "file/cache"))


@pytest.mark.parametrize(
    ("parts", "changes", "message"),
    [
        ([], {}, r"needs the folders train and test \(or val\).* has no folder"),
        (["train/ant"], {}, r"needs the folders train and test"),
        (["train", "test"], {}, r"train has no folder in it"),
        (["train/ant", "test/ant"], {}, r"train has class folders but no image"),
        ([], {"download": True}, r"dataset\.download is true"),
        ([], {"root": "/nowhere/at/all"}, r"/nowhere/at/all, which is no folder.*ADVTRAIN_DATA"),
    ],
)
def test_what_is_missing_is_said(tmp_path, parts, changes, message):
    for part in parts:
        (tmp_path / part).mkdir(parents=True)
    with pytest.raises(DataError, match=message):
        load(**{"root": tmp_path} | changes)


def test_a_class_that_only_the_test_set_has_is_refused(tmp_path):
    data_files.write_folder(tmp_path, {"train": 2, "test": 1})
    (tmp_path / "test/dog").mkdir()
    with pytest.raises(DataError, match=r"has a folder 'dog' that train/ has not"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"resize": 16}, r"dataset\.resize is 16, but dataset\.image_size is null"),
        ({"resize": 4, "image_size": 8}, r"dataset\.resize is 4, less than dataset\.image_size, 8"),
        ({"validation": 6}, r"dataset\.validation is 6, but the folder"),
        ({"train_size": 4}, r"dataset\.train_size is 4, .* has 3 such images \(6 less validation"),
    ],
)
def test_sizes_that_cannot_be_are_refused(tmp_path, changes, message):
    data_files.write_folder(tmp_path, {"train": 2, "test": 1})
    with pytest.raises(DataError, match=message):
        load(tmp_path, **changes)


def test_imagenet100_takes_its_classes_from_imagenets_folders(tmp_path):
    text = resources.files("advtrain.data").joinpath("imagenet100_classes.txt").read_text()
    names = text.split()
    assert len(set(names)) == 100
    for part in ("train", "val"):
        for name in [*names, "n00000000"]:
            (tmp_path / part / name).mkdir(parents=True)
            Image.new("RGB", (9, 8)).save(tmp_path / part / name / "a.JPEG")
    data = load(tmp_path, subset="imagenet100", image_size=8, validation=0)
    assert data.classes == tuple(sorted(names)) and len(data.train) == len(data.test) == 100


def test_imagenet100_says_which_classes_are_missing(tmp_path):
    data_files.write_folder(tmp_path, {"train": 1, "val": 1})
    with pytest.raises(DataError, match=r"100 class folders in .*train; 100 of them are not there"):
        load(tmp_path, subset="imagenet100", image_size=8)


def made_anew(tmp_path, decoding, damage):
    data_files.write_folder(tmp_path, {"train": 4, "test": 2})
    before = pixels(load(tmp_path, validation=0).train)
    for path in caches(tmp_path):
        path.unlink()
        damage(path)
    decoding.clear()
    assert np.array_equal(pixels(load(tmp_path, validation=0).train), before)
    assert len(decoding) == 18


def as_archive(path):
    with path.open("wb") as stream:
        np.savez(stream, a=np.zeros(3, np.uint8))


@pytest.mark.parametrize(
    "damage",
    [as_archive, lambda path: path.write_bytes(b"PK\3\4"), lambda path: os.mkfifo(path)],
    ids=["archive", "half an archive", "pipe"],
)
def test_what_is_no_array_in_place_of_decoded_images_is_made_anew(tmp_path, decoding, damage):
    made_anew(tmp_path, decoding, damage)


def test_decoded_images_are_on_the_disk_before_their_name_is(tmp_path, monkeypatch):
    seen = []

    def noted(name, real):
        def call(*args):
            seen.append(name)
            return real(*args)

        return call

    data_files.write_folder(tmp_path, {"train": 4, "test": 2})
    for name in ("posix_fallocate", "fsync", "replace"):
        monkeypatch.setattr(os, name, noted(name, getattr(os, name)))
    load(tmp_path)
    assert seen == ["posix_fallocate", "fsync", "replace", "fsync"] * 2


def test_a_quota_is_met_before_a_page_without_room_ends_the_process(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    data_files.write_folder(tmp_path, {"train": 4, "test": 2})
    monkeypatch.setattr(os, "posix_fallocate", refuse)
    with pytest.raises(DataError, match=r"Disk quota exceeded.*Set dataset\.cache"):
        load(tmp_path)
    assert not caches(tmp_path) and not [*tmp_path.rglob("*.part")]


@pytest.mark.parametrize("place", ["open", "convert"])
def test_a_disk_that_fails_is_no_broken_image(tmp_path, monkeypatch, place):
    def fail(*_, **__):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    data_files.write_folder(tmp_path, {"train": 4, "test": 2})
    size = 8 if place == "convert" else None
    monkeypatch.setattr(*((Image, "open") if place == "open" else (Image.Image, "convert")), fail)
    with pytest.raises(DataError, match=r"ant/000\.png cannot be read \(Input/output error\)"):
        load(tmp_path, image_size=size)


def test_memory_that_runs_out_is_no_broken_image(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise MemoryError

    data_files.write_folder(tmp_path, {"train": 4, "test": 2})
    monkeypatch.setattr(Image.Image, "convert", fail)
    with pytest.raises(MemoryError):
        load(tmp_path)


def test_a_process_that_is_killed_while_it_decodes_is_told(tmp_path, monkeypatch, capsys):
    data_files.write_folder(tmp_path, {"train": 4, "test": 2})
    monkeypatch.setattr(cache, "CHUNK", 6)
    monkeypatch.setattr(decode, "start_worker", os.abort)
    line = ("dataset=imagefolder", f"dataset.root={tmp_path}", "dataset.validation=0")
    found = run(tmp_path / "out", *line, "dataset.workers=2", "logger=none", "model=linear")
    assert found["exit_code"] == 1 and "was killed" in found["error"]
    assert "Traceback" not in capsys.readouterr().err

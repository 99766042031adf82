"""Epochs: complete, reproducible, resumable, the same from memory and from a file."""

import pytest
import torch

from advtrain.data.augment import Augment, ResizedCrop, ShiftFlip
from advtrain.data.errors import DataError
from advtrain.data.loader import Batches
from advtrain.data.split import Split
from advtrain.data.store import Mapped, Resident

SHIFT = ShiftFlip(pad=2, fill="zeros", flip=True)
CROP = ResizedCrop((0.2, 1.0), (0.75, 4 / 3), True)
PLAIN = ShiftFlip(pad=0, fill="zeros", flip=False)


def split(n: int = 23, augment: Augment = SHIFT, mapped: bool = False, size=(8, 8)) -> Split:
    generator = torch.Generator().manual_seed(5)
    pixels = torch.randint(0, 256, (n, 3, 8, 8), generator=generator, dtype=torch.uint8)
    store = Mapped(pixels, torch.arange(n), torch.device("cpu")) if mapped else Resident(pixels)
    return Split(store, torch.arange(n), torch.arange(n), augment, size)


def same(left, right) -> bool:
    pairs = list(zip(left, right, strict=True))
    return all(torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) for a, b in pairs)


def test_an_epoch_shows_every_example_once():
    steps = list(Batches(split(), 5, seed=0).epoch(0))
    assert [len(y) for _, y in steps] == [5, 5, 5, 5, 3]
    assert sorted(torch.cat([y for _, y in steps]).tolist()) == list(range(23))


def test_images_stay_with_their_labels():
    data = split(augment=PLAIN)
    for x, y in Batches(data, 5, seed=0).epoch(2):
        assert torch.equal(x, data.batch(y)[0])


def test_a_batch_is_float_in_the_unit_interval():
    x, y = next(Batches(split(), 5, seed=0).epoch(0))
    assert x.dtype == torch.float32 and x.min() >= 0 and x.max() <= 1 and y.dtype == torch.int64


def test_the_short_last_batch_may_be_dropped():
    batches = Batches(split(), 5, seed=0, drop_last=True)
    assert len(batches) == 4
    assert [len(y) for _, y in batches.epoch(0)] == [5] * 4


def test_an_epoch_is_a_function_of_seed_and_index():
    def labels(seed: int, index: int) -> list[int]:
        return torch.cat([y for _, y in Batches(split(), 5, seed).epoch(index)]).tolist()

    assert same(Batches(split(), 5, 1).epoch(3), Batches(split(), 5, 1).epoch(3))
    orders = {tuple(labels(seed, index)) for seed in range(3) for index in range(3)}
    assert len(orders) == 9


def test_neither_order_nor_augmentation_touch_the_global_random_state():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = list(Batches(split(), 5, seed=0).epoch(0))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    assert same(first, Batches(split(), 5, seed=0).epoch(0))


def test_an_example_looks_different_in_each_epoch():
    batches = Batches(split(), 23, seed=0)
    shown = [x[y.argsort()] for index in range(2) for x, y in batches.epoch(index)]
    assert not torch.equal(*shown)


@pytest.mark.parametrize("replays", [1, 3])
@pytest.mark.parametrize("augment", [SHIFT, CROP])
def test_skipping_gives_the_tail_of_the_whole_epoch_bit_for_bit(replays, augment):
    batches = Batches(split(augment=augment), 5, seed=0, replays=replays)
    whole = list(batches.epoch(1))
    assert len(whole) == len(batches) == 5 * replays
    for skip in range(len(batches) + 1):
        assert same(whole[skip:], batches.epoch(1, skip=skip))


def test_replays_repeat_the_same_tensors():
    steps = list(Batches(split(), 5, seed=0, replays=3).epoch(0))
    for first, second, third in zip(steps[::3], steps[1::3], steps[2::3], strict=True):
        assert first[0] is second[0] is third[0] and first[1] is third[1]
    assert same(steps[::3], Batches(split(), 5, seed=0).epoch(0))


@pytest.mark.parametrize("augment", [SHIFT, CROP, PLAIN])
def test_reading_ahead_gives_the_resident_batches_bit_for_bit(augment):
    resident, streamed = (
        Batches(split(40, augment, mapped, (6, 6)), 3, seed=2) for mapped in (False, True)
    )
    assert same(resident.epoch(0), streamed.epoch(0))
    assert same(resident.epoch(4, skip=9), streamed.epoch(4, skip=9))


def test_an_epoch_may_be_left_in_the_middle():
    epoch = Batches(split(40, mapped=True), 2, seed=0).epoch(0)
    next(epoch)
    epoch.close()


@pytest.mark.parametrize("mapped", [False, True])
def test_evaluation_sees_the_centre_without_augmentation(mapped):
    data = split(mapped=mapped, size=(6, 6))
    x, y = data.batch(slice(3, 7))
    rows = torch.tensor([3, 4, 5, 6])
    assert torch.equal(x, data.store.fetch(rows)[..., 1:7, 1:7].float() / 255)
    assert y.tolist() == rows.tolist() and torch.equal(x, data.batch(rows)[0])


@pytest.mark.parametrize("mapped", [False, True])
def test_a_subset_keeps_images_labels_and_sources_together(mapped):
    data = split(mapped=mapped)
    part = data.take(torch.tensor([7, 2, 11]))
    assert part.labels.tolist() == part.source.tolist() == [7, 2, 11]
    assert torch.equal(part.batch(slice(0, 3))[0], data.batch(torch.tensor([7, 2, 11]))[0])
    assert part.take(torch.tensor([1])).source.tolist() == [2]


def test_an_empty_epoch_is_refused():
    with pytest.raises(DataError, match=r"batch_size is 50, but there are 23 training images"):
        Batches(split(), 50, seed=0, drop_last=True)
    with pytest.raises(DataError, match="at least 1"):
        Batches(split(), 5, seed=0, replays=0)


@pytest.mark.gpu
@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("augment", [SHIFT, CROP])
def test_the_device_changes_no_order_and_no_shift(mapped, augment):
    here = split(40, augment)
    cuda = torch.device("cuda")
    store = (
        Mapped(here.store.fetch(slice(None)), torch.arange(40), cuda)
        if mapped
        else Resident(here.store.fetch(slice(None)).to(cuda))
    )
    there = Split(store, here.labels.to(cuda), here.source, augment, here.size)
    pairs = zip(Batches(here, 7, seed=3).epoch(1), Batches(there, 7, seed=3).epoch(1), strict=True)
    for (x, y), (u, v) in pairs:
        assert u.is_cuda and torch.equal(y, v.cpu())
        torch.testing.assert_close(x, u.cpu(), atol=0 if augment is SHIFT else 1e-5, rtol=0)

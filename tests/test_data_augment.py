"""Augmentation, against one image at a time."""

import numpy as np
import pytest
import torch
from torch import Tensor

from advtrain.data.augment import BySize, ResizedCrop, ShiftFlip, centre, to_unit


def images(n: int = 6, shape: tuple[int, int, int] = (3, 9, 7)) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (n, *shape), generator=generator, dtype=torch.uint8)


def uniform(n: int, draws: int, seed: int = 0) -> Tensor:
    return torch.rand(n, draws, generator=torch.Generator().manual_seed(seed))


def naive_shift(image: Tensor, u: Tensor, size, *, pad: int, fill: str, flip: bool) -> Tensor:
    """Pad, cut, mirror: with NumPy, one image."""
    mode = {"zeros": "constant", "reflect": "reflect"}[fill]
    padded = np.pad(image.numpy(), ((0, 0), (pad, pad), (pad, pad)), mode=mode)
    top, left = (int(u[i] * (padded.shape[i + 1] - size[i] + 1)) for i in range(2))
    cut = padded[:, top : top + size[0], left : left + size[1]]
    if flip and u[2] < 0.5:
        cut = cut[:, :, ::-1]
    return torch.from_numpy(cut.copy()).float() / 255


@pytest.mark.parametrize("fill", ["zeros", "reflect"])
@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize(("pad", "size"), [(4, (9, 7)), (0, (9, 7)), (0, (5, 5)), (2, (6, 7))])
def test_shift_equals_pad_cut_and_mirror_of_each_image(fill, flip, pad, size):
    x, u = images(40), uniform(40, 3)
    result = ShiftFlip(pad=pad, fill=fill, flip=flip)(x, u, size)
    expected = [
        naive_shift(*each, size, pad=pad, fill=fill, flip=flip) for each in zip(x, u, strict=True)
    ]
    assert result.dtype == torch.float32
    assert torch.equal(result, torch.stack(expected))


def test_offsets_reach_both_ends_and_no_further():
    x = torch.arange(1, 10, dtype=torch.uint8).view(1, 1, 1, 9).expand(2, 1, 9, 9)
    u = torch.tensor([[0.0, 0.0, 0.9], [1 - 2**-24, 1 - 2**-24, 0.9]])
    shifted = ShiftFlip(pad=4, fill="zeros", flip=False)(x, u, (9, 9)) * 255
    assert shifted[0, 0, 8].round().tolist() == [0, 0, 0, 0, 1, 2, 3, 4, 5]
    assert shifted[1, 0, 0].round().tolist() == [5, 6, 7, 8, 9, 0, 0, 0, 0]


def test_half_the_images_are_mirrored():
    x = images(1).expand(4000, -1, -1, -1)
    flipped = ShiftFlip(pad=0, fill="zeros", flip=True)(x, uniform(4000, 3), (9, 7))
    mirrored = (flipped == to_unit(x[:1].flip(3))).flatten(1).all(1)
    assert 0.46 < mirrored.float().mean() < 0.54
    assert torch.equal(flipped[~mirrored], to_unit(x[~mirrored]))


def test_without_padding_and_mirror_the_image_stays():
    x = images()
    assert torch.equal(ShiftFlip(0, "zeros", False)(x, uniform(6, 3), (9, 7)), x.float() / 255)


def test_reflection_beyond_the_image_is_refused():
    with pytest.raises(ValueError, match=r"dataset.augment.pad is 7, .* reflected by 6"):
        ShiftFlip(7, "reflect", False)(images(), uniform(6, 3), (9, 7))


def test_stored_images_are_not_touched():
    x = images()
    before = x.clone()
    ShiftFlip(2, "zeros", True)(x, uniform(6, 3), (9, 7))
    ResizedCrop((0.1, 1), (0.75, 1.33), True)(x, uniform(6, 23), (5, 5))
    assert torch.equal(x, before)


def test_a_crop_of_everything_is_the_image_or_its_mirror():
    x = images(20, (3, 8, 8))
    u = uniform(20, 23)
    result = ResizedCrop((1.0, 1.0), (1.0, 1.0), True)(x, u, (8, 8))
    mirrored = torch.where(u[:, 22].view(-1, 1, 1, 1) < 0.5, x.flip(3), x)
    torch.testing.assert_close(result, to_unit(mirrored), atol=1e-5, rtol=0)


def test_a_crop_shows_a_rectangle_of_the_asked_area_and_ratio():
    """On a picture of its own coordinates, the crop's corners tell where it was."""
    n, side = 500, 64
    ramp = torch.arange(side, dtype=torch.uint8).expand(side, side)
    x = torch.stack((ramp, ramp.T)).expand(n, -1, -1, -1)
    crop = ResizedCrop((0.25, 0.5), (0.75, 4 / 3), False)
    result = crop(x, uniform(n, crop.draws), (16, 16)) * 255
    w = (result[:, 0, 8, 12] - result[:, 0, 8, 4]) * 2 / side
    h = (result[:, 1, 12, 8] - result[:, 1, 4, 8]) * 2 / side
    area, ratio = w * h, w / h
    assert 0.245 < area.min() < 0.27 and 0.48 < area.max() < 0.505
    assert 0.74 < ratio.min() < 0.8 and 1.25 < ratio.max() < 1.35
    assert result[:, 0].min() < 3 and result[:, 0].max() > side - 4


def test_where_no_rectangle_fits_the_whole_image_is_taken():
    x = images(4, (3, 8, 8))
    result = ResizedCrop((1.0, 1.0), (3.0, 3.0), False)(x, uniform(4, 23), (8, 8))
    torch.testing.assert_close(result, to_unit(x), atol=1e-5, rtol=0)


@pytest.mark.parametrize("scale", [(0.0, 1.0), (0.5, 0.2), (0.1, 1.5)])
def test_impossible_scales_are_refused(scale):
    with pytest.raises(ValueError, match=r"dataset\.augment\.scale"):
        ResizedCrop(scale, (0.75, 1.33), True)


def test_size_decides_between_shifts_and_crops():
    small, large = ShiftFlip(1, "zeros", True), ResizedCrop((0.3, 1), (0.8, 1.2), True)
    both, x = BySize(8, small, large), images(5, (3, 12, 12))
    u = uniform(5, both.draws)
    assert both.draws == 23
    assert torch.equal(both(x, u, (8, 8)), small(x, u[:, :3], (8, 8)))
    assert torch.equal(both(x, u, (9, 9)), large(x, u, (9, 9)))


def test_the_centre_is_as_far_from_every_side():
    x = torch.arange(10).view(1, 1, 1, 10).expand(1, 1, 6, 10)
    assert centre(x, (2, 4))[0, 0].tolist() == [[3, 4, 5, 6]] * 2

"""Augmentation as a pure function of stored images and of numbers drawn uniformly from [0, 1).

The numbers are drawn by whoever keeps the random streams, `draws` of them per image, so the same
numbers give the same batch on every device. Nothing here waits for the device. Images come as
uint8 (B, C, H, W) and leave as float32 in [0, 1], (B, C, h, w), with (h, w) = `size`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import log
from typing import ClassVar, Literal, Protocol

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from advtrain.ranges import Count, Natural

Size = tuple[int, int]


class Augment(Protocol):
    """`draws`: how many uniform numbers an image takes."""

    @property
    def draws(self) -> int: ...

    def __call__(self, images: Tensor, uniform: Tensor, size: Size) -> Tensor:
        """The batch to train on; `uniform` float32 (B, draws) in [0, 1)."""


def to_unit(images: Tensor) -> Tensor:
    """uint8 to float32 in [0, 1]: v / 255, the same bits on every device."""
    x = images.to(torch.float32)
    return x.div_(x.new_full((), 255))  # by a number a GPU multiplies with its rounded reciprocal


def centre(images: Tensor, size: Size) -> Tensor:
    """The window of `size` in the middle, rounded up-left: what evaluation sees."""
    top, left = ((have - want) // 2 for have, want in zip(images.shape[-2:], size, strict=True))
    return images[..., top : top + size[0], left : left + size[1]]


@dataclass(frozen=True)
class ShiftFlip:
    """A window of `size` at a random place of the image padded by `pad`, mirrored half the time.

    With pad 0, flip false and nothing to cut this is the image itself. `fill: zeros` is what most
    released trees do; `reflect` (without repeating the border) is Rice et al. 2020's.
    """

    pad: Natural
    fill: Literal["zeros", "reflect"]
    flip: bool

    @property
    def draws(self) -> int:
        return 3

    def __call__(self, images: Tensor, uniform: Tensor, size: Size) -> Tensor:
        if not (self.pad or self.flip) and size == tuple(images.shape[-2:]):
            return to_unit(images)
        height, width = images.shape[-2:]
        rows = self._window(uniform[:, 0], height, size[0])
        columns = self._window(uniform[:, 1], width, size[1])
        if self.flip:
            columns = torch.where(uniform[:, 2:3] < 0.5, columns.flip(1), columns)
        at = self._source(rows, height)[:, :, None] * width
        at = at + self._source(columns, width)[:, None, :]
        flat = images.flatten(2)
        cut = flat.gather(2, at.flatten(1)[:, None].expand(-1, flat.shape[1], -1))
        cut = cut.unflatten(2, size)
        if self.pad and self.fill == "zeros":
            inside = _inside(rows, height)[:, :, None] & _inside(columns, width)[:, None, :]
            cut = cut * inside[:, None]
        return to_unit(cut)

    def _source(self, position: Tensor, length: int) -> Tensor:
        """The pixel in [0, length) that shows at a position of the padded axis."""
        if self.fill == "zeros":  # blanked afterwards, so any pixel will do
            return position.clamp(0, length - 1)
        if self.pad >= length:
            raise ValueError(
                f"dataset.augment.pad is {self.pad}, but an image of {length} pixels can be "
                f"reflected by {length - 1} at most."
            )
        return (length - 1) - ((length - 1) - position.abs()).abs()

    def _window(self, uniform: Tensor, have: int, want: int) -> Tensor:
        """Positions (B, want) along one axis, from -pad to have + pad - 1."""
        places = have + 2 * self.pad - want + 1
        # float32 rounding can carry u * places up to `places` itself
        first = (uniform * places).long().clamp_(max=places - 1) - self.pad
        return first[:, None] + torch.arange(want, device=uniform.device)


@dataclass(frozen=True)
class ResizedCrop:
    """A random rectangle stretched to `size` and mirrored half the time (Szegedy et al. 2015).

    scale: share of the area, uniform between the two; ratio: width over height, log-uniform.
    As in torchvision, the first of ten proposals that fits is taken, and the whole image if none
    does. Differs: rectangles are not rounded to whole pixels, they come from the stored square
    (short side resized, centre cut), and sampling is bilinear without a low-pass filter.
    """

    scale: Sequence[float]
    ratio: Sequence[float]
    flip: bool

    TRIES: ClassVar[int] = 10

    def __post_init__(self) -> None:
        for name, (low, high), most in (("scale", self.scale, 1.0), ("ratio", self.ratio, 1e3)):
            if not 0 < low <= high <= most:
                raise ValueError(
                    f"dataset.augment.{name} is [{low}, {high}]; allowed are two numbers "
                    f"0 < low <= high <= {most:g}."
                )

    @property
    def draws(self) -> int:
        return 2 * self.TRIES + 3

    def __call__(self, images: Tensor, uniform: Tensor, size: Size) -> Tensor:
        height, width = images.shape[-2:]
        w, h = self._rectangles(uniform[:, : 2 * self.TRIES], width / height)
        x, y, coin = uniform[:, 2 * self.TRIES :].unbind(1)
        mirror = torch.where(coin < 0.5, -1.0, 1.0) if self.flip else torch.ones_like(coin)
        # affine_grid's coordinates run from -1 to 1 across the image
        zero = torch.zeros_like(w)
        theta = torch.stack(
            (w * mirror, zero, (2 * x - 1) * (1 - w), zero, h, (2 * y - 1) * (1 - h)), dim=1
        ).unflatten(1, (2, 3))
        grid = affine_grid(theta, [len(images), images.shape[1], *size], align_corners=False)
        pixels = images.to(torch.float32)
        cut = grid_sample(pixels, grid, padding_mode="border", align_corners=False)
        return cut.div_(cut.new_full((), 255)).clamp_(0, 1)

    def _rectangles(self, uniform: Tensor, aspect: float) -> tuple[Tensor, Tensor]:
        """Widths and heights as shares of the image's, (B,) each; `aspect`: width over height."""
        area_draw, ratio_draw = uniform.chunk(2, dim=1)
        area = self.scale[0] + (self.scale[1] - self.scale[0]) * area_draw
        low, high = log(self.ratio[0]), log(self.ratio[1])
        ratio = (low + (high - low) * ratio_draw).exp() / aspect
        w, h = (area * ratio).sqrt(), (area / ratio).sqrt()
        fits = (w <= 1) & (h <= 1)
        first = fits.to(torch.uint8).argmax(1, keepdim=True)
        found = fits.gather(1, first)[:, 0]
        return tuple(torch.where(found, t.gather(1, first)[:, 0], 1.0) for t in (w, h))  # type: ignore[return-value]


@dataclass(frozen=True)
class BySize:
    """`small` for results of up to `limit` pixels a side, `large` beyond: folders hold either."""

    limit: Count
    small: Augment
    large: Augment

    @property
    def draws(self) -> int:
        return max(self.small.draws, self.large.draws)

    def __call__(self, images: Tensor, uniform: Tensor, size: Size) -> Tensor:
        chosen = self.small if max(size) <= self.limit else self.large
        return chosen(images, uniform[:, : chosen.draws], size)


def _inside(position: Tensor, length: int) -> Tensor:
    return (position >= 0) & (position < length)

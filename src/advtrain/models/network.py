"""The shape that every built-in classifier has: normalise, body, head.

Normalisation is the network's first layer, so attacks, radii and noise live in pixels of [0, 1]
and a checkpoint carries its own constants.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from advtrain.models.pretrained import Pretrained

Activation = Callable[[int], nn.Module]
"""What makes the layer that stands behind so many channels."""


def rectifier(channels: int) -> nn.Module:
    """ReLU."""
    return nn.ReLU()


class Normalise(nn.Module):
    """(x - mean) / std per channel; `mean` and `std` are buffers, saved and never trained."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(list(mean), dtype=torch.float32)[:, None, None])
        self.register_buffer("std", torch.tensor(list(std), dtype=torch.float32)[:, None, None])

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std


def normalisation(
    channels: int, mean: Sequence[float] | None, std: Sequence[float] | None
) -> nn.Module:
    """The first layer: `Normalise`, or the identity when `mean` and `std` are both None.

    Raises ValueError when only one is given, when their lengths are not `channels`, and when an
    entry of `std` is not positive.
    """
    if mean is None and std is None:
        return nn.Identity()
    if mean is None or std is None:
        given, lacking = (
            ("model.std", "model.mean") if mean is None else ("model.mean", "model.std")
        )
        raise ValueError(f"{given} is set and {lacking} is null. Give both, or null for both.")
    if not len(mean) == len(std) == channels:
        raise ValueError(
            f"model.mean has {len(mean)} and model.std {len(std)} entries, and the images have "
            f"{channels} channels. Give one number per channel."
        )
    if min(std) <= 0:
        raise ValueError(f"model.std is {list(std)}; every entry must be greater than 0.")
    return Normalise(mean, std)


class Resize(nn.Module):
    """Images to `side` by `side` pixels, bilinear and differentiable; no aliasing where smaller.

    Inside the network, so that radii are those of the images as they come.
    """

    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side

    def forward(self, x: Tensor) -> Tensor:
        smaller = self.side < max(x.shape[2:])
        return F.interpolate(x, (self.side, self.side), mode="bilinear", antialias=smaller)


class Network(nn.Module):
    """Images in [0, 1] to logits: head(body(normalise(resize(x)))).

    `accepts` is the shape (C, H, W) that the network takes, with None where any size will do.
    `resize` is the side in pixels that the body sees, None the images' own; `pretrained`, what to
    begin training from. Wrong images raise ValueError; the check reads shape and dtype alone,
    never the values.
    """

    def __init__(
        self,
        normalise: nn.Module,
        body: nn.Module,
        head: nn.Module,
        *,
        accepts: tuple[int, int | None, int | None],
        resize: int | None = None,
        pretrained: Pretrained | None = None,
    ) -> None:
        super().__init__()
        self.resize = nn.Identity() if resize is None else Resize(resize)
        self.normalise = normalise
        self.body = body
        self.head = head
        self.accepts = accepts
        self.pretrained = pretrained

    def features(self, x: Tensor) -> Tensor:
        """What the head sees, shape (B, F)."""
        self.check(x)
        return self.body(self.normalise(self.resize(x)))

    def forward(self, x: Tensor) -> Tensor:
        """Logits, shape (B, K)."""
        return self.head(self.features(x))

    def check(self, x: Tensor) -> None:
        """Raise ValueError unless `x` is a batch of float images of the accepted shape."""
        if not x.is_floating_point():
            raise ValueError(
                f"The network got images of {x.dtype}; it takes floats in [0, 1]. Divide by 255."
            )
        fits = x.ndim == 4 and all(
            size in (None, given) for size, given in zip(self.accepts, x.shape[1:], strict=True)
        )
        if not fits:
            sizes = zip(self.accepts, "CHW", strict=True)
            wanted = ", ".join(letter if size is None else str(size) for size, letter in sizes)
            raise ValueError(
                f"The network got images of shape {tuple(x.shape)}; it takes (B, {wanted}). "
                "Build the model for the shape of this dataset, or choose the dataset it was "
                "built for."
            )

"""Conditional networks of several widths in one: OATS, the slimmable form of Once-for-all (Wang et
al. 2020, https://arxiv.org/abs/2010.11828; slimmable networks: Yu et al. 2019,
https://arxiv.org/abs/1812.08928).

At width w each layer has the leading share w of its channels, and takes the leading part of the
weights that the full network has; so do the small networks of FiLM. Batch norms alone are not
shared, for statistics differ from width to width: each width has its own, a pair where they are
dual. At width 1 this is the plain conditional network.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from advtrain.conditions import Condition
from advtrain.models.conditional import ConditionalNetwork, ConditionalNorm, DualNorm, SingleNorm
from advtrain.models.network import Network
from advtrain.ranges import Range, require

WIDTH = Range(0, 1, open_low=True, hint="1 is the full network, 0.5 half of its channels")


@dataclass(eq=False)
class Choice:
    """The width of the pass that is going on, by its place among the widths; the last is 1."""

    place: int = -1


class SlimConv2d(nn.Conv2d):
    """A convolution with the leading part of its weights: as many inputs as `x` has channels, and
    of `outputs` the number that belongs to the width."""

    outputs: tuple[int, ...]
    choice: Choice

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, *leading(self, x.shape[1]))


class SlimLinear(nn.Linear):
    """The same of a linear layer."""

    outputs: tuple[int, ...]
    choice: Choice

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, *leading(self, x.shape[1]))


def leading(layer: SlimConv2d | SlimLinear, inputs: int) -> tuple[Tensor, Tensor | None]:
    """Weights and biases of the pass that is going on: views, through which gradients go back."""
    outputs = layer.outputs[layer.choice.place]
    bias = None if layer.bias is None else layer.bias[:outputs]
    return layer.weight[:outputs, :inputs], bias


class SwitchableNorm(nn.Module):
    """A batch norm for each width, single or dual."""

    def __init__(self, norms: Iterable[nn.Module], choice: Choice) -> None:
        super().__init__()
        self.norms = nn.ModuleList(norms)
        self.choice = choice

    def forward(self, x: Tensor, zeros: int) -> Tensor:
        normalised: Tensor = self.norms[self.choice.place](x, zeros)
        return normalised


class SlimmableNetwork(ConditionalNetwork):
    """`network(x, condition)` at width 1; `network.at_width(w)` is it at another of its `widths`.

    ValueError: widths that are not distinct and in (0, 1], that lack 1, or that leave a layer a
    part of a channel.
    """

    def __init__(self, plain: Network, *, widths: Sequence[float], **conditional: Any) -> None:
        super().__init__(plain, **conditional)
        self.widths = ascending(widths)
        self.choice = Choice()
        for part in list(self.body.modules()):
            if isinstance(part, nn.Conv2d):
                self._slim(part, SlimConv2d, self._shares(part.out_channels))
            elif isinstance(part, nn.Linear):
                self._slim(part, SlimLinear, self._shares(part.out_features))
            elif isinstance(part, ConditionalNorm):
                assert isinstance(part.norm, DualNorm | SingleNorm)
                kind, channels = type(part.norm), self._shares(part.norm.num_features)
                part.norm = SwitchableNorm([kind(each) for each in channels], self.choice)
        assert isinstance(self.head, nn.Linear)
        self._slim(self.head, SlimLinear, (self.head.out_features,) * len(self.widths))

    def _shares(self, channels: int) -> tuple[int, ...]:
        return tuple(share(channels, width) for width in self.widths)

    def _slim(self, layer: nn.Module, kind: type[nn.Module], outputs: tuple[int, ...]) -> None:
        """`layer` keeps its weights and becomes one of leading parts."""
        layer.__class__ = kind
        layer.outputs, layer.choice = outputs, self.choice  # type: ignore[assignment]

    def at_width(self, width: float) -> "AtWidth":
        """This network at one of its widths, a conditional network too. ValueError: at another."""
        if width not in self.widths:
            raise ValueError(
                f"width is {width:g}, and the network was made for the widths "
                f"{', '.join(f'{each:g}' for each in self.widths)} (model.widths)."
            )
        return AtWidth(self, width)


class AtWidth(nn.Module):
    """A slimmable network at one width; conditional as that is."""

    def __init__(self, network: SlimmableNetwork, width: float) -> None:
        super().__init__()
        self.network = network
        self.place = network.widths.index(width)
        self.training = network.training

    @property
    def lambdas(self) -> tuple[float, ...]:
        return self.network.lambdas

    @property
    def values(self) -> Tensor:
        return self.network.values

    def forward(self, x: Tensor, condition: Condition | None = None) -> Tensor:
        """Logits, (B, K). ValueError: no condition."""
        choice = self.network.choice
        before, choice.place = choice.place, self.place
        try:
            logits: Tensor = self.network(x, condition)
        finally:
            choice.place = before
        return logits


def ascending(widths: Sequence[float]) -> tuple[float, ...]:
    """The widths in order. ValueError: outside (0, 1], repeated, or 1 is not among them."""
    for width in widths:
        require("a width of model.widths", width, WIDTH)
    if 1 not in widths or len(set(widths)) < len(widths):
        raise ValueError(
            f"model.widths is {list(widths)}; give distinct numbers and 1, the full network, among "
            "them: [0.5, 0.75, 1]; or null for a network of one width."
        )
    return tuple(sorted(float(width) for width in widths))


def share(channels: int, width: float) -> int:
    """`width` of so many channels. ValueError: not a whole number."""
    found = round(channels * width)
    if found < 1 or abs(found - channels * width) > 1e-6:
        raise ValueError(
            f"model.widths has {width:g}, and a layer has {channels} channels, of which that is "
            f"{channels * width:g}. Choose widths that leave whole channels, as [0.5, 0.75, 1]."
        )
    return found

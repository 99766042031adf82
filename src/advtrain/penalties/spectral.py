"""Spectral norm regularisation (Yoshida and Miyato 2017, https://arxiv.org/abs/1705.10941).

lambda / 2 sum_l sigma(W_l)^2 over convolutions and linear layers, the head among them. `weight` is
lambda. Layers whose weights are parametrised count with the weights that they use.

Differs: the authors keep the singular vectors from step to step, and improve them by one step of
the power method; here they are found anew from the weights, so a run goes on as it was, and the
term may be evaluated at other weights in between, as weight perturbation does. They write a kernel
as a matrix, `operator: matrix`; `convolution` takes the norm of the convolution as it is applied.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Literal, Protocol

from torch import Tensor, nn

from advtrain.operators import (
    Convolution,
    convolution_norm,
    convolutions,
    layers,
    leading_image,
    matrix_norm,
)
from advtrain.ranges import NonNegative

Shape = tuple[int, int, int]


class Images(Protocol):
    @property
    def shape(self) -> Shape: ...


class Setting(Protocol):
    """What the program supplies: `data.shape` is that of the images, (C, H, W)."""

    @property
    def data(self) -> Images: ...


def spectral(
    setting: Setting,
    model: nn.Module,
    *,
    weight: NonNegative,
    operator: Literal["matrix", "convolution"],
) -> Tensor:
    """Half of `weight` times the sum of the squared norms of the layers, a scalar.

    With `convolution`, linear layers count as matrices, and convolutions that no image meets not
    at all.
    """
    total = next(model.parameters()).new_zeros(())
    for norm in NORMS[operator](model, setting.data.shape):
        total = total + norm.square()
    return weight / 2 * total


def of_matrices(model: nn.Module, shape: Shape) -> Iterator[Tensor]:
    for layer in layers(model).values():
        yield matrix_norm(layer.weight)


def of_convolutions(model: nn.Module, shape: Shape) -> Iterator[Tensor]:
    for layer in layers(model).values():
        if isinstance(layer, nn.Linear):
            yield matrix_norm(layer.weight)
    for conv, size in convolutions(model, shape).values():
        convolve, weight = Convolution.of(conv), conv.weight
        v = leading_image(partial(convolve, weight.detach()), size, weight)
        yield convolution_norm(convolve, weight, v)


NORMS: dict[str, Callable[[nn.Module, Shape], Iterator[Tensor]]] = {
    "matrix": of_matrices,
    "convolution": of_convolutions,
}

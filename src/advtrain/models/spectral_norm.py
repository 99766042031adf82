"""Layers whose weights are divided by their spectral norm (Miyato et al. 2018,
https://arxiv.org/abs/1802.05957): every convolution and linear layer of any network, the head too.

The norm is followed by the power method, one step per pass in training mode; in evaluation mode
nothing moves. Its vectors are buffers, saved and restored with the weights. Averages of weights,
and weights that were trained without these norms, need vectors of their own: `refresh`.
It bounds the slope of a layer, not that of a network with batch norms behind its layers, which
scale again. The size of the trained weights has no effect on the network: weight decay on them
only changes how fast they turn.

Differs: the authors divide by the norm of the kernel as a matrix, `matrix`; at 3x3 the convolution
then has a norm of up to 3. `convolution` divides by that of the convolution as it is applied to
images of the size that the layer sees. Under bfloat16 both compute the norm in float32.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial, wraps

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import _SpectralNorm, spectral_norm
from torch.nn.utils.parametrize import (
    ParametrizationList,
    is_parametrized,
    register_parametrization,
)

from advtrain.operators import (
    Convolution,
    Shape,
    convolution_norm,
    convolutions,
    layers,
    leading_image,
    there_and_back,
    unit,
)
from advtrain.precision import Method, replace


def normalise(model: nn.Module, shape: Sequence[int], operator: str) -> nn.Module:
    """Make the layers of `model` divide their weights, in place; returns the same object.

    `shape`: that of its images, (C, H, W). `operator`: one of OPERATORS. Weights `weight` become
    parameters `parametrizations.weight.original`. With `convolution`, linear layers count as
    matrices, and convolutions that no image meets keep their weights. Draws where the power
    method starts for matrices. ValueError: a layer is parametrised already.
    """
    for layer in OPERATORS[operator](model, tuple(shape)):
        replace(layer.get_submodule("parametrizations.weight"), "forward", exact)
    return model


AT_ONCE = 200  # steps of the power method
ORIGINAL = ".parametrizations.weight.original"


def divided(model: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of the same network without these norms, for `model`, which may have them.

    The vectors of the power method are those of `model`; `refresh` finds those of the weights.
    """
    own = model.state_dict()
    names = {undivided(name): name for name in own if name.endswith(ORIGINAL)}
    if not names.keys() & tensors.keys():
        return dict(tensors)
    vectors = {name: value for name, value in own.items() if ".parametrizations.weight.0." in name}
    return vectors | {names.get(name, name): value for name, value in tensors.items()}


@torch.no_grad()
def refresh(model: nn.Module) -> None:
    """Find the vectors of the power method anew, for weights that were not trained with them."""
    for layer in model.modules():
        if not isinstance(layer, ParametrizationList):
            continue
        weight, part = layer.original, layer[0]
        if isinstance(part, OverConvolution):
            size = tuple(part.v.shape[1:])
            part.v.copy_(leading_image(partial(part.convolve, weight), size, weight))
        elif isinstance(part, _SpectralNorm):
            part._power_method(part._reshape_weight_to_matrix(weight), AT_ONCE)


def undivided(name: str) -> str:
    """The name of a weight in the same network without these norms."""
    return name.removesuffix(ORIGINAL) + ".weight" if name.endswith(ORIGINAL) else name


class OverConvolution(nn.Module):
    """A kernel over the norm of its convolution; `v` is the image (1, C, H, W) stretched most."""

    v: Tensor

    def __init__(self, layer: nn.Conv2d, size: Shape) -> None:
        super().__init__()
        self.convolve = Convolution.of(layer)
        weight = layer.weight.detach()
        self.register_buffer("v", leading_image(partial(self.convolve, weight), size, weight))

    def forward(self, weight: Tensor) -> Tensor:
        if self.training:
            _, pulled = there_and_back(partial(self.convolve, weight.detach()), self.v)
            self.v.copy_(unit(pulled))
        # a copy, since the next pass moves the buffer before the gradient of this one is taken
        norm = convolution_norm(self.convolve, weight, self.v.clone())
        return weight / norm.clamp_min(torch.finfo(norm.dtype).tiny)


def _nothing(model: nn.Module, shape: Shape) -> Iterable[nn.Module]:
    return ()


def _over_matrices(model: nn.Module, shape: Shape) -> Iterable[nn.Module]:
    return [spectral_norm(layer) for layer in _free(model).values()]


def _over_convolutions(model: nn.Module, shape: Shape) -> Iterable[nn.Module]:
    free, seen = _free(model), convolutions(model, shape)
    linear = [spectral_norm(layer) for layer in free.values() if isinstance(layer, nn.Linear)]
    divided = [
        register_parametrization(conv, "weight", OverConvolution(conv, size))
        for conv, size in seen.values()
    ]
    return [*linear, *divided]


def _free(model: nn.Module) -> dict[str, nn.Conv2d | nn.Linear]:
    """The layers of `model`; ValueError for one whose weights are parametrised already."""
    found = layers(model)
    for name, layer in found.items():
        if is_parametrized(layer, "weight"):
            raise ValueError(
                f"spectral_norm divides the weights of {name}, which {type(model).__name__} has "
                "parametrised itself. Use spectral_norm=none."
            )
    return found


def exact(method: Method) -> Method:
    """`method` of a parametrization outside of autocast, which would round what it multiplies."""

    @wraps(method)
    def run(self: ParametrizationList) -> Tensor:
        with torch.autocast(self.original.device.type, enabled=False):
            return method(self)

    return run


OPERATORS: dict[str, Callable[[nn.Module, Shape], Iterable[nn.Module]]] = {
    "none": _nothing,
    "matrix": _over_matrices,
    "convolution": _over_convolutions,
}

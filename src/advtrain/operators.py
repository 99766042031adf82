"""Linear and convolutional layers as linear maps, and their spectral norms.

Two norms go by that name. That of the kernel written as a matrix, (out, in kh kw), is cheap, and
what spectral regularisation and normalisation use. That of the convolution itself, on images of
the size it sees, with its padding, stride, dilation and groups, is the layer's Lipschitz constant
in l2. At stride 1 it is at most sqrt(kh kw) times the former: 3.0 and 8.946 for a 3x3 kernel of
ones on 32x32 pixels, and about 1.6 times as large for He's initialisation.

Norms here are functions of the weights alone: no vector is kept from one call to the next, nothing
is drawn, and the host never waits for the device. The gradient goes through the weights with the
singular vector held fixed, which is the gradient of the norm.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from advtrain.modes import crafting

SQUARINGS = 10  # as 1024 steps of the power method
STEPS = 24  # of Lanczos: at most 5e-3 below the norm, 1e-3 for most layers of ResNet-18

Shape = tuple[int, ...]
LinearMap = Callable[[Tensor], Tensor]

_seen: WeakKeyDictionary[nn.Module, dict[Shape, dict[str, Shape]]] = WeakKeyDictionary()


@dataclass(frozen=True)
class Convolution:
    """What a convolution does with images (B, C, H, W) and a kernel, apart from its weights.

    `edges`: how wide the image is padded, as `F.pad` takes it, and `mode` with what.
    """

    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    edges: tuple[int, ...]
    mode: str

    @classmethod
    def of(cls, layer: nn.Conv2d) -> "Convolution":
        mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
        edges = tuple(layer._reversed_padding_repeated_twice)
        return cls(layer.stride, layer.dilation, layer.groups, edges, mode)

    def __call__(self, weight: Tensor, x: Tensor) -> Tensor:
        padded = F.pad(x, self.edges, self.mode)
        return F.conv2d(padded, weight, None, self.stride, 0, self.dilation, self.groups)


def layers(model: nn.Module) -> dict[str, nn.Conv2d | nn.Linear]:
    """By name, the layers whose weights count: convolutions of images and linear ones.

    The head is one of them; transposed convolutions, norms and biases are not.
    """
    parts = model.named_modules()
    return {name: part for name, part in parts if isinstance(part, nn.Conv2d | nn.Linear)}


def convolutions(model: nn.Module, shape: Sequence[int]) -> dict[str, tuple[nn.Conv2d, Shape]]:
    """By name, the convolutions that images of `shape` (C, H, W) meet, and what shape each reads.

    Found by one pass of an empty image, in evaluation mode, the first time; a layer that is called
    more than once counts with its largest input. The model is left as it was.
    """
    found = _seen.setdefault(model, {})
    key = tuple(shape)
    if key not in found:
        found[key] = _watched(model, key)
    parts = layers(model)
    return {
        name: (part, found[key][name])
        for name, part in parts.items()
        if isinstance(part, nn.Conv2d) and name in found[key]
    }


def _watched(model: nn.Module, shape: Shape) -> dict[str, Shape]:
    sizes: dict[str, Shape] = {}

    def note(module: nn.Module, given: tuple[Any, ...], *, name: str) -> None:
        size = tuple(given[0].shape[-3:])
        sizes[name] = max(size, sizes.get(name, size), key=lambda each: each[-1] * each[-2])

    parts = {name: part for name, part in layers(model).items() if isinstance(part, nn.Conv2d)}
    hooks = [
        part.register_forward_pre_hook(partial(note, name=name)) for name, part in parts.items()
    ]
    weight = next(model.parameters())
    empty = torch.zeros((1, *shape), dtype=weight.dtype, device=weight.device)
    devices = [weight.device] if weight.is_cuda else []
    try:
        with torch.random.fork_rng(devices), crafting(model, "eval"), torch.no_grad():
            model._call_impl(empty)  # not the compiled form, which has no hooks
    finally:
        for hook in hooks:
            hook.remove()
    return sizes


def short(weight: Tensor) -> Tensor:
    """`weight` (out, ...) as a matrix with no more rows than columns, turned if need be."""
    matrix = weight.flatten(1)
    return matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T


def matrix_norm(weight: Tensor) -> Tensor:
    """The spectral norm of `weight` (out, ...) as a matrix (out, in kh kw), a scalar."""
    matrix = short(weight)
    with torch.no_grad():
        u = leading(matrix @ matrix.T)
    return torch.linalg.vector_norm(u @ matrix)


def convolution_norm(convolve: Convolution, weight: Tensor, v: Tensor) -> Tensor:
    """||A v|| / ||v|| of the convolution A with `weight`: its norm, if `v` (1, C, H, W) leads."""
    return torch.linalg.vector_norm(convolve(weight, v)) / torch.linalg.vector_norm(v)


def leading(gram: Tensor) -> Tensor:
    """A unit vector (n,) along which a positive semi-definite matrix (n, n) is largest.

    The power method by repeated squaring: few large products, where steps would be many small ones.
    """
    power = gram
    for _ in range(SQUARINGS):
        power = unit(power)
        power = power @ power
    return unit(power @ spread(len(gram), gram))


def leading_image(apply: LinearMap, shape: Shape, like: Tensor) -> Tensor:
    """A unit image (1, C, H, W) that the linear map `apply` stretches most; `shape` is (C, H, W).

    The best combination of the Krylov space of `STEPS` images v, A'A v, (A'A)^2 v, ... (Lanczos):
    the largest singular values of convolutions lie so close that the power method takes hundreds.
    Directions are made orthogonal twice, so rounding breeds no copies of the first.
    """
    size = shape[0] * shape[1] * shape[2]
    basis = like.new_zeros(min(STEPS, size), size)
    stretched = []
    following = spread(size, like)
    for index in range(len(basis)):
        known = basis[:index]
        for _ in range(2):
            following = unit(following - (known @ following) @ known)
        basis[index] = following
        image, pulled = there_and_back(apply, following.view(1, *shape))
        stretched.append(image.flatten())
        following = pulled.flatten()
    gram = torch.stack(stretched)
    return unit(leading(gram @ gram.T) @ basis).view(1, *shape)


def there_and_back(apply: LinearMap, v: Tensor) -> tuple[Tensor, Tensor]:
    """A v and A'A v for the linear map A, whose adjoint is its derivative's."""
    with torch.enable_grad():
        leaf = v.detach().requires_grad_()
        image = apply(leaf)
    (pulled,) = torch.autograd.grad(image, leaf, image.detach())
    return image.detach(), pulled


def unit(x: Tensor) -> Tensor:
    """`x` over its length; 0 where it is 0."""
    return x / torch.linalg.vector_norm(x).clamp_min(torch.finfo(x.dtype).tiny)


def spread(size: int, like: Tensor) -> Tensor:
    """A vector (size,) without any pattern that weights could have, the same at each call.

    Its entries are the fractions of multiples of squares by the golden ratio, centred.
    """
    squares = torch.arange(1, size + 1, dtype=torch.float64, device=like.device).square()
    return ((squares * 0.6180339887498949).frac() - 0.5).to(like.dtype)

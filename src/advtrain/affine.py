"""Networks whose logits are linear in the pixels, W x + b, for which the worst case is known.

The change of z_j - z_y that a perturbation d makes is <w_j - w_y, d>, so within a ball of radius
eps it is at most eps times the dual norm of w_j - w_y, and the best d does not depend on x as long
as images are not clipped.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from advtrain.precision import full_precision
from advtrain.types import Classifier

ROUNDING = 1e-5  # of a sum of products in float32, relative to the sum of their sizes
ADVICE = (
    "Use model=linear with model.mean=null model.std=null; for any other network defense=pgd_at "
    "trains, and apgd or autoattack attacks."
)


class Affine(NamedTuple):
    """`weight` (K, D) and `bias` (K,) of logits W x + b, D being the pixels of an image."""

    weight: Tensor
    bias: Tensor


def layer(model: nn.Module) -> nn.Linear:
    """The fully connected layer that all weights of `model` are in. ValueError: there is none.

    Whether pixels reach it as they are, only images can tell: see `require_raw`.
    """
    owners = [part for part in model.modules() if _owns(part)]
    only = owners[0] if len(owners) == 1 else None
    if not isinstance(only, nn.Linear):
        found = dict.fromkeys(type(part).__name__ for part in owners)
        raise ValueError(
            f"{type(model).__name__} is no linear model of the pixels: its weights and constants "
            f"are in {', '.join(found) or 'no layer'}, not in one Linear alone. {ADVICE}"
        )
    return only


def read(model: Classifier, x: Tensor) -> Affine:
    """W and b of any differentiable `model` that is linear at images like `x` (N, ...), N > 0.

    W is the gradient of the logits at 0, b their value there; both are detached. Held against the
    logits of `x`, and of 1 - 2 x outside the box, up to rounding in float32; that reads a value on
    the host. K + 2 N examples forward, K backward. ValueError: the logits are not linear.
    """
    points = torch.cat([x, 1 - 2 * x]).detach()
    with torch.no_grad():
        logits = model(points)
    origin = x.new_zeros((logits.shape[1], *x.shape[1:])).requires_grad_()
    with torch.enable_grad():
        found = model(origin)
        if not found.requires_grad:
            raise ValueError(f"The logits carry no gradient to the images. {ADVICE}")
        (gradient,) = torch.autograd.grad(found.diagonal().sum(), origin)
    weight, bias, flat = gradient.flatten(1), found[0].detach(), points.flatten(1)
    size = flat.abs() @ weight.abs().T + bias.abs()
    excess = (logits - (flat @ weight.T + bias)).abs() - ROUNDING * size
    worst = float(excess.max())
    if not worst <= 0:
        raise ValueError(
            f"The logits are not linear in the pixels: they are {worst:.2g} off W x + b. {ADVICE}"
        )
    return Affine(weight, bias)


def require_raw(model: nn.Module, x: Tensor) -> None:
    """ValueError unless `layer(model)` acts on the pixels of images like `x` (N, ...) as they are.

    Pooling before it, a kink or a softmax after it: what the weights alone do not show.
    """
    weight = layer(model).weight.detach()
    with full_precision(model):
        found = read(model, x).weight
    if found.shape != weight.shape or not torch.allclose(found, weight, rtol=1e-4, atol=1e-7):
        raise ValueError(
            f"{type(model).__name__} changes the pixels before its Linear layer, whose weights are "
            f"then not those of the pixels. {ADVICE}"
        )


def _owns(part: nn.Module) -> bool:
    tensors = (*part.parameters(recurse=False), *part.buffers(recurse=False))
    return bool(tensors)

"""Local linearity regularisation (Qin et al. 2019, https://arxiv.org/abs/1907.02610).

The mean over the batch of ce_weight * l(x) + gap_weight * g + slope_weight * |<d, grad l(x)>|, with
l the cross-entropy and g = |l(x + d) - l(x) - <d, grad l(x)>|; weights 1, lambda and mu in the
paper. The attack ascends g (objectives.linearity_gap) in evaluation mode; d = x_adv - x is then
held fixed, grad l(x) is differentiated. Gap and slope bound how much d raises the loss. The gap is
flat at x, so the attack starts elsewhere. 2 K + 11 passes for K steps, 2 of them for the tangent.

As in the authors' code the perturbed pass is normalised with the batch statistics of the clean one,
through which gradients flow, and running statistics see the clean images alone.

Differs: their code weighs 2, 4 and 1.2 (0.3 times 4), the paper 1, 4 and 3. It attacks with batch
statistics of the clean images, where we take running ones, and by objectives.linearity_gap_by_loss.
It passes clean images twice for equal results. Its network has softplus for ReLU.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from advtrain.defenses.base import Defense, Pair, accuracy, require_guided, warmed
from advtrain.functional import cross_entropy
from advtrain.models.batch_norm import used
from advtrain.ranges import NonNegative, Unit
from advtrain.types import Logs, Moment, Objective, Start, TrainingAttack

Statistics = dict[_BatchNorm, list[tuple[Tensor, Tensor]]]
"""Mean and variance (C,) of the batch in each call of a batch norm, in the order of the calls."""

LENT = "lent_statistics"  # of a layer: those that its next calls borrow


@dataclass
class Llr(Defense):
    """ValueError: the attack takes no objective or no start, as FGSM."""

    attack: TrainingAttack
    objective: Objective
    start: Start
    ce_weight: NonNegative
    gap_weight: NonNegative
    slope_weight: NonNegative
    warmup: Unit = 0.0

    def __post_init__(self) -> None:
        require_guided(self.attack, type(self).__name__)

    def craft(self, model: nn.Module, x: Tensor, y: Tensor, now: Moment) -> Pair:
        attack = warmed(self.attack, self.warmup, now)
        return Pair(x, attack(model, x, y, objective=self.objective, start=self.start), y)

    def loss(self, model: nn.Module, parcel: Pair) -> tuple[Tensor, Logs]:
        x = parcel.x.detach().requires_grad_()
        with noting(model) as statistics:
            clean = model.forward(x)  # as it is: compiled by model.compile() it has one derivative
        with borrowing(statistics):
            adv = model.forward(parcel.x_adv)
        before, after = (cross_entropy(z, parcel.y, self.label_smoothing) for z in (clean, adv))
        (gradient,) = torch.autograd.grad(before.sum(), x, create_graph=True)
        rise = ((parcel.x_adv - parcel.x) * gradient).flatten(1).sum(1)
        ce, gap, slope = before.mean(), (after - before - rise).abs().mean(), rise.abs().mean()
        return self.ce_weight * ce + self.gap_weight * gap + self.slope_weight * slope, {
            "ce": ce.detach(),
            "gap": gap.detach(),
            "slope": slope.detach(),
            "acc": accuracy(clean, parcel.y),
            "acc_adv": accuracy(adv, parcel.y),
        }


@contextmanager
def noting(model: nn.Module) -> Iterator[Statistics]:
    """Inside, each batch norm in training mode notes the statistics of its batch, with graph."""
    noted: Statistics = {
        layer: [] for layer in model.modules() if isinstance(layer, _BatchNorm) and layer.training
    }

    def note(layer: nn.Module, inputs: tuple[Tensor]) -> None:
        assert isinstance(layer, _BatchNorm)
        (x,) = inputs
        noted[layer].append(used(layer, x))

    hooks = [layer.register_forward_pre_hook(note) for layer in noted]
    try:
        yield noted
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def borrowing(statistics: Statistics) -> Iterator[None]:
    """Inside, those batch norms normalise with the statistics given; running ones stay."""
    for layer, calls in statistics.items():
        layer.__dict__["forward"] = partial(_normalised, layer)
        layer.__dict__[LENT] = list(calls)  # on the layer, where blocks that recompute look
    try:
        yield
    finally:
        for layer in statistics:
            del layer.__dict__["forward"], layer.__dict__[LENT]


def _normalised(layer: _BatchNorm, x: Tensor) -> Tensor:
    mean, variance = layer.__dict__[LENT].pop(0)
    scale = (variance + layer.eps).rsqrt()
    if layer.affine:
        scale = scale * layer.weight
    shift = -mean * scale
    if layer.affine:
        shift = shift + layer.bias
    shape = (-1, *[1] * (x.ndim - 2))
    return (x * scale.view(shape) + shift.view(shape)).to(x.dtype)

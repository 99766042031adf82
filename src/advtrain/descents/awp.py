"""Adversarial weight perturbation (Wu et al. 2020, https://arxiv.org/abs/2004.05884, sec. 4).

min over w of max over ||v_l|| <= gamma ||w_l|| of the loss at w + v, the maximum by one step along
the gradient, tensor by tensor. Reads as the paper: w <- (w + v) - lr grad(w + v) - v, so weight
decay too acts on w + v. Only tensors of more than one dimension move (kernels and matrices), no
norms and no biases. The step that shifts runs with frozen statistics; the running statistics then
come from passes at w + v.

Differs: the authors take the direction from a step of SGD on a copy of the network, which is the
same vector (its rate cancels) with the rounding of a difference of two nearly equal weights. They
restore by subtracting v; here by w + (after - before), which is w itself where nothing moved.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from advtrain.exchange import summed
from advtrain.modes import frozen_statistics
from advtrain.ranges import NonNegative, Positive
from advtrain.types import Descent, Evaluate, Logs, Moment


@dataclass(frozen=True)
class Awp:
    """Runs `inner` at shifted weights from `start_epoch` on, at the weights themselves before.

    gamma: the length of the shift of a tensor, relative to the tensor's norm.
    """

    gamma: Positive
    start_epoch: NonNegative
    inner: Descent

    def __call__(
        self, model: nn.Module, optimizer: Optimizer, evaluate: Evaluate, now: Moment
    ) -> tuple[Tensor, Logs]:
        if now.epoch < self.start_epoch:
            return self.inner(model, optimizer, evaluate, now)
        with self.perturbed(model, evaluate):  # the step is taken at w + v
            return self.inner(model, optimizer, evaluate, now)

    @contextmanager
    def perturbed(self, model: nn.Module, evaluate: Evaluate) -> Iterator[None]:
        """Weights shifted inside; afterwards, what the body changed is kept, the shift is not.

        Bit for bit the old weights where the body changed none. Nothing but weights gets a
        gradient from the extra evaluation: not `.grad`, and no leaf of the parcel.
        """
        weights = [p for p in model.parameters() if p.ndim > 1 and p.requires_grad]
        with frozen_statistics(model):
            loss, _ = evaluate()
            gradients = summed(torch.autograd.grad(loss, weights, allow_unused=True), weights)
        used = [(w, g) for w, g in zip(weights, gradients, strict=True) if g is not None]
        values = [w.detach() for w, _ in used]
        before = [value.clone() for value in values]
        for value, (_, g) in zip(values, used, strict=True):
            value += self.gamma * value.norm() / (g.norm() + 1e-20) * g
        shifted = [value.clone() for value in values]
        try:
            yield
        finally:
            torch._foreach_sub_(values, shifted)
            torch._foreach_add_(values, before)

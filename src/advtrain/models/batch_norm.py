"""Batch norm of a minibatch that several processes share: statistics of all of it.

Each process adds mean, variance and count of its rows to a table; what the whole minibatch has
follows from that (Chan et al. 1979), with no difference of large numbers. Gradients pass through
the table in both directions, so they are those of one process with the whole minibatch, and may be
differentiated again, as some losses do. Names and values of a state dict are those of torch's.

Differs: torch.nn.SyncBatchNorm has kernels of its own, on CUDA alone, with one derivative.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from advtrain.exchange import added
from advtrain.world import here


class Together(_BatchNorm):
    """In training mode the statistics are those of all processes, else it is as it was."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or here().size == 1:
            return super().forward(x)
        mean, variance, count = of_all(x)
        self._remember(mean.detach(), variance.detach(), count.detach())
        return normalised(self, x, mean, variance)

    @torch.no_grad()
    def _remember(self, mean: Tensor, variance: Tensor, count: Tensor) -> None:
        """Running statistics, as torch keeps them: the variance is that of a sample."""
        if not self.track_running_stats or self.running_mean is None:
            return
        assert self.running_var is not None and self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        share = self.momentum if self.momentum is not None else 1 / self.num_batches_tracked
        sample = variance * (count / (count - 1).clamp(min=1))
        self.running_mean.add_(share * (mean.to(self.running_mean.dtype) - self.running_mean))
        self.running_var.add_(share * (sample.to(self.running_var.dtype) - self.running_var))


class Together1d(Together, nn.BatchNorm1d):
    pass


class Together2d(Together, nn.BatchNorm2d):
    pass


class Together3d(Together, nn.BatchNorm3d):
    pass


KINDS: dict[type[nn.Module], type[nn.Module]] = {
    nn.BatchNorm1d: Together1d,
    nn.BatchNorm2d: Together2d,
    nn.BatchNorm3d: Together3d,
}


def synchronise(model: nn.Module) -> None:
    """Let the batch norms of `model` take their statistics from all processes, in place."""
    for module in model.modules():
        if type(module) in KINDS:
            module.__class__ = KINDS[type(module)]


def used(layer: _BatchNorm, x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance (C,) that `layer` normalises `x` with in training mode."""
    if isinstance(layer, Together) and here().size > 1:
        mean, variance, _ = of_all(x)
        return mean, variance
    return own(x)


def own(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance (C,) over rows and places, in float32 at least, with gradient."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    variance, mean = torch.var_mean(wide, [i for i in range(x.ndim) if i != 1], correction=0)
    return mean, variance


def of_all(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`own` of the rows of all processes, and over how many numbers each is."""
    mean, variance = own(x)
    world = here()
    count = mean.new_tensor([x.numel() / x.shape[1]])
    row = torch.cat([mean, variance, count])[None]
    table = added(F.pad(row, (0, 0, world.rank, world.size - 1 - world.rank)))
    means, variances, counts = table.split([len(mean), len(mean), 1], dim=1)
    shares = counts / counts.sum()
    mean = (shares * means).sum(0)
    variance = (shares * (variances + (means - mean).square())).sum(0)
    return mean, variance, counts.sum()


def normalised(layer: _BatchNorm, x: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """`x` less `mean` over the root of `variance`, (C,) each, with the layer's scale and shift."""
    shape = (-1, *[1] * (x.ndim - 2))
    scale = (variance + layer.eps).rsqrt()
    if layer.affine:
        scale = scale * layer.weight
    out = (x - mean.view(shape)) * scale.view(shape)
    if layer.affine:
        out = out + layer.bias.view(shape)
    return out.to(x.dtype)

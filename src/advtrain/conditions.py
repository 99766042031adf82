"""What a conditional network is told beside its images: one lambda in [0, 1] for each.

lambda weighs robust against standard accuracy (Wang et al. 2020). Rows of lambda 0 come first, and
how many they are is a number of the host: every split by it is a slice, with no mask and no wait.
"""

from math import ceil
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from advtrain.draws import integers
from advtrain.ranges import Range, require
from advtrain.sharing import behind, shared
from advtrain.world import here

UNIT = Range(0, 1, hint="0 is all for standard accuracy, 1 all for robust accuracy")


class Condition(NamedTuple):
    """`lambdas` (B,), or (1,) for all images alike; the first `zeros` images have lambda 0."""

    lambdas: Tensor
    zeros: int

    def rest(self) -> "Condition":
        """That of the images behind the zeros."""
        return Condition(self.lambdas[self.zeros :], 0)

    def filled(self, images: int, size: int) -> "Condition":
        """That of `images` images of which the last is repeated, up to `size` rows."""
        lambdas, more = self.lambdas, size - images
        if len(lambdas) > 1:
            lambdas = torch.cat([lambdas, lambdas[-1:].expand(more)])
        return Condition(lambdas, size if self.zeros == images else self.zeros)


@runtime_checkable
class Conditional(Protocol):
    """A network called as `network(x, condition)`; without a condition it raises ValueError.

    `lambdas`: those that it is trained at, ascending. `values`: the same on its device, (L,).
    """

    @property
    def lambdas(self) -> tuple[float, ...]: ...

    @property
    def values(self) -> Tensor: ...

    def __call__(self, x: Tensor, condition: Condition) -> Tensor: ...


@runtime_checkable
class Slimmable(Protocol):
    """A conditional network that is several: one at each of its `widths`, ascending to 1."""

    @property
    def widths(self) -> tuple[float, ...]: ...

    def at_width(self, width: float) -> Any:
        """The one of that width, as a module. ValueError: there is none."""


def by_width(network: Conditional) -> dict[str, Conditional]:
    """The networks that are trained, by what the names of their logs end in: one for each width of
    a slimmable network, `[width=0.5]` and, the full one last, nothing; else the network itself."""
    if not isinstance(network, Slimmable):
        return {"": network}
    return {
        "" if width == 1 else f"[width={width:g}]": network.at_width(width)
        for width in network.widths
    }


def alike(lam: float, x: Tensor) -> Condition:
    """One lambda for all images of `x`. ValueError: outside [0, 1]."""
    require("lambda", lam, UNIT)
    return Condition(x.new_full((1,), lam), len(x) if lam == 0 else 0)


def leading(lambdas: tuple[float, ...], size: int, share: float | None = None) -> int:
    """How many of `size` images get lambda 0: that share of them, rounded up, where it is known.

    `share` None: 1 / L, as much as any other of the L lambdas.
    """
    if 0 not in lambdas:
        return 0
    if len(lambdas) == 1:
        return size
    return ceil(size / len(lambdas)) if share is None else ceil(share * size)


def drawn(network: Conditional, size: int, share: float | None = None) -> Condition:
    """The zeros, then lambdas drawn uniformly from the others, by the global generator."""
    others, batch = _nonzero(network), shared(size)
    of_all = zeros_of_all(network, size, share)
    zeros = of_all if batch is None else len(range(of_all)[batch.rows])
    if batch is not None:
        _require_both(of_all, batch.total)
    if zeros == size:
        return Condition(network.values.new_zeros(size), size)
    with behind(of_all):
        at = integers(others.new_empty(size - zeros, dtype=torch.int64), len(others))
    return Condition(torch.cat([others.new_zeros(zeros), others[at]]), zeros)


def zeros_of_all(network: Conditional, size: int, share: float | None = None) -> int:
    """How many rows have lambda 0 in the minibatch whose share, or all of it, are `size` rows."""
    batch = shared(size)
    return leading(network.lambdas, size if batch is None else batch.total, share)


def _require_both(zeros: int, total: int) -> None:
    """ValueError: a process has only zeros, or none, where others have both."""
    if 0 < zeros < here().size or 0 < total - zeros < here().size:
        raise ValueError(
            f"a minibatch of {total} images has {zeros} of lambda 0, and {here().size} processes "
            "want images of both kinds each. Use a larger batch_size, also for the last minibatch "
            "of an epoch, or fewer processes."
        )


def in_turn(network: Conditional, size: int) -> Condition:
    """The zeros, then the other lambdas one after the other; draws nothing."""
    zeros, others = leading(network.lambdas, size), _nonzero(network)
    times = -(-(size - zeros) // max(len(others), 1))
    return Condition(torch.cat([others.new_zeros(zeros), others.repeat(times)])[:size], zeros)


def _nonzero(network: Conditional) -> Tensor:
    return network.values[1:] if 0 in network.lambdas else network.values


def require_conditional(model: nn.Module, who: str) -> None:
    """Raise ValueError unless `model` is one; the message names those that are."""
    if not isinstance(model, Conditional):
        raise ValueError(
            f"{who} trains one network for every lambda, and {type(model).__name__} takes none. "
            "Use model=oat_small_cnn, oat_resnet34, oat_wrn_16_8 or oat_wrn_40_2; for one fixed "
            "lambda, defense=mixed_at defense.share=LAMBDA."
        )

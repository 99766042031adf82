"""Norms of a whole matrix, rows examples and columns classes: one number for all rows together.

A norm of this kind couples the rows: the gradient of one depends on all the others, so a result
belongs to its batch, and no row may be left out of it.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

CUT = 1e-12  # squared singular values below this share of the largest are rounding, and count as 0


def nuclear_norm(a: Tensor) -> Tensor:
    """The sum of the singular values of `a`, shape (B, K): a scalar, not finite if `a` is not.

    Its gradient is U V^T of the thin singular value decomposition, over singular values that are
    not 0: where `a` lacks full rank, the subgradient of least norm, and 0 where `a` is 0.
    Differentiable once. On a GPU it waits for the device: torch asks whether it converged.
    """
    norm: Tensor = _Nuclear.apply(a)
    return norm


def frobenius_norm(a: Tensor) -> Tensor:
    """The root of the sum of squares of `a`, shape (B, K): a scalar, with gradient 0 at 0."""
    return torch.linalg.vector_norm(a, dtype=torch.promote_types(a.dtype, torch.float32))


class _Nuclear(torch.autograd.Function):
    """By the Gram matrix of the shorter side, K by K as a rule.

    In float64, since its eigenvalues are squares of singular values: in float32 those below
    1/3000 of the largest would be lost.
    """

    @staticmethod
    def forward(ctx: Any, a: Tensor) -> Tensor:
        tall = _tall(a)
        gram = (tall.mT @ tall).nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
        squares, vectors = torch.linalg.eigh(gram)
        kept = squares > CUT * squares[-1:]
        values = squares.where(kept, 0.0).sqrt()
        ctx.save_for_backward(a, vectors, values.reciprocal().where(kept, 0.0))
        norm = values.sum() + 0 * tall.sum()  # not finite where `a` is not
        return norm.to(torch.promote_types(a.dtype, torch.float32))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outer: Tensor) -> Tensor:
        a, vectors, inverses = ctx.saved_tensors
        polar = _tall(a) @ ((vectors * inverses) @ vectors.mT)
        return outer * (polar if a.shape[0] >= a.shape[1] else polar.mT).to(a.dtype)


def _tall(a: Tensor) -> Tensor:
    """`a` in float64, its longer side first."""
    wide = a.to(torch.float64)
    return wide if a.shape[0] >= a.shape[1] else wide.mT

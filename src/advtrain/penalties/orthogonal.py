"""Orthogonal regularisation: how far the rows of each layer are from orthonormal.

W is the weights of a convolution or of a linear layer (the head among them) as a matrix,
(out, in kh kw), turned where it has more rows than columns, since only the shorter side can be
orthonormal; G = W W' - I.

- `frobenius`: ||G||_F^2, soft orthogonality (Bansal et al. 2018, https://arxiv.org/abs/1810.09102).
- `entries`: the mean of |G_ij| (Brock et al. 2017, https://arxiv.org/abs/1609.07093, where it
  is a sum: that of a layer of 512 is 262,144 terms against 256 of one of 16).
- `off_diagonal`: ||G||_F^2 without the diagonal, which leaves lengths free (Brock et al. 2019,
  https://arxiv.org/abs/1809.11096).
- `double`: that of both sides, ||W W' - I||_F^2 + ||W' W - I||_F^2 (Bansal et al. 2018). The
  second is the first and the difference of the sides, so its gradient is twice that of `frobenius`.
- `spectral`: the spectral norm of G, SRIP (Bansal et al. 2018).

Differs: Bansal et al. take W' W, which for wide layers cannot be I, so there their SRIP is at least
1 whatever the weights; and its norm by two steps of the power method from a random vector, here
from the weights alone and exact.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from advtrain.operators import layers, leading, short
from advtrain.ranges import NonNegative


def orthogonal(
    model: nn.Module,
    *,
    weight: NonNegative,
    form: Literal["frobenius", "entries", "off_diagonal", "double", "spectral"],
) -> Tensor:
    """`weight` times the sum over layers of how far each is from orthonormal, a scalar."""
    total = next(model.parameters()).new_zeros(())
    for layer in layers(model).values():
        total = total + FORMS[form](short(layer.weight))
    return weight * total


def gap(matrix: Tensor) -> Tensor:
    """W W' - I."""
    return matrix @ matrix.T - torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)


def frobenius(matrix: Tensor) -> Tensor:
    return gap(matrix).square().sum()


def entries(matrix: Tensor) -> Tensor:
    return gap(matrix).abs().mean()


def off_diagonal(matrix: Tensor) -> Tensor:
    found = gap(matrix)
    return found.square().sum() - found.diagonal().square().sum()


def double(matrix: Tensor) -> Tensor:
    rows, columns = matrix.shape
    return 2 * frobenius(matrix) + (columns - rows)


def spectral(matrix: Tensor) -> Tensor:
    found = gap(matrix)
    with torch.no_grad():
        v = leading(found @ found)
    return torch.linalg.vector_norm(found @ v)


FORMS: dict[str, Callable[[Tensor], Tensor]] = {
    "frobenius": frobenius,
    "entries": entries,
    "off_diagonal": off_diagonal,
    "double": double,
    "spectral": spectral,
}

from math import inf
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import linprog, minimize
from torch import Tensor

from advtrain.threat import L1, L2, Ball, Linf

BOXED = [Linf(0.1), L2(0.5), L1(1.5)]
FREE = [Linf(0.1, -inf, inf), L2(0.5, -inf, inf), L1(0.5, -inf, inf)]
boxed = pytest.mark.parametrize("threat", BOXED, ids=lambda threat: threat.norm)
free = pytest.mark.parametrize("threat", FREE, ids=lambda threat: threat.norm)


def problem(rows: int, pixels: int, share: float, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Images with saturated pixels, normals, and gaps of a `share` of what the box admits."""
    draws = torch.Generator().manual_seed(seed)
    x = (torch.rand(rows, pixels, generator=draws) * 1.4 - 0.2).clamp(0, 1)
    w = torch.randn(rows, pixels, generator=draws)
    sign = torch.arange(rows) % 2 * 2 - 1.0
    return x, w, share * rise(corner(x, w, sign), x, w)


def corner(x: Tensor, w: Tensor, sign: Tensor) -> Tensor:
    """Where <w, .> is largest in the box for sign 1, smallest for sign -1."""
    return torch.where(w == 0, x, (w * sign[:, None] > 0).to(x.dtype))


def rise(z: Tensor, x: Tensor, w: Tensor) -> Tensor:
    return ((z - x) * w).sum(1)


@free
def test_without_a_box_the_distance_is_the_gap_over_the_dual_norm(threat: Ball) -> None:
    x, w, gap = problem(20, 12, 0.5)
    z = threat.reach(x, w, gap)
    assert torch.allclose(rise(z, x, w), gap, rtol=1e-4)
    expected = gap.abs() * threat.eps / threat.support(w)
    assert torch.allclose(threat.distance(z, x), expected, rtol=1e-4)


def test_without_a_box_the_points_are_those_of_the_textbook() -> None:
    x, w, gap = torch.zeros(1, 3), torch.tensor([[1.0, -2.0, 0.0]]), torch.tensor([-6.0])
    assert torch.allclose(FREE[0].reach(x, w, gap), torch.tensor([[-2.0, 2.0, 0.0]]))
    assert torch.allclose(FREE[1].reach(x, w, gap), torch.tensor([[-1.2, 2.4, 0.0]]))
    assert torch.allclose(FREE[2].reach(x, w, gap), torch.tensor([[0.0, 3.0, 0.0]]))


def least(x: Any, w: Any, gap: float, norm: str) -> float:
    """The least norm of d with <w, d> = gap and 0 <= x + d <= 1, by a general solver."""
    count = len(x)
    bounds = [(-a, 1 - a) for a in x]
    if norm == "l2":
        d = minimize(
            lambda d: d @ d,
            np.zeros(count),
            jac=lambda d: 2 * d,
            bounds=bounds,
            constraints={"type": "eq", "fun": lambda d: w @ d - gap, "jac": lambda d: w},
            method="SLSQP",
            options={"ftol": 1e-12, "maxiter": 500},
        )
        return float(np.sqrt(d.fun))
    sizes = 1 if norm == "linf" else count  # unknowns beside d: bounds on its size
    spread = np.ones((count, 1)) if norm == "linf" else np.eye(count)
    eye = np.eye(count)
    solved = linprog(
        np.r_[np.zeros(count), np.ones(sizes)],
        A_ub=np.block([[eye, -spread], [-eye, -spread]]),
        b_ub=np.zeros(2 * count),
        A_eq=np.r_[w, np.zeros(sizes)][None],
        b_eq=[gap],
        bounds=bounds + [(0, None)] * sizes,
    )
    return float(solved.fun)


@boxed
@pytest.mark.parametrize("share", [0.1, 0.5, 0.8])
def test_in_the_box_the_point_is_that_of_a_general_solver(threat: Ball, share: float) -> None:
    x, w, gap = (part.double() for part in problem(12, 6, share))
    z = threat.reach(x, w, gap)
    assert ((z >= 0) & (z <= 1)).all()
    assert torch.allclose(rise(z, x, w), gap, rtol=1e-5)
    rows = zip(x.numpy(), w.numpy(), gap.tolist(), strict=True)
    expected = torch.tensor([least(*row, threat.norm) for row in rows], dtype=torch.float64)
    assert torch.allclose(threat.distance(z, x), expected, rtol=1e-5)


@boxed
@pytest.mark.parametrize("share", [0.01, 0.3, 0.5])
def test_large_images_reach_the_plane_to_float_precision(threat: Ball, share: float) -> None:
    x, w, gap = problem(40, 3072, share)
    z = threat.reach(x, w, gap)
    assert ((z >= 0) & (z <= 1)).all()
    assert torch.allclose(rise(z.double(), x.double(), w.double()), gap.double(), rtol=1e-4)


@boxed
@pytest.mark.parametrize("share", [0.9, 0.99, 1.0])
def test_planes_near_a_corner_are_never_overshot_and_nearly_reached(
    threat: Ball, share: float
) -> None:
    x, w, gap = problem(40, 300, share)
    part = rise(threat.reach(x, w, gap), x, w) / gap
    assert ((part > 0.97) & (part < 1 + 1e-4)).all()


@boxed
def test_planes_beyond_the_box_are_sought_at_the_corner(threat: Ball) -> None:
    x, w, gap = problem(20, 30, 3.0)
    w[:, 3] = 0
    assert torch.allclose(threat.reach(x, w, gap), corner(x, w, gap.sign()), atol=1e-5)


@boxed
def test_a_plane_through_the_point_and_a_normal_of_zero_leave_it_where_it_is(threat: Ball) -> None:
    x, w, gap = problem(6, 12, 0.5)
    assert torch.equal(threat.reach(x, w, gap * 0), x)
    assert torch.equal(threat.reach(x, w * 0, gap), x)


@boxed
@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1e12])
def test_the_scale_of_the_plane_does_not_matter(threat: Ball, scale: float) -> None:
    x, w, gap = problem(20, 12, 0.4)
    z = threat.reach(x, w, gap)
    assert torch.allclose(threat.reach(x, w * scale, gap * scale), z, atol=1e-5)
    assert torch.allclose(threat.reach(x, -w, -gap), z, atol=1e-6)


def test_pixels_of_equal_weight_share_the_way_in_l1() -> None:
    x, w = torch.tensor([[0.5, 0.0, 0.5, 0.5]]), torch.tensor([[2.0, 2.0, 1.0, -2.0]])
    z = L1(1.0).reach(x, w, torch.tensor([2.0]))
    assert torch.allclose(z, torch.tensor([[0.75, 0.5, 0.5, 0.25]]))


@boxed
def test_images_keep_their_shape_and_type_and_a_batch_may_be_empty(threat: Ball) -> None:
    x, w, gap = problem(4, 12, 0.5)
    z = threat.reach(x, w, gap)
    images = threat.reach(x.view(4, 3, 2, 2), w.view(4, 3, 2, 2), gap)
    assert torch.equal(images, z.view(4, 3, 2, 2))
    assert threat.reach(x[:0].view(0, 3, 2, 2), w[:0].view(0, 3, 2, 2), gap[:0]).shape[0] == 0
    half = threat.reach(x.bfloat16(), w.bfloat16(), gap)
    assert half.dtype == torch.bfloat16 and torch.allclose(half.float(), z, atol=0.05)

from math import inf, nan

import pytest
import torch
from torch import Tensor

from advtrain.threat import L1, L2, Ball, Linf

BALLS = [Linf(0.1), L2(0.5), L1(1.5)]
FREE = [Linf(0.1, -inf, inf), L2(0.5, -inf, inf), L1(1.5, -inf, inf)]
SHAPES = [(6, 1, 4, 4), (5, 12), (1, 3, 2, 2), (0, 3, 2, 2), (0, 12)]


def by_norm(threat: Ball) -> str:
    return threat.norm


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    """Uniform in [0, 1], a third of the pixels saturated."""
    return (torch.rand(shape, generator=generator(seed)) * 1.5 - 0.25).clamp(0, 1)


def noise(shape: tuple[int, ...], scale: float = 1.0, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=generator(seed)) * scale


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("threat", BALLS, ids=by_norm)
def test_projection_lands_in_both_sets_and_stays_there(
    threat: Ball, shape: tuple[int, ...]
) -> None:
    x = images(shape)
    once = threat.project(x + noise(shape), x)
    assert once.shape == x.shape
    assert ((once >= 0) & (once <= 1)).all()
    assert (threat.distance(once, x) <= threat.eps * (1 + 1e-5)).all()
    assert torch.allclose(threat.project(once, x), once, atol=1e-6)


@pytest.mark.parametrize("threat", BALLS, ids=by_norm)
def test_projection_never_lengthens_and_keeps_points_of_both_sets(threat: Ball) -> None:
    x = images((8, 12))
    for scale in (1e-3, 1e-2, 0.1, 1.0, 100.0):
        moved = x + noise(x.shape, scale)
        length = threat.distance(moved, x)
        assert (threat.distance(threat.project(moved, x), x) <= length * (1 + 1e-5)).all()
    inner = threat.sample(x, generator())
    assert torch.allclose(threat.project(inner, x), inner, atol=1e-6)


@pytest.mark.parametrize("threat", FREE, ids=by_norm)
def test_projection_without_a_box_is_the_nearest_point_of_the_ball(threat: Ball) -> None:
    x = images((50, 12))
    moved = x + noise(x.shape)
    nearest = threat.project(moved, x)
    for seed in range(20):
        other = threat.sample(x, generator(seed))
        angle = ((moved - nearest) * (other - nearest)).sum(1)
        assert (angle <= 1e-5).all()


@pytest.mark.parametrize("kind", [Linf, L2, L1])
def test_a_ball_of_radius_zero_is_its_centre(kind: type[Ball]) -> None:
    x = images((4, 3, 2, 2))
    assert torch.equal(kind(0.0).project(x + noise(x.shape), x), x)
    assert torch.equal(kind(0.0).sample(x, generator()), x)


@pytest.mark.parametrize("threat", BALLS, ids=by_norm)
def test_projection_bound_to_its_centre_makes_a_new_tensor(threat: Ball) -> None:
    x = images((4, 12))
    before = x.clone()
    project = threat.around(x)
    project(x).add_(1)
    assert torch.equal(x, before) and torch.equal(project(x), threat.project(x, x))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("threat", BALLS, ids=by_norm)
def test_steepest_has_unit_norm_and_attains_the_support(
    threat: Ball, shape: tuple[int, ...]
) -> None:
    gradient = noise(shape)
    direction = threat.steepest(gradient)
    assert direction.shape == gradient.shape
    assert torch.allclose(
        threat.distance(direction, torch.zeros_like(direction)), torch.ones(len(gradient))
    )
    gain = threat.eps * (direction * gradient).flatten(1).sum(1)
    assert torch.allclose(gain, threat.support(gradient.flatten(1)), rtol=1e-5)


@pytest.mark.parametrize("threat", BALLS, ids=by_norm)
def test_no_point_of_the_ball_exceeds_the_support(threat: Ball) -> None:
    w = noise((1, 6)).expand(5000, 6)
    free = type(threat)(threat.eps, -inf, inf)
    found = (free.sample(torch.zeros(5000, 6), generator()) * w).sum(1).max()
    bound = threat.support(w[:1])[0]
    assert 0.75 * bound < found <= bound * (1 + 1e-6)


@pytest.mark.parametrize("size", [1e-30, 1e-20, 1.0, 1e15])
@pytest.mark.parametrize("threat", BALLS, ids=by_norm)
def test_the_direction_does_not_depend_on_the_size_of_the_gradient(
    threat: Ball, size: float
) -> None:
    gradient = noise((4, 12))
    assert torch.allclose(threat.steepest(gradient * size), threat.steepest(gradient), atol=1e-6)


@pytest.mark.parametrize("threat", BALLS, ids=by_norm)
def test_zero_and_broken_gradients_give_finite_directions(threat: Ball) -> None:
    gradient = noise((4, 12))
    gradient[0], gradient[1], gradient[2, 3], gradient[3, 3] = 0, nan, nan, inf
    direction = threat.steepest(gradient)
    assert torch.isfinite(direction).all()
    assert not direction[:2].any()
    assert (threat.distance(direction, torch.zeros_like(direction)) <= 1 + 1e-6).all()


@pytest.mark.parametrize("threat", FREE, ids=by_norm)
def test_samples_are_uniform_in_the_ball(threat: Ball) -> None:
    count, pixels = 4000, 6
    delta = threat.sample(torch.zeros(count, pixels), generator())
    radius = threat.distance(delta, torch.zeros_like(delta)) / threat.eps
    volume = (radius**pixels).sort().values  # U[0, 1] where the ball is uniform
    gap = (volume - (torch.arange(count) + 0.5) / count).abs().max()
    assert gap < 1.63 / count**0.5  # Kolmogorov and Smirnov, 1 %
    assert delta.mean(0).abs().max() < 0.03 * threat.eps


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("threat", BALLS, ids=by_norm)
def test_samples_lie_in_both_sets_and_come_from_the_generator_alone(
    threat: Ball, shape: tuple[int, ...]
) -> None:
    x, state = images(shape), torch.get_rng_state()
    drawn = threat.sample(x, generator(3))
    assert torch.equal(drawn, threat.sample(x, generator(3)))
    assert torch.equal(torch.get_rng_state(), state)
    assert ((drawn >= 0) & (drawn <= 1)).all()
    assert (threat.distance(drawn, x) <= threat.eps * (1 + 1e-5)).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("threat", BALLS, ids=by_norm)
def test_geometry_keeps_the_type_of_the_images(threat: Ball, dtype: torch.dtype) -> None:
    x = images((3, 12)).to(dtype)
    for result in (
        threat.project(x + 1, x),
        threat.steepest(noise(x.shape).to(dtype)),
        threat.sample(x, generator()),
    ):
        assert result.dtype == dtype and torch.isfinite(result).all()
    assert threat.distance(x, x).dtype == torch.promote_types(dtype, torch.float32)


def test_the_support_can_be_differentiated() -> None:
    for threat in BALLS:
        w = noise((3, 12)).requires_grad_()
        (gradient,) = torch.autograd.grad(threat.support(w).sum(), w)
        assert torch.allclose(gradient, threat.eps * threat.steepest(w.detach()), atol=1e-6)


@pytest.mark.parametrize("eps", [8, -0.1, nan, inf])
def test_absurd_radii_are_refused_with_a_sentence(eps: float) -> None:
    with pytest.raises(ValueError, match=rf"Linf\.eps is {eps}, outside \[0, 1\].*8/255, not 8"):
        Linf(eps)


def test_long_radii_are_allowed_for_l2_and_l1_up_to_the_diameter_of_a_large_image() -> None:
    assert L2(128).eps == 128 and L1(3000).eps == 3000
    with pytest.raises(ValueError, match=r"L2\.eps is 1000, outside \[0, 886"):
        L2(1000)
    with pytest.raises(ValueError, match=r"L1\.eps is -1, outside"):
        L1(-1)


def test_an_empty_box_is_refused() -> None:
    with pytest.raises(ValueError, match=r"L2\.low is 1\.0 and L2\.high is 0\.0"):
        L2(0.5, 1.0, 0.0)

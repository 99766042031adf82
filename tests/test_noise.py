"""Noise of smoothing: closed forms of half-spaces, an exhaustive check, the laws of each kind."""

from math import sqrt

import numpy as np
import pytest
import torch
from torch import nn

from advtrain.certification.bounds import draws_needed, lower_bound
from advtrain.certification.noise import GAUSSIAN, KINDS, Uniform, linf, norm
from advtrain.certification.smoothing import ABSTAIN, Smoothed

UNIFORM = Uniform()
SIGMA = 0.2
LAMBDA = sqrt(3) * SIGMA


class Above(nn.Module):
    """Class 1 where the weighted sum of the pixels exceeds `boundary`, else class 0."""

    def __init__(self, weights, boundary):
        super().__init__()
        self.register_buffer("weights", torch.tensor(weights))
        self.boundary = boundary

    def forward(self, x):
        score = x.flatten(1) @ self.weights - self.boundary
        return torch.stack([-score, score], 1)


def test_the_l1_radius_of_a_pixels_halfspace_is_its_distance_exactly():
    distance = np.linspace(0, LAMBDA, 101)
    rate = 0.5 + distance / (2 * LAMBDA)  # of uniform noise that stays on the side of the image
    assert UNIFORM.radius(rate, SIGMA) == pytest.approx(distance, abs=1e-12)


def test_the_l1_radius_of_a_diagonal_is_below_its_distance_and_right_at_the_boundary():
    gap = np.linspace(0, 2 * LAMBDA, 101)  # of the sum of two pixels: the distance in l1
    rate = 1 - (2 * LAMBDA - gap) ** 2 / (8 * LAMBDA**2)  # of a sum of two uniform draws
    radius = UNIFORM.radius(rate, SIGMA)
    assert (radius <= gap + 1e-12).all()
    assert radius[1] == pytest.approx(gap[1], rel=0.02)


def test_no_more_than_a_share_alpha_of_l1_radii_exceeds_the_true_distance():
    random, alpha, n = np.random.default_rng(0), 0.01, 1000
    distance = random.uniform(0, 0.95 * LAMBDA, 10_000)
    hits = random.binomial(n, 0.5 + distance / (2 * LAMBDA))
    claimed = UNIFORM.radius(lower_bound(hits, n, alpha), SIGMA)
    too_far = int((claimed > distance).sum())
    assert 0 < too_far <= 100 + 3.1 * 100**0.5  # a binomial of mean at most 100, to one in 1000
    assert np.median(distance - claimed) < 0.1 * LAMBDA


def test_certificates_by_uniform_noise_are_distances_from_below():
    x = torch.zeros(4, 1, 2, 2)
    x[:, 0, 0, 0] = torch.tensor([0.3, 0.4, 0.7, 0.501])
    smoothed = Smoothed(Above([1.0, 0, 0, 0], 0.5), 2, SIGMA, noise=UNIFORM)
    classes, radii = smoothed.certify(x, n=20_000, seeds=range(4))
    assert classes.tolist() == [0, 0, 1, ABSTAIN] and radii[3] == 0
    distance = torch.tensor([0.2, 0.1, 0.2])
    assert (radii[:3] < distance).all() and (radii[:3] > distance - 0.02).all()


def test_within_l1_radii_no_answer_of_any_classifier_changes():
    """On a grid the rates of a smoothed classifier are means over squares, without chance."""
    random, side, reach = np.random.default_rng(0), 90, 10
    coarse = random.random((side // 5, side // 5)) < 0.7
    classes = np.kron(coarse, np.ones((5, 5), dtype=bool))
    window = 2 * reach
    sums = np.pad(classes.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    boxes = (
        sums[window:, window:] - sums[:-window, window:]
        - sums[window:, :-window] + sums[:-window, :-window]
    )  # fmt: skip
    rate = boxes / window**2
    sigma = reach / sqrt(3)
    radii = UNIFORM.radius(rate, sigma)  # in cells, for the class 1
    places = np.indices(rate.shape)
    held = 0
    for i, j in zip(*(radii > 1).nonzero(), strict=True):
        distance = abs(places[0] - i) + abs(places[1] - j)
        inside = distance < radii[i, j] - 1e-9
        assert (rate[inside] > 0.5).all()
        held += int(inside.sum())
    assert held > 20_000


@pytest.mark.parametrize("noise", KINDS.values(), ids=KINDS)
def test_draws_have_the_standard_deviation_sigma_and_no_mean(noise):
    seen = []

    def model(x):
        seen.append(x.clone())
        return torch.zeros(len(x), 2)

    Smoothed(model, 2, 0.5, noise=noise).counts(torch.full((1, 1, 10, 10), 0.9), 1000, seeds=[0])
    drawn = torch.cat(seen) - 0.9
    assert drawn.mean().abs() < 0.008 and drawn.std() == pytest.approx(0.5, abs=0.006)
    reach = drawn.abs().max()
    assert reach <= 0.5 * sqrt(3) + 1e-6 if noise is KINDS["uniform"] else reach > 1.5


@pytest.mark.parametrize("noise", KINDS.values(), ids=KINDS)
def test_the_largest_radius_is_that_of_equal_answers_whatever_the_noise(noise):
    for n in (1, 9, 10, 1000, 100_000):
        equal = float(noise.radius(lower_bound(n, n, 0.001), SIGMA))
        assert noise.largest(SIGMA, n, 0.001) == pytest.approx(equal, abs=1e-9)
        assert (equal > 0) == (n >= draws_needed(0.001))


@pytest.mark.parametrize("noise", KINDS.values(), ids=KINDS)
def test_a_rate_certifies_the_radius_that_needs_it(noise):
    for radius in (0.0, 0.05, 0.3):
        assert noise.radius(noise.rate(radius, SIGMA), SIGMA) == pytest.approx(radius, abs=1e-12)
    assert noise.radius([0.0, 0.4, 0.5], SIGMA).tolist() == [0, 0, 0]


def test_radii_in_linf_shrink_by_the_diagonal_of_the_cube():
    corner = np.full(784, linf(0.5, GAUSSIAN, 784))
    assert np.linalg.norm(corner) == pytest.approx(0.5)
    assert np.full(784, linf(0.5, UNIFORM, 784)).sum() == pytest.approx(0.5)
    assert [norm(noise) for noise in (GAUSSIAN, UNIFORM)] == ["l2", "l1"]

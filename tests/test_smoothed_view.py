"""The soft-smoothed view: an expectation known by quadrature, and a plain function of an image."""

from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from advtrain.attacks.guard import modules_of
from advtrain.attacks.pgd import pgd
from advtrain.averaged import passes
from advtrain.models.views import smoothed
from advtrain.threat import L2


class Steps(nn.Module):
    """Two logits, 0 and `slope` times the first pixel; keeps the sizes of its batches."""

    def __init__(self, slope=8.0):
        super().__init__()
        self.slope, self.sizes = slope, []

    def forward(self, x):
        self.sizes.append(len(x))
        score = self.slope * x.flatten(1)[:, :1]
        return torch.cat([torch.zeros_like(score), score], 1)


def images(count=5):
    return torch.rand(count, 1, 4, 4, generator=torch.Generator().manual_seed(0))


def test_probabilities_are_the_expectation_over_gaussian_noise():
    x = torch.tensor([[-0.3], [0.0], [0.1], [0.6]])
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    at = x.numpy() + 0.25 * nodes
    expected = (weights / weights.sum() / (1 + np.exp(-8 * at))).sum(1)
    found = smoothed(Steps(), sigma=0.25, draws=100_000, seed=1)(x).exp()
    assert torch.allclose(found.sum(1), torch.ones(4), atol=1e-5)
    assert found[:, 1].numpy() == pytest.approx(expected, abs=0.005)


def test_it_is_the_mean_of_the_probabilities_of_the_noisy_images():
    seen = []

    def model(noisy):
        seen.append(noisy)
        return Steps()(noisy)

    x = images()
    found = smoothed(model, sigma=0.5, draws=7, seed=3)(x)
    noise = seen[0].unflatten(0, (7, 5)) - x
    assert torch.allclose(noise, noise[:, :1].expand_as(noise), atol=1e-6)  # shared by all images
    mean = torch.stack([Steps()(x + each).softmax(1) for each in noise]).mean(0)
    assert torch.allclose(found, mean.log(), atol=1e-6)


def test_with_a_seed_an_image_has_the_same_logits_alone_and_again():
    view, x = smoothed(Steps(), sigma=0.5, draws=7, seed=3), images()
    before = torch.get_rng_state()
    assert torch.equal(view(x), view(x))
    assert torch.allclose(view(x)[2:3], view(x[2:3]), atol=1e-6)
    assert torch.equal(torch.get_rng_state(), before)
    other = smoothed(Steps(), sigma=0.5, draws=7, seed=4)(x)
    assert not torch.allclose(view(x), other, atol=1e-3)


def test_without_a_seed_noise_is_fresh_for_each_image_and_from_the_global_state():
    view, x = smoothed(Steps(), sigma=0.5, draws=7, seed=None), images(1).expand(2, 1, 4, 4)
    torch.manual_seed(0)
    first, second = view(x), view(x)
    assert not torch.allclose(first, second, atol=1e-3)
    assert not torch.allclose(first[0], first[1], atol=1e-3)
    torch.manual_seed(0)
    assert torch.equal(view(x), first)


def test_all_draws_of_all_images_are_one_forward_pass():
    model = Steps()
    view = smoothed(model, sigma=0.5, draws=7, seed=3)
    view(images())
    assert model.sizes == [35] and passes(view) == 7


def test_gradients_are_those_of_the_mean():
    view = smoothed(Steps(), sigma=0.5, draws=7, seed=3)
    x = images(2).double().requires_grad_()
    assert torch.autograd.gradcheck(view, x)


def test_attacks_find_the_network_behind_it_and_leave_it_as_it_was(untouched):
    model = untouched(nn.Sequential(nn.Flatten(), nn.BatchNorm1d(16), nn.Linear(16, 3)).train())
    view = smoothed(model, sigma=0.25, draws=4, seed=0)
    assert list(modules_of(view)) == [view] and model in view.modules()
    x, y = images(), torch.tensor([0, 1, 2, 0, 1])
    attack = partial(pgd, threat=L2(0.5), steps=3, step_size=0.2)
    generators = (torch.Generator().manual_seed(5) for _ in range(2))
    first, second = (attack(view, x, y, generator=each) for each in generators)
    assert torch.equal(first, second) and not torch.equal(first, x)


@pytest.mark.parametrize(
    ("given", "message"), [({"sigma": 0.0}, "sigma is 0"), ({"draws": 0}, "draws is 0")]
)
def test_no_noise_and_no_draws_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        smoothed(Steps(), **({"sigma": 0.5, "draws": 7, "seed": 0} | given))

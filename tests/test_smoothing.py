"""Certificates against published values, closed forms, and the formulas written a second way."""

from functools import partial
from math import comb, lgamma, log, log1p
from statistics import NormalDist

import numpy as np
import pytest
import torch
from scipy.stats import binomtest, norm
from torch import nn

from advtrain.certification import smoothing
from advtrain.certification.bounds import (
    draws_needed,
    largest_radius,
    lower_bound,
    radius,
    rank_p_value,
)
from advtrain.certification.noise import Gaussian
from advtrain.certification.smoothing import ABSTAIN, BLOCK, Smoothed, streams_of

Z = NormalDist()


class HalfSpace(nn.Module):
    """Class 0 where the first coordinate is below `boundary`, class 1 elsewhere."""

    def __init__(self, boundary=0.5, classes=2):
        super().__init__()
        self.boundary = boundary
        self.pad = classes - 2
        self.dropout = nn.Dropout(0.5)

    def forward(self, x):
        score = self.dropout(x.flatten(1)[:, :1] - self.boundary)
        return nn.functional.pad(torch.cat([-score, score], 1), (0, self.pad), value=-1e9)


@pytest.fixture
def images():
    x = torch.rand(7, 1, 4, 4, generator=torch.Generator().manual_seed(3))
    x[:, 0, 0, 0] = torch.linspace(0.2, 0.95, 7)
    return x


def tail(hits, trials, rate):
    """P[X >= hits] for X binomial, from its terms."""
    terms = range(hits, trials + 1)
    if trials <= 1000:
        return sum(comb(trials, i) * rate**i * (1 - rate) ** (trials - i) for i in terms)
    logs = [
        lgamma(trials + 1) - lgamma(i + 1) - lgamma(trials - i + 1)
        + i * log(rate) + (trials - i) * log1p(-rate)
        for i in terms
    ]  # fmt: skip
    return float(np.exp(logs).sum())


def bound_by_bisection(hits, trials, alpha):
    """The rate at which `hits` or more have probability alpha."""
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if tail(hits, trials, middle) < alpha else (low, middle)
    return low


@pytest.mark.parametrize(
    ("hits", "trials", "alpha", "p_low", "scaled"),
    [
        (100, 100, 0.001, 0.9332543008, 1.500475),
        (990, 1000, 0.001, 0.9760361872, 1.978010),
        (99_000, 100_000, 0.001, 0.9889893404, 2.290000),
        (51_000, 100_000, 0.001, 0.5051093492, 0.012808),
        (50_500, 100_000, 0.001, 0.5001089517, 0.000273),
        (100_000, 100_000, 0.001, 0.9999309248, 3.811457),
        (100_000, 100_000, 0.01, 0.9999539494, 3.910510),
    ],
)
def test_bounds_and_radii_have_their_reference_values(hits, trials, alpha, p_low, scaled):
    assert lower_bound(hits, trials, alpha) == pytest.approx(p_low, abs=1e-10)
    assert radius(lower_bound(hits, trials, alpha), 1.0) == pytest.approx(scaled, abs=1e-6)


@pytest.mark.parametrize(
    ("n", "scaled"), [(100, 1.5005), (1000, 2.4633), (10_000, 3.1986), (100_000, 3.8115)]
)
def test_the_largest_radius_is_that_of_equal_answers(n, scaled):
    assert largest_radius(1.0, n, 0.001) == pytest.approx(scaled, abs=5e-5)
    for sigma in (0.25, 0.5, 1.0):
        equal = radius(lower_bound(n, n, 0.001), sigma)
        assert largest_radius(sigma, n, 0.001) == pytest.approx(float(equal), abs=1e-9)


@pytest.mark.parametrize(
    ("fewest", "n"), [(66, 100), (286, 500), (550, 1000), (5156, 10_000), (10, 10)]
)
def test_the_fewest_hits_that_do_not_abstain_are_known(fewest, n):
    bounds = lower_bound([fewest - 1, fewest], n, 0.001)
    assert bounds[0] <= 0.5 < bounds[1]
    assert radius(bounds[0], 1.0) == 0


def test_the_draws_needed_are_the_first_that_can_certify():
    for alpha in (0.5, 0.05, 0.001, 1e-9):
        needed = draws_needed(alpha)
        assert alpha ** (1 / needed) > 0.5
        assert needed == 1 or alpha ** (1 / (needed - 1)) <= 0.5
    assert largest_radius(1.0, 9, 0.001) == 0


@pytest.mark.parametrize(
    ("top", "second", "p_value"),
    [
        (67, 33, 8.7372e-4),
        (66, 34, 1.78993e-3),
        (553, 447, 8.89986e-4),
        (552, 448, 1.11505e-3),
        (60, 40, 0.0568879),
    ],
)
def test_p_values_have_their_reference_values(top, second, p_value):
    assert rank_p_value(top, second) == pytest.approx(p_value, rel=1e-5)


def test_p_values_are_those_of_the_two_sided_binomial_test():
    pairs = [(0, 0), (1, 0), (5, 5), (6, 5), (9, 0), (400, 377), (5166, 4834), (5165, 4835)]
    for top, second in pairs:
        expected = binomtest(top, top + second).pvalue if top + second else 1.0
        assert rank_p_value(top, second) == pytest.approx(expected, rel=1e-9)
    assert (rank_p_value([5166, 5165], [4834, 4835]) <= 0.001).tolist() == [True, False]


def test_bounds_agree_with_bisection_on_the_binomial_tail():
    for trials, hits in [(1, 1), (10, 3), (100, 50), (100, 99), (1000, 700), (20_000, 19_990)]:
        for alpha in (0.05, 0.001):
            again = bound_by_bisection(hits, trials, alpha)
            assert lower_bound(hits, trials, alpha) == pytest.approx(again, abs=1e-9)


def test_bounds_refuse_impossible_counts():
    assert lower_bound(0, 10, 0.001) == 0
    for hits, trials, alpha in [(11, 10, 0.1), (-1, 10, 0.1), (0, 0, 0.1), (1, 2, 0), (1, 2, 1)]:
        with pytest.raises(ValueError, match=r"hits|alpha"):
            lower_bound(hits, trials, alpha)


def test_no_more_than_a_share_alpha_of_radii_exceeds_the_true_distance():
    random, sigma, alpha, n = np.random.default_rng(0), 0.25, 0.01, 1000
    distance = random.uniform(0, 2.2 * sigma, 10_000)
    rate = np.array([Z.cdf(d / sigma) for d in distance])
    claimed = radius(lower_bound(random.binomial(n, rate), n, alpha), sigma)
    too_far = int((claimed > distance).sum())
    assert 0 < too_far <= 100 + 3.1 * 100**0.5  # a binomial of mean at most 100, to one in 1000
    assert np.median(distance - claimed) < 0.15 * sigma


def test_radii_of_a_halfspace_are_its_distance_from_below():
    x = torch.zeros(4, 1, 2, 2)
    x[:, 0, 0, 0] = torch.tensor([0.2, 0.4, 0.7, 0.501])
    classes, radii = Smoothed(HalfSpace(), 2, 0.25).certify(x, n=20_000, seeds=range(4))
    assert classes.tolist() == [0, 0, 1, ABSTAIN]
    distance = torch.tensor([0.3, 0.1, 0.2])
    assert (radii[:3] < distance).all() and (radii[:3] > distance - 0.02).all()
    assert radii[3] == 0
    assert classes.dtype == torch.int64 and radii.dtype == torch.float64


def test_of_ten_thousand_certificates_a_share_alpha_at_most_exceeds_the_true_distance():
    """With noise as it is drawn, and the class guessed from few draws."""
    sigma, alpha, images = 0.25, 0.05, 10_000
    x = torch.zeros(images, 2)
    x[:, 0] = 0.5 + torch.linspace(-2 * sigma, 2 * sigma, images)
    s = Smoothed(HalfSpace(), 2, sigma, batch_size=20_000)
    classes, radii = s.certify(x, n0=5, n=60, alpha=alpha, seeds=range(images))
    right = classes == (x[:, 0] > 0.5)
    wrong = (radii > (x[:, 0] - 0.5).abs()) | (~right & (classes != ABSTAIN))
    assert 0 < int(wrong.sum()) <= images * alpha + 3.1 * (images * alpha) ** 0.5
    assert int((classes != ABSTAIN).sum()) > images / 2


def published(selection, estimation, sigma, alpha):
    """CERTIFY of Cohen et al. 2019 from the counts of an image; the interval inverts a test."""
    guess, n = int(selection.argmax()), int(estimation.sum())
    test = binomtest(int(estimation[guess]), n, alternative="greater")
    p_low = test.proportion_ci(confidence_level=1 - alpha, method="exact").low
    return (ABSTAIN, 0.0) if p_low < 0.5 else (guess, sigma * norm.ppf(p_low))


@pytest.mark.parametrize(("n0", "n", "alpha"), [(10, 100, 0.001), (100, 3000, 0.01)])
def test_decisions_and_radii_are_those_of_the_published_algorithm(n0, n, alpha):
    """Beside the authors' core.py itself, with its interval from SciPy, given the same counts of
    2000 images (linear network, ten classes, sigma 0.25, n0 100): with n 100 and with n 1000 all
    classes, abstentions and radii were the same to the bit, and all answers of PREDICT.
    """
    torch.manual_seed(1)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 5)).eval()
    x = torch.rand(60, 1, 4, 4, generator=torch.Generator().manual_seed(4))
    s, seeds = Smoothed(model, 5, 0.25), range(60)
    classes, radii = s.certify(x, n0, n, alpha, seeds=seeds)
    streams = streams_of(x, seeds, None)  # which both counts share, one after the other
    counts = [s.tally(x, [draws] * 60, streams).numpy() for draws in (n0, n)]
    expected = [published(*pair, 0.25, alpha) for pair in zip(*counts, strict=True)]
    assert classes.tolist() == [guess for guess, _ in expected]
    assert radii.tolist() == pytest.approx([radius for _, radius in expected], abs=1e-9)
    assert ABSTAIN in classes and len(classes.unique()) >= 3


def test_decisions_follow_from_the_counts_by_the_formulas(images):
    s, n0, n, alpha, seeds = Smoothed(HalfSpace(0.6), 2, 0.5), 40, 700, 0.01, range(7)
    classes, radii = s.certify(images, n0, n, alpha, seeds=seeds)
    for i, image in enumerate(images):
        stream = torch.Generator().manual_seed(i)
        first = [torch.randn(n0, 1, 4, 4, generator=stream)]
        fresh = [torch.randn(k, 1, 4, 4, generator=stream) for k in (BLOCK, n - BLOCK)]
        above = [
            int(((image + 0.5 * noise)[:, 0, 0, 0] > 0.6).sum())
            for noise in (torch.cat(first), torch.cat(fresh))
        ]
        guess = int(above[0] > n0 - above[0])
        p_low = bound_by_bisection(above[1] if guess else n - above[1], n, alpha)
        expected = (guess, 0.5 * Z.inv_cdf(p_low)) if p_low > 0.5 else (ABSTAIN, 0.0)
        assert (int(classes[i]), float(radii[i])) == pytest.approx(expected, abs=1e-9)


def test_predictions_follow_from_the_counts_by_the_binomial_test(images):
    s = Smoothed(HalfSpace(0.6), 2, 0.5)
    counts = s.counts(images, 300, seeds=range(7))
    assert counts.dtype == torch.int64 and (counts.sum(1) == 300).all()
    expected = [
        int(row.argmax()) if binomtest(int(row.max()), 300).pvalue <= 0.01 else ABSTAIN
        for row in counts
    ]
    assert s.predict(images, 300, 0.01, seeds=range(7)).tolist() == expected
    assert ABSTAIN in expected and set(expected) != {ABSTAIN}


@pytest.mark.parametrize("batch_size", [1, 64, 500, 777, 10**6])
def test_batch_size_changes_nothing(images, batch_size):
    def both(size):
        s = Smoothed(HalfSpace(), 2, 0.25, batch_size=size)
        return *s.certify(images, 30, 600, seeds=range(7)), s.counts(images, 600, seeds=range(7))

    for ours, usual in zip(both(batch_size), both(1000), strict=True):
        assert torch.equal(ours, usual)


def test_an_image_is_certified_alone_as_among_others(images):
    s = Smoothed(HalfSpace(), 2, 0.25)
    classes, radii = s.certify(images, n=600, seeds=range(10, 17))
    for i in (0, 3, 6):
        alone = s.certify(images[i : i + 1], n=600, seeds=[10 + i])
        assert torch.equal(alone[0], classes[i : i + 1]) and torch.equal(alone[1], radii[i : i + 1])
    order = [4, 2, 6]
    shuffled = s.certify(images[order], n=600, seeds=[10 + i for i in order])
    assert torch.equal(shuffled[1], radii[order])


def test_forward_passes_are_full(images):
    sizes = []

    def model(x):
        sizes.append(len(x))
        return HalfSpace().eval()(x)

    Smoothed(model, 2, 0.25, batch_size=100).certify(images, n0=30, n=60)
    assert sizes == [100, 100, 10, 100, 100, 100, 100, 20]  # 7 images by 30, then by 60


def test_a_generator_reproduces_and_leaves_the_global_state(images):
    s = Smoothed(HalfSpace(), 2, 0.25)
    before = torch.get_rng_state()
    draws = [
        s.counts(images, 200, generator=torch.Generator().manual_seed(seed)) for seed in (5, 5, 6)
    ]
    s.certify(images, n=100, seeds=range(7))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])


def test_without_seeds_noise_comes_from_the_global_state(images):
    s = Smoothed(HalfSpace(), 2, 0.25)
    draws = []
    for seed in (1, 1, None):
        if seed is not None:
            torch.manual_seed(seed)
        draws.append(s.counts(images, 200))
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[1], draws[2])


def test_a_coin_flip_is_abstained_on():
    x = torch.full((20, 1, 2, 2), 0.5)
    s = Smoothed(HalfSpace(), 2, 0.25)
    classes, radii = s.certify(x, n=2000, seeds=range(20))
    assert (classes == ABSTAIN).all() and (radii == 0).all()
    assert (s.predict(x, seeds=range(20)) == ABSTAIN).all()


def test_selection_and_estimation_draw_different_noise():
    seen = []

    def model(x):
        seen.append(x.clone())
        return HalfSpace().eval()(x)

    Smoothed(model, 2, 0.25).certify(torch.zeros(1, 1, 2, 2), n0=100, n=100, seeds=[0])
    assert len(seen) == 2 and not torch.isin(seen[0], seen[1]).any()


def test_noise_is_gaussian_and_not_clipped():
    seen = []

    def model(x):
        seen.append(x.clone())
        return HalfSpace().eval()(x)

    Smoothed(model, 2, 0.5).counts(torch.full((1, 1, 10, 10), 0.9), 1000, seeds=[0])
    noise = torch.cat(seen) - 0.9
    assert noise.mean().abs() < 0.008 and noise.std() == pytest.approx(0.5, abs=0.006)
    assert noise.max() > 1.5 and noise.min() < -1.5


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_logits_that_are_not_finite_help_no_class(images, bad):
    def sick(x):
        return torch.full((len(x), 2), bad)

    def half_sick(x):
        logits = torch.tensor([[1.0, 0.0]]).repeat(len(x), 1)
        return logits.where(x[:, 0, 0, :1] > images[0, 0, 0, 0], bad)

    all_bad = Smoothed(sick, 2, 0.25)
    assert (all_bad.counts(images, 50) == 0).all()
    assert (all_bad.predict(images) == ABSTAIN).all()
    classes, radii = all_bad.certify(images, n=100)
    assert (classes == ABSTAIN).all() and (radii == 0).all()
    s = Smoothed(half_sick, 2, 0.25)
    assert 400 < int(s.counts(images[:1], 1000, seeds=[0])[0, 0]) < 600
    assert s.predict(images[:1], seeds=[0]).tolist() == [ABSTAIN]
    assert s.certify(images[:1], n=1000, seeds=[0])[0].tolist() == [ABSTAIN]


@pytest.mark.parametrize("wrap", [lambda model: model, partial])
def test_model_is_left_as_it_was_and_judged_in_evaluation_mode(images, wrap):
    model = nn.Sequential(nn.BatchNorm2d(1), HalfSpace(0.0))
    model.train()
    model[0].eval()
    state = {key: value.clone() for key, value in model.state_dict().items()}
    s = Smoothed(wrap(model), 2, 0.25)
    counts = s.counts(images, 100, seeds=range(7))
    assert [module.training for module in model.modules()] == [True, False, True, True]
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    certificates = s.certify(images, 20, 100, seeds=range(7))
    assert [module.training for module in model.modules()] == [True, False, True, True]
    judged = Smoothed(model.eval(), 2, 0.25)
    assert torch.equal(counts, judged.counts(images, 100, seeds=range(7)))
    classes, radii = judged.certify(images, 20, 100, seeds=range(7))
    assert torch.equal(certificates[0], classes) and torch.equal(certificates[1], radii)


def test_mode_returns_when_the_model_raises(images):
    model = HalfSpace(classes=3).train()
    with pytest.raises(ValueError, match="num_classes = 2"):
        Smoothed(model, 2, 0.25).predict(images)
    assert model.training and model.dropout.training


def test_flat_images_and_none_at_all_are_fine():
    s = Smoothed(HalfSpace(), 2, 0.25)
    assert s.certify(torch.full((2, 5), 0.2), n=100, seeds=[0, 1])[0].tolist() == [0, 0]
    classes, radii = s.certify(torch.zeros(0, 1, 2, 2), n=100)
    assert classes.shape == radii.shape == (0,)
    assert s.predict(torch.zeros(0, 1, 2, 2)).shape == (0,)


@pytest.mark.parametrize(
    ("configuration", "message"),
    [
        ({"sigma": 0.0}, "sigma is 0"),
        ({"sigma": -0.1}, "sigma is -0.1"),
        ({"num_classes": 0}, "num_classes is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
    ],
)
def test_absurd_smoothing_is_refused_at_construction(configuration, message):
    with pytest.raises(ValueError, match=message):
        Smoothed(**({"model": HalfSpace(), "num_classes": 2, "sigma": 0.25} | configuration))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s, x: s.certify(x, n0=0), "n0 is 0"),
        (lambda s, x: s.certify(x, n=9), "Use n >= 10"),
        (lambda s, x: s.certify(x, alpha=0.0), "alpha is 0"),
        (lambda s, x: s.certify(x, alpha=1.0), "alpha is 1"),
        (lambda s, x: s.predict(x, n=0), "n is 0"),
        (lambda s, x: s.predict(x, alpha=1.5), "alpha is 1.5"),
        (lambda s, x: s.certify(x, n=100.5), "n is 100.5; allowed is a whole number"),
        (lambda s, x: s.certify(x, n0=-3), "n0 is -3; allowed is a whole number"),
        (lambda s, x: s.predict(x.to(torch.uint8)), "uint8"),
        (lambda s, x: s.predict(x.to(torch.bfloat16)), "bfloat16"),
        (lambda s, x: s.predict(x[:, 0, 0, 0]), "shape"),
        (lambda s, x: s.predict(x, seeds=[1]), "1 seeds were given for 7"),
        (lambda s, x: s.predict(x, seeds=range(7), generator=torch.Generator()), "give one"),
    ],
)
def test_wrong_calls_are_refused_in_a_sentence(images, call, message):
    with pytest.raises(ValueError, match=message):
        call(Smoothed(HalfSpace(), 2, 0.25), images)


def test_blocks_of_large_images_are_small_and_the_same_for_every_batch_size(images, monkeypatch):
    monkeypatch.setattr(smoothing, "NUMBERS", 70)  # four images of 16 pixels
    asked = []

    class Watched(Gaussian):
        def fill(self, out, stream):
            asked.append(len(out))
            super().fill(out, stream)

    counts = [
        Smoothed(HalfSpace(), 2, 0.25, size, Watched()).counts(images, 30, seeds=range(7))
        for size in (3, 1000)
    ]
    assert asked == 14 * [*7 * [4], 2]
    assert torch.equal(*counts)


@pytest.mark.gpu
def test_a_device_counts_like_the_processor(images):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    s = Smoothed(HalfSpace(), 2, 0.25, batch_size=333)
    x = images.cuda()
    counts = s.counts(x, 5000, seeds=range(7))
    assert counts.is_cuda and (counts.sum(1) == 5000).all()
    other = Smoothed(HalfSpace(), 2, 0.25, batch_size=5000).counts(x, 5000, seeds=range(7))
    assert torch.equal(counts, other)
    rate = torch.special.ndtr((images[:, 0, 0, 0].double() - 0.5) / 0.25)
    assert ((counts[:, 1].cpu() / 5000 - rate).abs() < 0.04).all()

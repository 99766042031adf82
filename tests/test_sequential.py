"""The sequential test against exact fractions, its error and power by simulation, and on networks.

Cohen et al.'s published CIFAR-10 logs (see test_certify_log; rates recovered from radii, 0.45 where
abstained, 20 simulated certificates of each of 500 images; alpha 0.001, n at most 100,000) give:

sigma  radii asked                    mean draws   certified accuracy            by n = 100,000
0.25   0.25                               1,208    .600                          .600
0.25   0.75, three sigma                  6,293    .260                          .260
0.50   1.0                                1,833    .232                          .232
0.50   1.5                                3,113    .090                          .092
1.00   1.5                                  860    .140                          .140
0.25   0.25 0.5 0.75                      9,307    .600 .428 .260                .600 .428 .260
0.50   0.25 0.75 1.0 1.25 1.5            10,059   .546 .320 .232 .150 .090  .546 .320 .232 .151 .092
1.00   0.5 1.0 1.5                        7,065    .337 .212 .140                .338 .213 .140
"""

from fractions import Fraction

import numpy as np
import pytest
import torch
from scipy.special import betaln
from scipy.stats import binom
from test_smoothing import HalfSpace

from advtrain.certification.adaptive import certify_radii
from advtrain.certification.bounds import lower_bound, radius
from advtrain.certification.noise import GAUSSIAN
from advtrain.certification.sequential import LOSS, SLACK, fewest, looks, plan
from advtrain.certification.smoothing import ABSTAIN, Smoothed

N, ALPHA = 100_000, 0.001


def answers(p, test, seed=0):
    """How many thresholds are claimed, and draws, for images whose class has the rates `p`."""
    random = np.random.default_rng(seed)
    hits, low, draws = np.zeros((3, len(p)), dtype=np.int64)
    high = np.full(len(p), test.yes.shape[1])
    live = np.arange(len(p))
    for look, total in enumerate(test.looks):
        hits[live] += random.binomial(total - draws[live], p[live])
        draws[live] = total
        numbers = np.full(len(live), look)
        low[live], high[live] = test.settle(numbers, hits[live], low[live], high[live])
        live = live[low[live] < high[live]]
    return low, draws


def crossing(at, rate, bounds):
    """P[count >= bound at some look] at `rate`, a fraction, draw by draw."""
    alive, crossed, look = {0: Fraction(1)}, Fraction(0), 0
    for drawn in range(1, at[-1] + 1):
        after = {}
        for count, weight in alive.items():
            after[count + 1] = after.get(count + 1, 0) + weight * rate
            after[count] = after.get(count, 0) + weight * (1 - rate)
        alive = after
        if drawn == at[look]:
            out = [count for count in alive if count >= bounds[look]]
            crossed += sum(alive.pop(count) for count in out)
            look += 1
    return crossed


@pytest.mark.parametrize("rate", [Fraction(1, 2), Fraction(7, 8), Fraction(1, 16)])
def test_the_error_at_the_threshold_is_what_fractions_say_and_could_not_be_closer(rate):
    at, levels = np.array([5, 9, 10, 24, 40]), np.array([0.02, 0.02, 0.03, 0.04, 0.1])
    bounds = fewest(at, float(rate), levels)
    for look in range(len(at)):
        spent = crossing(at[: look + 1], rate, bounds)
        assert spent <= levels[look]
        if bounds[look] > 0:
            bolder = [*bounds[:look], bounds[look] - 1]
            assert crossing(at[: look + 1], rate, bolder) > levels[look] * (1 - 2 * SLACK)


@pytest.mark.parametrize("sigmas", [0.0, 1.0, 2.0, 3.0])
@pytest.mark.parametrize(("alpha", "below"), [(0.05, 0), (0.01, 1), (ALPHA, 0)])
def test_no_more_than_a_share_alpha_of_rates_at_the_threshold_is_claimed(sigmas, alpha, below):
    edge = GAUSSIAN.rate(sigmas, 1.0)
    p = edge - below * (edge * (1 - edge) / N) ** 0.5
    claimed, _ = answers(np.full(10_000, p), plan([edge], N, alpha), seed=int(10 * sigmas))
    most = binom.isf(1e-4, 10_000, alpha)
    assert claimed.sum() <= (most if below == 0 else most / 3)
    if alpha == 0.05:  # and alpha is used, but for what early ends on the 'no' side give away
        assert claimed.sum() >= 0.4 * 10_000 * alpha


def test_ends_on_the_no_side_add_no_claims():
    edge = GAUSSIAN.rate(1.0, 1.0)
    test = plan([edge], 10_000, 0.05)
    never = type(test)(test.looks, test.yes, np.full_like(test.no, -1))
    p = np.full(20_000, edge)
    (ours, short), (all_, long) = answers(p, test, 1), answers(p, never, 2)
    assert ours.mean() < 0.055 and 0.035 < all_.mean() < 0.055  # 3 standard deviations
    assert short.mean() < 0.95 * long.mean()


def test_claims_on_a_list_are_no_more_often_wrong_than_on_one_radius():
    asked = [0.0, 0.25, 0.5, 0.75, 1.0, 1.25]
    test = plan([GAUSSIAN.rate(each, 1.0) for each in asked], 10_000, 0.05)
    for number, each in enumerate(asked):
        claimed, _ = answers(np.full(10_000, GAUSSIAN.rate(each, 1.0)), test, seed=number)
        assert (claimed > number).sum() <= binom.isf(1e-4, 10_000, 0.05)


def test_a_smaller_threshold_is_claimed_first():
    test = plan([0.6, 0.9], 100, 0.01)
    below = int(test.yes[-1, 0]) - 1
    one, zero = np.array([len(test.looks) - 1]), np.array([0])
    test.yes[-1, 1] = below  # as no plan would have it
    assert test.settle(one, np.array([below]), zero, np.array([2]))[0] == 0
    assert test.settle(one, np.array([below]), zero + 1, np.array([2]))[0] == 2


@pytest.mark.parametrize("sigmas", [0.0, 1.0, 2.0, 2.84, 3.0, 3.38, 3.5, 3.8])
def test_the_last_look_claims_what_all_draws_would_but_for_a_hundredth_of_sigma(sigmas):
    last = int(plan([GAUSSIAN.rate(sigmas, 1.0)], N, ALPHA).yes[-1, 0])
    assert radius(lower_bound(last, N, ALPHA), 1.0) >= sigmas - 1e-9
    lost = radius(lower_bound(last - 1, N, ALPHA), 1.0) - sigmas  # the most that is not claimed
    assert lost < (0.004 if sigmas <= 3 else 0.008)


def test_the_largest_radius_of_n_draws_can_be_claimed_and_no_larger_one():
    for n in (10, 100, N):
        edge = ALPHA ** (1 / n)
        test = plan([edge * (1 - 1e-9), edge + 1e-6 * (1 - edge)], n, ALPHA)
        assert test.yes[-1].tolist() == [n, n + 1]
        low, draws = answers(np.ones(1), test)
        assert (low, draws) == (1, n)


@pytest.mark.parametrize("sigmas", [0.0, 1.0, 2.0, 3.0])
def test_claims_are_as_frequent_as_with_all_draws_on_a_part_of_them(sigmas):
    edge = GAUSSIAN.rate(sigmas, 1.0)
    p = np.array([GAUSSIAN.rate(sigmas + each, 1.0) for each in (-0.5, -0.2, -0.1, 0.1, 0.2, 0.5)])
    claimed, draws = answers(p.repeat(500), plan([edge], N, ALPHA))
    often = claimed.reshape(6, -1).mean(1)
    fixed = binom.sf(binom.isf(ALPHA, N, edge), N, p)
    assert often[:3].max() == 0
    assert (fixed - often < [1, 1, 1, 0.15 if sigmas == 3 else LOSS, LOSS, LOSS]).all()
    assert draws.reshape(6, -1).mean(1)[[0, 5]].max() < (0.15 if sigmas == 3 else 0.03) * N
    assert draws.max() <= N


def test_fewer_draws_are_needed_than_by_the_mixture_martingale():
    edge, p = (
        GAUSSIAN.rate(2.0, 1.0),
        np.repeat([GAUSSIAN.rate(each, 1.0) for each in (1.7, 2.3, 3.0)], 2000),
    )
    ours = answers(p, plan([edge], N, ALPHA))[1].mean()
    random, at = np.random.default_rng(1), looks(N)
    steps = random.binomial(np.diff(at, prepend=0)[:, None], p)
    hits, total = steps.cumsum(0), at[:, None]
    wealth = betaln(hits + 0.5, total - hits + 0.5) - betaln(0.5, 0.5)
    wealth -= hits * np.log(edge) + (total - hits) * np.log1p(-edge)
    above = hits > total * edge
    ends = (above & (wealth >= -np.log(ALPHA))) | (~above & (wealth >= -np.log(LOSS)))
    ends[-1] = True
    assert ours < 0.75 * at[ends.argmax(0)].mean()


def test_looks_are_few_and_end_with_the_last_draw():
    assert looks(N)[0] == 50 and looks(N)[-1] == N and len(looks(N)) < 50
    for n in (1, 49, 50, 51, 60, 1000):
        assert (np.diff(looks(n)) > 0).all() and looks(n)[-1] == n


@pytest.fixture
def images():
    x = torch.rand(9, 1, 4, 4, generator=torch.Generator().manual_seed(3))
    x[:, 0, 0, 0] = torch.tensor([0.52, 0.2, 0.33, 0.499, 0.7, 0.95, 0.5, 0.62, 0.1])
    return x


RADII = [0.1, 0.15, 0.25]


def test_radii_of_a_halfspace_are_the_largest_of_the_list_below_its_distance(images):
    s = Smoothed(HalfSpace(), 2, 0.25)
    found = certify_radii(s, images, RADII, n=10_000, seeds=range(9))
    classes, radii = s.certify(images, n=10_000, seeds=range(9))
    assert torch.equal(found.predictions, classes)
    assert found.radii.tolist() == [max(r for r in [0, *RADII] if r <= each) for each in radii]
    assert found.radii.tolist() == [0, 0.25, 0.15, 0, 0.15, 0.25, 0, 0.1, 0.25]
    assert classes[3] == classes[6] == ABSTAIN
    assert (found.draws <= 10_100).all() and found.draws.double().mean() < 4000


def test_an_image_has_the_same_answer_and_draws_alone_and_among_others_in_any_batch(images):
    def among(places, batch_size):
        s = Smoothed(HalfSpace(), 2, 0.25, batch_size=batch_size)
        return certify_radii(s, images[places], RADII, 30, 1000, seeds=[10 + i for i in places])

    whole = among(list(range(9)), 1000)
    for places, batch_size in [([4], 1000), ([8, 0, 5], 70), (list(range(9)), 33)]:
        again = among(places, batch_size)
        assert all(torch.equal(a[places], b) for a, b in zip(whole, again, strict=True))


def test_answers_follow_from_the_counts_of_each_stream(images):
    found = certify_radii(Smoothed(HalfSpace(), 2, 0.25), images, RADII, 30, 2000, seeds=range(9))
    test = plan([GAUSSIAN.rate(each, 0.25) for each in [0, *RADII]], 2000, ALPHA)
    for i, image in enumerate(images):
        stream = torch.Generator().manual_seed(i)
        above = [
            int(
                ((image + 0.25 * torch.randn(n, 1, 4, 4, generator=stream))[:, 0, 0, 0] > 0.5).sum()
            )
            for n in (30, *np.diff(test.looks, prepend=0).tolist())
        ]
        guess = int(above[0] > 30 - above[0])
        low, high = np.array([0]), np.array([4])
        for look, total in enumerate(test.looks):
            one = sum(above[1 : look + 2])
            hits = np.array([one if guess else total - one])
            low, high = test.settle(np.array([look]), hits, low, high)
            if low >= high:
                break
        expected = (guess if low else ABSTAIN, [0.0, 0.0, *RADII][int(low[0])], 30 + total)
        assert tuple(part[i].item() for part in found) == expected


def test_forward_passes_are_full_while_images_wait():
    sizes = []

    def model(x):
        sizes.append(len(x))
        return HalfSpace().eval()(x)

    x = torch.rand(100, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    found = certify_radii(Smoothed(model, 2, 0.25, batch_size=100), x, [0.1], n=1000)
    assert sum(sizes) == int(found.draws.sum()) and max(sizes) == 100
    assert sum(size == 100 for size in sizes) > 0.7 * len(sizes)


def test_draws_that_are_not_finite_are_misses():
    found = certify_radii(
        Smoothed(lambda x: x.flatten(1)[:, :2] / 0, 2, 0.25), torch.rand(2, 3), [0.1]
    )
    assert found.predictions.tolist() == [ABSTAIN] * 2 and found.radii.tolist() == [0, 0]
    assert (found.draws < 400).all()


def test_no_images_have_no_answers():
    found = certify_radii(Smoothed(HalfSpace(), 2, 0.25), torch.zeros(0, 1, 2, 2), [0.1])
    assert all(len(part) == 0 for part in found)


@pytest.mark.parametrize(
    ("radii", "options", "message"),
    [
        ([], {}, "asks nothing"),
        ([0.5, 0.25], {}, "ascending"),
        ([0.25, 0.25], {}, "only once"),
        ([-0.1, 0.25], {}, "from 0 on"),
        ([float("nan")], {}, "from 0 on"),
        ([0.25, 0.96], {}, r"up to 0\.952864 at alpha=0\.001, and 0\.96 needs n=\d+"),
        ([0.25, 0.4], {"n": 100}, r"0\.4 needs n=123"),
        ([9.0], {}, "no number of draws"),
        ([0.1], {"n": 9}, "up to 0"),
        ([0.1], {"n0": 0}, "n0 is 0"),
        ([0.1], {"alpha": 1.0}, "alpha is 1"),
        ([0.1], {"seeds": [1]}, "1 seeds were given for 9"),
    ],
)
def test_what_cannot_be_answered_is_refused_in_a_sentence(images, radii, options, message):
    with pytest.raises(ValueError, match=message):
        certify_radii(Smoothed(HalfSpace(), 2, 0.25), images, radii, **options)


def test_thresholds_out_of_order_are_refused():
    for rates in ([], [0.6, 0.5], [0.5, 0.5]):
        with pytest.raises(ValueError, match="ascending order"):
            plan(rates, 100, 0.01)
    with pytest.raises(ValueError, match="rate is 1"):
        plan([1.0], 100, 0.01)

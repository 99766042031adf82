"""Views of stochastic networks, against what is known of their draws."""

from functools import partial
from math import log, sqrt

import pytest
import torch
from scipy.stats import binom
from stochastic_cases import SWITCHES, Coin, Relaxed, Scores, Weather
from torch import Tensor, nn

from advtrain import averaged
from advtrain.averaged import passes, rewrapped, single
from advtrain.functional import cross_entropy
from advtrain.models import views
from advtrain.models.views import Unfit, at_temperature, identity, majority, mean_of, noise_free

N = 4000
X = torch.rand(N, 4)
VIEWS = (mean_of, majority)


@pytest.fixture(autouse=True)
def _seeded(monkeypatch):
    monkeypatch.setattr(views, "lwta", SWITCHES)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def first(logits: Tensor) -> float:
    return float((logits.argmax(1) == 0).float().mean())


class Called(nn.Module):
    """Counts the batches and rows that go through."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.sizes = inner, []

    def forward(self, x: Tensor) -> Tensor:
        self.sizes.append(len(x))
        return self.inner(x)


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("p", [0.4, 0.7])
def test_of_draws_that_are_as_sure_the_majority_wins(view, p):
    share, expected = first(view(Coin(p), draws=11)(X)), binom.sf(5, 11, p)
    assert share == pytest.approx(expected, abs=4 * sqrt(expected * (1 - expected) / N))
    assert first(Coin(p)(X)) == pytest.approx(p, abs=4 * sqrt(p * (1 - p) / N))


def test_one_draw_is_the_network_itself():
    coin = Coin(0.5)
    assert all(view(coin) is coin for view in (identity, *(partial(v, draws=1) for v in VIEWS)))
    assert single(mean_of(coin, draws=3)) is coin and single(coin) is coin


@pytest.mark.parametrize("view", VIEWS)
def test_fewer_draws_than_one_are_refused(view):
    with pytest.raises(ValueError, match="draws is 0"):
        view(Coin(0.5), draws=0)


def test_cross_entropy_of_the_mean_is_minus_the_log_of_the_mean_probability():
    network, y = nn.Sequential(nn.Linear(4, 3), Relaxed()), torch.randint(3, (N,))
    torch.manual_seed(1)
    found = cross_entropy(mean_of(network, draws=4)(X[:100]), y[:100])
    torch.manual_seed(1)
    draws = network(X[:100].repeat(4, 1)).softmax(1).view(4, 100, 3)
    expected = -draws.mean(0).gather(1, y[:100].unsqueeze(1)).squeeze(1).log()
    assert torch.allclose(found, expected, atol=1e-5)


def test_votes_are_counted_and_ties_go_to_the_mean_probability():
    turns = iter(torch.tensor([[[2.0, 0, 0]], [[2.0, 0, 0]], [[0, 9.0, 0]], [[0, 9.0, 0]]]))
    given = majority(Fixed(turns), draws=4)(X[:1]).exp()
    assert given.argmax() == 1 and given.sum() == pytest.approx(1)
    assert given[0, 2] < 0.5 / 4 < given[0, 0]


class Fixed(nn.Module):
    def __init__(self, turns) -> None:
        super().__init__()
        self.turns = turns

    def forward(self, x: Tensor) -> Tensor:
        return next(self.turns)


@pytest.mark.parametrize("view", VIEWS)
def test_logits_that_are_not_finite_name_no_class(view):
    turns = iter([torch.tensor([[1.0, torch.nan]]), torch.tensor([[1.0, 0.0]])])
    assert not torch.isfinite(view(Fixed(turns), draws=2)(X[:1])).all()


def test_draws_go_side_by_side_where_rows_have_their_own_and_one_by_one_elsewhere(monkeypatch):
    monkeypatch.setattr(averaged, "AT_ONCE", 30)
    coin, weather = Called(Coin(0.5)), Called(Weather())
    mean_of(coin, draws=7)(X[:10])
    mean_of(weather, draws=3)(X[:10])
    assert coin.sizes == [30, 30, 10] and weather.sizes == [10, 10, 10]


def test_noise_that_a_batch_shares_is_averaged_too():
    spread = torch.stack([mean_of(Weather(), draws=50)(X[:2]).softmax(1) for _ in range(20)]).std(0)
    one = torch.stack([Weather()(X[:2]).softmax(1) for _ in range(200)]).std(0)
    assert float(spread.mean()) < 0.3 * float(one.mean())


def test_a_vote_says_that_it_has_no_gradient():
    vote, leaf = majority(Coin(0.5), draws=3), X[:2].clone().requires_grad_()
    with pytest.raises(ValueError, match="votes, which have no gradient"):
        vote(leaf)


def test_temperature_and_noise_are_changed_inside_of_a_pass_and_nowhere_else():
    network = Scores().eval()
    x, relaxed = torch.rand(5, 1, 8, 8), network[2]
    quiet = noise_free(network)(x)
    assert torch.equal(quiet, 10 * network[1](x.flatten(1)).softmax(1))
    hot = at_temperature(network, tau=1e6)(x)
    assert torch.allclose(hot, torch.ones(5, 10), atol=1e-3)
    assert relaxed.tau is None and not relaxed.quiet


@pytest.mark.parametrize("view", [noise_free, partial(at_temperature, tau=0.67)])
def test_a_network_without_draws_has_no_temperature(view):
    with pytest.raises(Unfit, match="no layer of the network says that it is stochastic"):
        view(nn.Linear(2, 2))


def test_views_follow_the_mode_of_the_network_and_count_its_passes():
    network = Scores().eval()
    both = mean_of(at_temperature(mean_of(network, draws=3), tau=1.0), draws=2)
    assert not any(part.training for part in both.modules())
    assert passes(both) == 6 and passes(network) == passes(lambda x: x) == 1


def test_a_view_goes_round_another_network():
    other = Coin(1.0)
    moved = rewrapped(mean_of(Coin(0.0), draws=5), other)
    assert single(moved) is other and passes(moved) == 5
    assert torch.allclose(moved(X[:3]), mean_of(other, draws=5)(X[:3]))
    assert float(moved(X[:3]).logsumexp(1).abs().max()) < 1e-5 < log(2)

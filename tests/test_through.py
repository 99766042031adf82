"""Attacks through another view: whose gradients, how many passes, and that nothing else changes."""

from functools import partial

import pytest
import torch
import zoo
from attack_cases import batch, network
from stochastic_cases import SWITCHES, Relaxed, Scores
from torch import Tensor, nn

from advtrain.attacks import objectives
from advtrain.attacks.apgd import apgd
from advtrain.attacks.autoattack import AutoAttack
from advtrain.attacks.cw import cw
from advtrain.attacks.fab import fab
from advtrain.attacks.gama import gama_fw, gama_pgd
from advtrain.attacks.mim import mim
from advtrain.attacks.pgd import fgsm, pgd, rfgsm
from advtrain.attacks.square import square
from advtrain.attacks.through import Through, through
from advtrain.evaluation import Counting
from advtrain.models import views
from advtrain.models.views import at_temperature, identity, majority, mean_of, noise_free
from advtrain.modes import crafting
from advtrain.threat import L2, Linf

EPS = Linf(0.1)
PGD = partial(pgd, threat=EPS, steps=5, step_size=0.05)
ATTACKS = {
    "fgsm": partial(fgsm, threat=EPS),
    "rfgsm": partial(rfgsm, threat=EPS, noise_share=0.5),
    "pgd": PGD,
    "pgd_any": partial(PGD, keep="any", restarts=2),
    "mim": partial(mim, threat=EPS, steps=3, step_size=0.05, decay=1.0),
    "gama_pgd": partial(gama_pgd, threat=EPS, steps=3),
    "gama_fw": partial(gama_fw, threat=EPS, steps=3),
    "cw": partial(cw, threat=L2(0.5), steps=3, binary_search_steps=2),
    "apgd": partial(apgd, threat=EPS, steps=3, loss="dlr"),
    "fab": partial(fab, threat=EPS, steps=3),
    "square": partial(square, threat=EPS, queries=5),
}


@pytest.fixture(autouse=True)
def _switches(monkeypatch):
    monkeypatch.setattr(views, "lwta", SWITCHES)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


class Rows(nn.Module):
    """Counts what really goes through the network."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.forward_rows, self.backward_rows = inner, 0, 0

    def forward(self, x: Tensor) -> Tensor:
        logits = self.inner(x)
        self.forward_rows += len(x)
        if logits.requires_grad:
            logits.register_hook(lambda gradient: self._back(len(x)))
        return logits

    def _back(self, count: int) -> None:
        self.backward_rows += count


def spent(attack) -> tuple[int, int]:
    inner, (x, y) = Rows(network().eval()), batch()
    counted = Counting(inner)
    with crafting(inner, "eval"):
        attack(counted, x, y, generator=torch.Generator().manual_seed(0))
    told = counted.forward_passes, counted.backward_passes
    assert told == (inner.forward_rows, inner.backward_rows)
    return told


@pytest.mark.parametrize("name", ATTACKS)
def test_the_mean_over_m_draws_costs_m_passes_and_nothing_else(name):
    attack = ATTACKS[name]
    threat = attack.keywords["threat"]
    bare = spent(attack)
    mean = spent(partial(through, threat=threat, attack=attack, view=partial(mean_of, draws=3)))
    assert mean == (3 * bare[0], 3 * bare[1]) and mean[0] > 0


@pytest.mark.parametrize("name", ["fgsm", "rfgsm", "pgd", "mim"])
def test_the_mean_of_losses_over_m_draws_costs_m_passes_and_nothing_else(name):
    attack = ATTACKS[name]
    mean = objectives.expected(objective=objectives.cross_entropy, samples=3)
    bare, more = spent(attack), spent(partial(attack, objective=mean))
    assert more == (3 * bare[0], 3 * bare[1])


@pytest.mark.parametrize("draws", [1, 4])
def test_gradients_of_apgd_are_means_over_draws_at_as_many_passes_each(draws):
    """One look before, then `steps` gradients of `draws` passes each, and a last look."""
    (x, _), attack = batch(), partial(ATTACKS["apgd"], loss="ce", eot=draws)
    forward, backward = spent(attack)
    _, bare = spent(partial(attack, eot=1))
    standing = bare // 3
    assert backward == draws * bare and forward == len(x) + standing * (3 * draws + 1)


def test_what_is_crafted_on_a_network_that_draws_nothing_is_the_same_through_the_mean():
    inner, (x, y) = network().eval(), batch()
    mean = partial(through, threat=EPS, attack=PGD, view=partial(mean_of, draws=3))
    seeds = [torch.Generator().manual_seed(0) for _ in range(2)]
    assert torch.allclose(
        PGD(inner, x, y, generator=seeds[0]), mean(inner, x, y, generator=seeds[1]), atol=1e-5
    )


def right(model: nn.Module, x: Tensor, y: Tensor) -> float:
    with torch.no_grad():
        return float((model(x).argmax(1) == y).float().mean())


WIDE = Linf(0.2)
DIGITS = partial(pgd, threat=WIDE, steps=10, step_size=0.04)


def test_a_relaxed_sample_falls_at_another_temperature_and_without_noise(untouched):
    """At its own it has next to no gradient, and averages of many draws have little more."""
    model, (x, y) = untouched(Scores().eval()), zoo.held_out()
    judge, left = mean_of(model, draws=20), {}
    ways = {
        "one draw": identity,
        "mean": partial(mean_of, draws=20),
        "temperature": partial(at_temperature, tau=0.67),
        "no noise": noise_free,
    }
    for name, view in ways.items():
        attack = partial(through, threat=WIDE, attack=DIGITS, view=view)
        left[name] = right(judge, attack(judge, x, y), y)
    assert left["one draw"] > 0.55 > left["mean"] + 0.1
    assert left["temperature"] < 0.03 and left["no noise"] < 0.03


def test_a_vote_is_attacked_through_the_mean():
    model, (x, y) = Scores().eval(), zoo.held_out()
    vote = majority(model, draws=5)
    with pytest.raises(ValueError, match="votes, which have no gradient"):
        DIGITS(vote, x, y)
    mean = partial(through, threat=WIDE, attack=DIGITS, view=partial(mean_of, draws=2))
    hot = partial(at_temperature, tau=0.67)
    x_adv = through(vote, x, y, threat=WIDE, attack=mean, view=hot)
    assert right(vote, x_adv, y) < 0.1 and right(vote, x, y) > 0.85


def test_with_a_generator_draws_of_the_network_come_from_it_too():
    model, (x, y) = Scores().eval(), zoo.held_out()
    attack = partial(through, threat=WIDE, attack=DIGITS, view=partial(at_temperature, tau=0.67))
    state, found = torch.get_rng_state(), []
    for seed in (0, 0, 1):
        generator = torch.Generator().manual_seed(seed)
        found.append(attack(model, x[:20], y[:20], generator=generator))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])


def test_views_nest_the_outer_one_first():
    seen = []

    class Spy(Relaxed):
        def forward(self, h: Tensor) -> Tensor:
            seen.append((len(h), self.tau))
            return super().forward(h)

    model, x = Scores(last=Spy()).eval(), torch.rand(2, 1, 8, 8)
    mean = partial(through, threat=EPS, attack=partial(fgsm, threat=EPS))
    mean = partial(mean, view=partial(mean_of, draws=3))
    through(model, x, torch.zeros(2).long(), threat=EPS, attack=mean, view=noise_free)
    hot = partial(at_temperature, tau=0.5)
    through(model, x, torch.zeros(2).long(), threat=EPS, attack=mean, view=hot)
    assert seen == [(6, None), (6, 0.5)]


def test_a_function_has_nothing_to_look_into():
    x = torch.rand(2, 4)
    with pytest.raises(ValueError, match="through needs a network"):
        through(lambda x: x, x, torch.zeros(2).long(), threat=EPS, attack=PGD, view=identity)


def test_members_of_a_combination_go_through_the_view():
    both = Through(AutoAttack(EPS, version="rand", steps=2), identity)
    assert both.threat == EPS and list(both.members(10)) == ["apgd_ce", "apgd_dlr"]
    assert all(member.keywords["view"] is identity for member in both.members(10).values())

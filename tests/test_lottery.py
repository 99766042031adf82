"""What single draws of a stochastic network are worth: rows concerned, and how far they mislead."""

from functools import partial
from math import sqrt

import pytest
from torch import nn

from advtrain.attacks import objectives
from advtrain.attacks.apgd import apgd
from advtrain.attacks.autoattack import AutoAttack
from advtrain.attacks.pgd import fgsm, pgd
from advtrain.attacks.square import square
from advtrain.attacks.through import Through, through
from advtrain.attacks.transfer import transfer
from advtrain.evaluation import Outcome, Row, Stage
from advtrain.findings import entries, warnings
from advtrain.lottery import as_if_fixed, overstatement, sentence
from advtrain.models.views import at_temperature, identity, mean_of, noise_free
from advtrain.records import Verdicts
from advtrain.results import row_record
from advtrain.threat import Linf

EPS = Linf(0.1)
PGD = partial(pgd, threat=EPS, steps=5, step_size=0.05)
EXPECTED = objectives.expected(objective=objectives.cross_entropy, samples=4)
MEAN, HOT = partial(mean_of, draws=20), partial(at_temperature, tau=0.67)


def seen(view, attack=PGD):
    return partial(through, threat=EPS, attack=attack, view=view)


@pytest.mark.parametrize(
    ("attack", "draws", "fixed"),
    [
        (PGD, 1, True),
        (PGD, 20, False),  # of the mean that is judged
        (seen(identity), 20, True),
        (seen(MEAN), 1, False),
        (seen(HOT), 1, False),
        (seen(noise_free), 20, False),
        (seen(HOT, seen(MEAN)), 1, False),
        (partial(PGD, objective=EXPECTED), 1, False),
        (partial(apgd, threat=EPS, steps=5), 1, True),
        (partial(apgd, threat=EPS, steps=5, eot=20), 1, False),
        (seen(identity, partial(apgd, threat=EPS, steps=5, eot=20)), 20, False),
        (partial(square, threat=EPS, queries=5), 1, False),
        (partial(transfer, threat=EPS, attack=PGD, source=nn.Linear(2, 2)), 1, False),
        (None, 1, False),
    ],
)
def test_an_attack_by_gradients_of_single_draws_takes_the_network_for_a_fixed_one(
    attack, draws, fixed
):
    assert as_if_fixed(attack, draws) is fixed


def outcome(name, attack, standing, draws=(), view="draws=20", judged=20):
    """A row, usually of four examples; `draws`: which are right by each of several single draws."""
    verdict = Verdicts(
        name, tuple(range(len(standing))), standing, standing, 0, 0, 0, 0, 0.0, tuple(draws)
    )
    row = Row(name, name, attack, {}, view, judged)
    return Outcome(row, (Stage(name, (verdict,)),), tuple(bit == "1" for bit in standing))


CLEAN = outcome("clean", None, "1111", ("1111", "1101"))
NAIVE = outcome("naive", seen(identity), "1110", ("1110", "1100"))
HOTTER = outcome("hot", seen(HOT), "1000", ("1000", "0000"))
FREE = outcome("free", seen(noise_free), "0100", ("0000", "0100"))
ELSEWHERE = outcome("far", partial(PGD, threat=Linf(0.2)), "0000", ("0000", "0000"))


def test_a_row_tells_mean_spread_and_what_all_draws_leave():
    found = row_record(NAIVE)["draws"]
    assert found == {"n": 2, "mean": 0.625, "sd": pytest.approx(0.25 / sqrt(2)), "all": 0.5}
    assert "draws" not in row_record(outcome("naive", PGD, "1111"))


def test_single_draws_are_held_against_the_worst_case_of_the_same_set():
    """Shares 1, 1, 1/2, 0 of naive draws stand, and no example against all rows: 0.625 too much."""
    found = overstatement([CLEAN, NAIVE, HOTTER, FREE, ELSEWHERE], "naive")
    assert found is not None and found["adaptive"] == {
        "rows": ["naive", "hot", "free"],
        "accuracy": 0.0,
    }
    error = 1.96 * sqrt(sum((d - 0.625) ** 2 for d in (1, 1, 0.5, 0)) / 3) / 2
    assert found["overstated"]["mean"] == 0.625
    assert found["overstated"]["ci95"] == [pytest.approx(0.625 - error), 1.0]
    assert found["control"] == {"eps": 0.0, "looks": 2, "accuracy": 0.75, "cost": 0.125}
    message = sentence(found)["message"]
    assert "62.5 % stand" in message and "too high by 62.5 points" in message and "n = 4" in message


@pytest.mark.parametrize(
    "rows",
    [
        [CLEAN, NAIVE],
        [NAIVE, HOTTER],
        [CLEAN, HOTTER, FREE],
        [CLEAN, outcome("naive", seen(identity), "1110"), HOTTER],
        [CLEAN, outcome("naive", seen(identity), "1110", ("1110",), judged=1), HOTTER],
    ],
    ids=["alone", "no clean", "no naive", "no draws", "judged by one"],
)
def test_nothing_is_said_without_what_it_takes(rows):
    assert overstatement(rows, "naive") is None


def test_warnings_and_entries_tell_views_apart_where_there_are_several():
    alone = outcome("naive", PGD, "1110", ("1110", "1100"), "identity", 1)
    both = [CLEAN, NAIVE, HOTTER, alone]
    told = list(warnings(both, alike=0.1, lucky=(), stochastic=True, naive="naive"))
    assert [(w["check"], w["row"], w["view"]) for w in told] == [
        ("stochastic", "naive", "draws=20"),
        ("single_draw", "naive", "draws=20"),
        ("stochastic", "naive", "identity"),
    ]
    assert "62.5 % at these points, standard deviation 17.7" in told[-1]["message"]
    assert list(entries(both, naive=None)) == ["worst_case_by_view"]
    assert entries(both[:3], naive=None) == {}
    fixed = warnings([alone], alike=0.1, lucky=(), stochastic=False, naive=None)
    assert list(fixed) == []


def test_rows_of_a_network_that_is_right_by_luck_are_not_held_against_each_other():
    one = outcome("fgsm", partial(fgsm, threat=EPS), 40 * "0", (), "identity", 1)
    many = outcome("pgd", PGD, 40 * "1", (), "identity", 1)
    short = outcome("aa", AutoAttack(EPS, steps=3), 40 * "0", (), "identity", 1)
    for lucky, found in (
        ((), {"single_step", "autoattack_gap", "reduced"}),
        (("identity",), {"reduced"}),
    ):
        told = warnings([one, many, short], alike=0.1, lucky=lucky, stochastic=False, naive=None)
        assert {each["check"] for each in told} == found


def test_a_combination_through_a_view_is_told_as_what_it_is():
    rand = Through(AutoAttack(EPS, version="rand", steps=3), identity)
    members = rand.members(10)
    row = Row("rand", "k", rand, members, "draws=20", 20)
    told = row_record(Outcome(row, tuple(Stage(each, ()) for each in members), (True,) * 4))
    assert (told["attack"], told["through"], told["version"]) == ("AutoAttack", "identity", "rand")
    assert [(s["attack"], s["steps"]) for s in told["stages"]] == [("apgd", 3), ("apgd", 3)]
    assert told["norm"] == "linf"

"""What rows say about each other: on made-up records, on published ones, and on real ones."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import pytest
import torch
import zoo
from attack_cases import generator
from torch import Tensor, nn

from advtrain.attacks.pgd import fgsm, pgd
from advtrain.attacks.square import square
from advtrain.attacks.transfer import transfer
from advtrain.modes import crafting
from advtrain.threat import Linf
from advtrain.tolerance import clearly, has_collapsed
from advtrain.trust import contradictions

N = 400


def test_a_difference_is_clear_beyond_two_standard_errors_and_the_share():
    assert not clearly(4, 0, 100, 0.0) and clearly(5, 0, 100, 0.0)
    assert not clearly(40, 24, 100, 0.0) and clearly(40, 23, 100, 0.0)
    assert clearly(16, 0, 100, 0.07) and not clearly(16, 0, 100, 0.08)
    assert has_collapsed(60, 10, 100) and not has_collapsed(59, 0, 100)
    assert not has_collapsed(0, 0, 0)
    assert has_collapsed(5, 0, 5) and not has_collapsed(4, 0, 4)


def row(name: str, *fallen: tuple[int, int], **facts: Any) -> dict[str, Any]:
    """A record of 400 examples, all right at first, of which those in the ranges have fallen.

    Its attack is that of its name, if none is given.
    """
    standing = [not any(low <= i < high for low, high in fallen) for i in range(N)]
    given = {"norm": "linf", "eps": 0.1, "steps": None, "restarts": None, "version": None}
    plain = {"view": "identity", "queries": None, "outside": 0, "non_finite": 0}
    return {
        "name": name,
        "attack": None if name == "clean" else name,
        "accuracy": sum(standing) / N,
        "accuracy_at_proposals": sum(standing) / N,
        "n": N,
        "robust": "".join("1" if stands else "0" for stands in standing),
        **given,
        **plain,
        **facts,
    }


CLEAN = row("clean", norm=None, eps=None)


def said(*rows: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Check and row of each warning."""
    return [(warning["check"], warning["row"]) for warning in contradictions([CLEAN, *rows])]


def pgd_row(*fallen: tuple[int, int], steps: int = 20, name: str = "pgd_linf", **facts: Any) -> Any:
    return row(name, *fallen, **{"attack": "pgd", "steps": steps, "restarts": 1, **facts})


def test_rows_in_order_are_believed():
    rows = [
        row("fgsm", (0, 150)),
        pgd_row((0, 200)),
        pgd_row((0, 202), steps=100, name="pgd100_linf"),
        pgd_row((0, 300), name="pgd_linf_2", eps=0.2),
        row("transfer", (0, 60)),
        row("autoattack", (0, 220), version="standard", steps=100, queries=5000),
    ]
    assert said(*rows) == []


def test_cheats_and_overflows_are_counted():
    (first, second) = contradictions([row("a", outside=3), row("b", non_finite=2)])
    assert first["check"] == "outside" and first["message"].startswith("3 of 400 proposals lie")
    assert second["check"] == "non_finite" and "2 of 400 proposals" in second["message"]


def test_an_attack_that_helps_is_told():
    clean = row("clean", (0, 40), norm=None, eps=None)
    helped = row("fgsm", (0, 50), accuracy_at_proposals=380 / N)
    hardly = row("fgsm", (0, 50), accuracy_at_proposals=362 / N)
    (found,) = contradictions([clean, helped])
    assert found["check"] == "above_clean" and "380 of 400" in found["message"]
    assert contradictions([clean, hardly]) == []


@pytest.mark.parametrize(
    ("kept", "steps", "told"), [(10, 20, True), (3, 20, False), (10, 2, False)]
)
def test_one_step_that_beats_many_is_told(kept, steps, told):
    rows = row("fgsm", (0, 100)), pgd_row((kept, 101), steps=steps)
    assert said(*rows) == ([("single_step", "pgd_linf")] if told else [])
    assert said(rows[0], {**rows[1], "norm": "l2"}) == []


def test_a_collapse_is_told_and_standard_training_is_not():
    assert ("collapsed", "fgsm") in said(row("fgsm", (0, 120)), pgd_row((0, 390)))
    assert said(row("fgsm", (0, 250)), pgd_row((0, 390))) == []


def test_more_steps_and_larger_sets_that_leave_more_are_told():
    few, many = pgd_row((0, 200)), pgd_row((20, 200), steps=100, name="pgd100_linf")
    assert said(few, many) == [("more_steps", "pgd100_linf")]
    small, large = pgd_row((0, 200)), pgd_row((20, 200), name="pgd_linf_2", eps=0.2)
    assert said(small, large) == [("larger_eps", "pgd_linf_2")]
    for other in ({"method": "margin"}, {"view": "draws=20"}, {"norm": "l2"}):
        assert said(few, {**many, **other}) == said(small, {**large, **other}) == []
    assert said(few, {**many, "restarts": 5}) == []
    short = {"step_size": 0.0005}  # 100 and 20 steps that do not reach the radius
    assert said(few, {**many, **short}) == said(small, {**large, **short}) == []


def test_more_restarts_that_leave_more_are_told():
    one, ten = pgd_row((0, 200)), pgd_row((20, 200), name="often", restarts=10)
    assert said(one, ten) == [("more_restarts", "often")]
    assert said(one, pgd_row((1, 203), name="often", restarts=10)) == []


def test_a_larger_set_is_compared_whatever_the_rows_are_called():
    small, large = pgd_row((0, 280)), pgd_row((0, 200), name="CE_20", eps=0.3)
    assert said(small, large) == [("larger_eps", "CE_20")]
    assert said(small, {**large, "restarts": 5}) == [("larger_eps", "CE_20")]
    (found,) = contradictions([CLEAN, small, large])
    assert "80 of 400" in found["message"] and "0.1 (pgd_linf)" in found["message"]
    # a single step must not beat several in a larger set; it may itself go too far in one
    assert said(row("fgsm", (0, 220)), large) == [("larger_eps", "CE_20")]
    assert said(row("fgsm", (0, 220)), row("fgsm", (0, 150), eps=0.3)) == []


def test_a_stronger_attack_in_a_smaller_set_contradicts_only_far_apart():
    large = pgd_row((0, 200), eps=0.11)
    margin = pgd_row((0, 225), name="CW_20", method="margin")
    thorough = autoattack(("apgd_ce", 200), ("apgd_t", 225))
    assert said(margin, large) == said(thorough, large) == []  # as much as PGD misses
    for strong in ({**margin, **fallen(280)}, {**thorough, **fallen(280)}):
        assert said(strong, large) == [("larger_eps", "pgd_linf")]
    blind = row("blackbox", (0, 300), attack="square")
    assert said(blind, large) == []


def test_examples_that_stand_where_every_image_may_turn_grey_are_told():
    free, small = pgd_row((0, 300), eps=0.5), pgd_row((0, 300), eps=0.4)
    assert said(free) == said(small) == []
    for rows, alike, told in [(free, 0.1, 1), (free, 0.5, 0), (small, 0.1, 0)]:
        found = contradictions([CLEAN, rows], alike)
        assert [warning["check"] for warning in found] == ["unbounded"] * told
    for weak in (row("fgsm", eps=0.5), row("x", eps=0.5, attack="square")):
        assert contradictions([CLEAN, weak], 0.1) == []


def fallen(first: int) -> dict[str, Any]:
    """That the first examples have fallen, and no others."""
    told = row("", (0, first))
    return {key: told[key] for key in ("robust", "accuracy", "accuracy_at_proposals")}


def autoattack(*stages: tuple[str, int], **facts: Any) -> dict[str, Any]:
    """A row of AutoAttack; `stages`: how many have fallen after each."""
    known = {"apgd_ce": ("apgd", "ce"), "apgd_t": ("apgd", "dlr_targeted"), "fab_t": ("fab", None)}
    told = [
        {"name": name, "accuracy": 1 - fallen / N}
        | dict(zip(("attack", "loss"), known.get(name, (name, None)), strict=True))
        for name, fallen in stages
    ]
    given = {"version": "standard", "steps": 100, "queries": 5000, "stages": told}
    return row("autoattack", (0, stages[-1][1]), **{"attack": "AutoAttack", **given, **facts})


@pytest.mark.parametrize(("last", "told"), [(200, False), (202, False), (212, True)])
def test_examples_that_only_square_breaks_are_told(last, told):
    found = said(autoattack(("apgd_ce", 180), ("apgd_t", 199), ("fab_t", 200), ("square", last)))
    assert found == ([("black_box", "autoattack")] if told else [])
    assert said(autoattack(("apgd_t", 190), ("square", 225), steps=5)) == [
        ("reduced", "autoattack")
    ]


def test_a_black_box_that_beats_white_ones_is_told():
    white = pgd_row((0, 200))
    assert said(white, row("square", (100, 225))) == []  # an honest network's PGD misses as many
    assert said(white, row("square", (100, 260))) == [("black_box", "square")]
    assert said(white, row("transfer", (150, 215))) == [("black_box", "transfer")]
    assert said(white, row("transfer", (150, 205))) == []
    thorough = autoattack(("apgd_ce", 190), ("apgd_t", 200))
    assert said(white, thorough, row("square", (100, 212))) == [("black_box", "square")]
    assert said(row("fgsm", (0, 10)), row("square", (0, 260))) == []
    named = row("pgd_blackbox", (100, 260), attack="square")
    assert said(pgd_row((0, 200), name="square"), named) == [("black_box", "pgd_blackbox")]
    stages = [{"name": name, "attack": "square", "accuracy": 0.35} for name in ("pgd", "fab")]
    both = row("all", (100, 260), attack="WorstOf", stages=stages)
    assert said(white, both) == [("black_box", "all")]


def test_a_row_far_below_autoattack_is_told():
    judge = autoattack(("apgd_ce", 190), ("apgd_t", 200))
    assert said(judge, pgd_row((0, 206))) == []
    assert said(judge, pgd_row((0, 215))) == [("stronger_than_autoattack", "autoattack")]
    assert said({**judge, "steps": 3}, pgd_row((0, 215))) == [("reduced", "autoattack")]
    assert said(judge, pgd_row((0, 215), eps=0.2)) == said(judge, pgd_row((15, 215))) == []


def test_an_autoattack_far_below_pgd_or_reduced_is_told():
    low = autoattack(("apgd_ce", 210), ("apgd_t", 270))
    assert said(pgd_row((0, 200)), low) == [("autoattack_gap", "pgd_linf")]
    assert said(pgd_row((0, 240)), low) == []
    short = autoattack(("apgd_ce", 210), queries=200)
    assert said(short) == [("reduced", "autoattack")]
    assert "200 queries" in contradictions([short])[0]["message"]


@pytest.mark.parametrize(
    ("clean", "fgsm", "pgd", "autoattack", "expected"),
    [
        (0.9230, 0.1598, 0.0, 0.0, set()),  # standard
        (0.9289, 0.9694, 0.0, 0.0, {"above_clean", "collapsed"}),  # FGSM-AT
        (0.8924, 0.4994, 0.3502, 0.3316, set()),  # RFGSM-AT
        (0.8283, 0.5409, 0.4641, 0.4312, set()),  # Fast
        (0.8049, 0.5737, 0.5313, 0.4730, set()),  # GAT
        (0.8229, 0.5504, 0.4623, 0.4372, set()),  # R-MGM
    ],
)
def test_published_accuracies_are_judged_as_they_were(clean, fgsm, pgd, autoattack, expected):
    """ResNet-18 on CIFAR-10 within 8/255, 10,000 examples, from the papers of NuAT and GAT."""
    n = 10_000

    def record(name: str, accuracy: float, **facts: Any) -> dict[str, Any]:
        standing = round(min(accuracy, clean) * n)
        bits = "1" * standing + "0" * (n - standing)
        at = {"n": n, "accuracy": standing / n, "accuracy_at_proposals": accuracy}
        return {**row(name), "robust": bits, **at, **facts}

    rows = [
        record("clean", clean, norm=None),
        record("fgsm", fgsm),
        record("pgd_linf", pgd, attack="pgd", steps=20, restarts=1),
        record("autoattack", autoattack, version="v1", steps=100, queries=5000),
    ]
    assert {warning["check"] for warning in contradictions(rows)} == expected


def attacked(model: nn.Module, x: Tensor, y: Tensor, source: nn.Module, eps: Linf) -> Sequence[Any]:
    """Records of FGSM, PGD, transfer from `source` and Square; the first is `clean`."""
    ascent = partial(pgd, threat=eps, steps=20, step_size=eps.eps / 8)
    attacks = {
        "clean": lambda model, x, y, generator: x,
        "fgsm": partial(fgsm, threat=eps),
        "pgd_linf": ascent,
        "transfer": partial(transfer, threat=eps, attack=ascent, source=source),
        "square": partial(square, threat=eps, queries=150),
    }
    rows, clean = [], torch.ones_like(y, dtype=torch.bool)
    for name, attack in attacks.items():
        with crafting(model, "eval"):
            right = model(attack(model, x, y, generator=generator())).argmax(1) == y
        clean = right if name == "clean" else clean
        bits = "".join("1" if stands else "0" for stands in clean & right)
        facts: dict[str, Any] = {"n": len(y), "accuracy_at_proposals": float(right.float().mean())}
        facts |= {"steps": 20, "restarts": 1, "attack": "pgd"} if name == "pgd_linf" else {}
        rows.append({**row(name, norm=None if name == "clean" else "linf", eps=eps.eps), **facts})
        rows[-1]["robust"] = bits
    return rows


@pytest.mark.parametrize("name", zoo.HONEST)
def test_rows_of_an_honest_network_are_believed(name):
    other = zoo.honest("pgd_at" if name == "trades" else "trades")
    assert contradictions(attacked(zoo.honest(name), *zoo.held_out(), other, zoo.EPS)) == []


@pytest.mark.parametrize("name", zoo.HONEST)
def test_rows_of_an_honest_network_within_several_radii_are_believed(name):
    other = zoo.honest("pgd_at" if name == "trades" else "trades")
    model, (x, y) = zoo.honest(name), zoo.held_out()
    small = attacked(model, x, y, other, zoo.EPS)
    for factor in (1.1, 2.0, 6.0):
        _, *larger = attacked(model, x, y, other, Linf(factor * zoo.EPS.eps))
        assert contradictions([*small, *larger], 0.1) == []


def test_rows_of_a_rounding_network_say_that_gradients_are_masked():
    inner = zoo.honest("standard")
    model = zoo.quantised(inner).eval()
    found = contradictions(attacked(model, *zoo.held_out(), inner, zoo.EPS))
    assert {(warning["check"], warning["row"]) for warning in found} >= {
        ("black_box", "transfer"),
        ("black_box", "square"),
    }


def test_rows_of_a_collapsed_network_say_so():
    (x, y), model = zoo.held_out(), zoo.collapsed()
    found = contradictions(attacked(model, zoo.enlarged(x), y, model, zoo.HUGE))
    assert ("collapsed", "fgsm") in {(warning["check"], warning["row"]) for warning in found}

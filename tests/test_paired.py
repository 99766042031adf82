import csv
import itertools
import math
import re

import pytest
from report_files import put, results, row

from advtrain.reporting import paired_formats
from advtrain.reporting.cli import main
from advtrain.reporting.paired import Counts, count, mcnemar, newcombe, pairings
from advtrain.reporting.reading import read_run
from advtrain.reporting.wording import MINUS

A = "1111111100"
B = "1110000010"


def judged(name, bits, **more):
    return row(name, bits.count("1") / len(bits), n=len(bits), robust=bits, **more)


def pgd(bits, **more):
    given = {"norm": "linf", "eps": 8 / 255, "steps": 20, "attack": "pgd", "configuration": "c0"}
    return judged("pgd_linf", bits, **(given | more))


def told(directory, rows, defense="pgd_at", examples="5eed", **more):
    content = results(defense, rows=rows, **more)
    content["dataset"]["examples"] = examples
    return put(directory, content)


def compared(*directories):
    return pairings([read_run(directory) for directory in directories])


def test_mcnemar_is_the_binomial_tail_by_hand():
    # b = 1, c = 6: twice the chance of at most one head in seven throws, 2 (1 + 7) / 128.
    assert mcnemar(1, 6) == pytest.approx(2 * (1 + 7) / 2**7)
    assert mcnemar(0, 5) == pytest.approx(2 / 2**5)
    assert mcnemar(2, 12) == pytest.approx(2 * (1 + 14 + 91) / 2**14)
    tail = sum(math.comb(130, k) for k in range(50))
    assert mcnemar(49, 81) == mcnemar(81, 49) == pytest.approx(2 * tail / 2**130)


def test_mcnemar_is_one_without_a_difference():
    assert mcnemar(0, 0) == mcnemar(7, 7) == 1.0
    assert mcnemar(7, 8) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("table", "low", "high"),
    [
        ((36, 12, 2, 0), 0.0569, 0.3404),
        ((14, 5, 0, 22), 0.0115, 0.2265),
        ((1, 1, 7, 12), -0.5069, -0.0256),
        ((59, 6, 16, 80), -0.1186, -0.0046),
    ],
)
def test_the_interval_is_the_published_one(table, low, high):
    """first minus second in the sources, so ours with both ends negated.

    Newcombe (1998), method 10; Altman et al. (2000, Statistics with Confidence, table 6.2, 0.011
    to 0.226); and the two data sets of Fagerland, Lydersen and Laake (2014,
    https://doi.org/10.1002/sim.6148, square-and-add, -0.507 to -0.026 and -0.119 to -0.005).
    """
    ours_low, ours_high = newcombe(Counts(*table))
    assert (-ours_high, -ours_low) == pytest.approx((low, high), abs=5e-5)


def test_the_interval_holds_the_estimate_and_changes_sign_with_the_order():
    for table in itertools.product((0, 1, 5, 40), repeat=4):
        if not sum(table):
            continue
        counts = Counts(*table)
        low, high = newcombe(counts)
        assert -1 <= low <= (counts.second - counts.first) / counts.n <= high <= 1
        mirrored = Counts(counts.both, counts.second, counts.first, counts.neither)
        assert newcombe(mirrored) == pytest.approx((-high, -low), abs=1e-12)


def test_without_discordant_examples_the_interval_still_has_a_width():
    for table in ((90, 0, 0, 10), (100, 0, 0, 0), (0, 0, 0, 100)):
        low, high = newcombe(Counts(*table))
        assert low < 0 < high and low == pytest.approx(-high) and high < 0.06


def test_pairing_narrows_the_interval_where_runs_agree():
    width = {}
    for both, first, second, neither in ((450, 50, 70, 430), (250, 250, 270, 230)):
        low, high = newcombe(Counts(both, first, second, neither))
        width[both] = high - low
    assert width[450] < 0.6 * width[250]


@pytest.mark.parametrize(
    "rates", [(0.45, 0.1, 0.1, 0.35), (0.2, 0.3, 0.15, 0.35), (0.6, 0.15, 0.05, 0.2)]
)
def test_the_interval_covers_the_truth_about_as_often_as_it_says(rates):
    """Every outcome of n = 24 examples, weighed with its multinomial probability."""
    n, covered = 24, 0.0
    truth = rates[2] - rates[1]
    for both, first, second in itertools.product(range(n + 1), repeat=3):
        neither = n - both - first - second
        if neither < 0:
            continue
        table = (both, first, second, neither)
        chance = math.factorial(n)
        for k, rate in zip(table, rates, strict=True):
            chance *= rate**k / math.factorial(k)
        if chance:
            low, high = newcombe(Counts(*table))
            covered += chance * (low <= truth <= high)
    assert 0.93 < covered < 0.99


def test_examples_are_counted_by_where_they_stand():
    assert count(A, B) == Counts(both=3, first=5, second=1, neither=1)
    with pytest.raises(ValueError, match="shorter"):
        count(A, B[1:])


def test_a_row_of_both_runs_is_compared_second_minus_first(tmp_path):
    first, second = told(tmp_path / "a", [pgd(A)]), told(tmp_path / "b", [pgd(B)], "trades")
    (pairing,) = compared(first, second)
    (pair,) = pairing.pairs
    assert (pairing.first.letter, pairing.second.letter) == ("A", "B")
    assert (pairing.first.name, pairing.second.name) == ("pgd_at", "trades")
    assert (pair.first, pair.second, pair.difference) == pytest.approx((0.8, 0.4, -0.4))
    assert (pair.counts.first, pair.counts.second) == (5, 1)
    assert pair.p == pytest.approx(2 * (1 + 6) / 2**6) and pair.low < -0.4 < pair.high
    assert pair.settings == "linf 8/255, 20 steps" and not pairing.remarks


def test_further_runs_are_compared_with_the_first(tmp_path):
    runs = [told(tmp_path / name, [pgd(A)], seed=i) for i, name in enumerate("abc")]
    found = compared(*runs)
    assert [(p.first.name, p.second.name) for p in found] == [
        ("pgd_at · small_cnn · digits · seed=0", "pgd_at · small_cnn · digits · seed=1"),
        ("pgd_at · small_cnn · digits · seed=0", "pgd_at · small_cnn · digits · seed=2"),
    ]
    assert [p.second.letter for p in found] == ["B", "C"] and compared(runs[0]) == ()


STEPPED = "step_size not given in A, 2/255 in B, keep not given in A, any in B"
UNSPELLED = "arguments of the attack differ that results.json does not spell out"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"eps": 4 / 255}, "eps 8/255 in A, 4/255 in B"),
        ({"eps": None}, "eps 8/255 in A, not given in B"),
        ({"norm": "l2", "steps": 50}, "norm linf in A, l2 in B, steps 20 in A, 50 in B"),
        ({"restarts": 10}, "restarts not given in A, 10 in B"),
        ({"version": "plus"}, "version not given in A, plus in B"),
        ({"attack": "mim", "configuration": "c1"}, "attack pgd in A, mim in B"),
        ({"step_size": 2 / 255, "keep": "any"}, STEPPED),
        ({"objective": "margin"}, "objective not given in A, margin in B"),
        ({"configuration": "c1"}, UNSPELLED),
        ({"robust": None}, "which examples stand is not told in B"),
        ({"robust": A[1:] + "1"}, ""),
    ],
)
def test_rows_with_other_settings_are_left_out_and_it_is_said_why(tmp_path, change, words):
    first = told(tmp_path / "a", [judged("clean", A), pgd(A)])
    other = pgd(A) | change
    (pairing,) = compared(first, told(tmp_path / "b", [judged("clean", A), other]))
    assert [pair.name for pair in pairing.pairs] == ["clean", *([] if words else ["pgd_linf"])]
    assert pairing.remarks == ((f"pgd_linf is left out: {words}.",) if words else ())


def test_attacks_that_are_not_told_whole_are_compared_and_it_is_said(tmp_path):
    first = told(tmp_path / "a", [judged("clean", A), pgd(A)])
    old = pgd(A) | {"attack": None, "configuration": None}
    (pairing,) = compared(first, told(tmp_path / "b", [judged("clean", A), old]))
    assert [pair.name for pair in pairing.pairs] == ["clean", "pgd_linf"]
    (remark,) = pairing.remarks
    assert remark.startswith("B does not tell all arguments of the attacks")


def test_an_eps_that_differs_by_rounding_is_the_same(tmp_path):
    first = told(tmp_path / "a", [pgd(A)])
    (pairing,) = compared(first, told(tmp_path / "b", [pgd(B, eps=0.03137255)]))
    assert len(pairing.pairs) == 1


def test_other_numbers_of_examples_are_not_compared(tmp_path):
    first = told(tmp_path / "a", [pgd(A)])
    (pairing,) = compared(first, told(tmp_path / "b", [pgd(A + B)]))
    assert pairing.remarks == ("pgd_linf is left out: n 10 in A, 20 in B.",)


def test_rows_of_one_run_alone_are_named(tmp_path):
    first = told(tmp_path / "a", [pgd(A), judged("mim", A), pgd(A, view="lambda=0.2")])
    (pairing,) = compared(first, told(tmp_path / "b", [pgd(A), judged("cw", A)]))
    assert len(pairing.pairs) == 1
    assert pairing.remarks == ("In A alone: mim, pgd_linf (lambda=0.2).", "In B alone: cw.")


def test_other_examples_are_not_compared(tmp_path):
    first = told(tmp_path / "a", [pgd(A)])
    (pairing,) = compared(first, told(tmp_path / "b", [pgd(A)], examples="0dd"))
    assert pairing.pairs == ()
    (sentence,) = pairing.remarks
    assert "A digits 5eed, B digits 0dd" in sentence


def test_results_of_an_earlier_version_are_read_and_not_compared(tmp_path):
    old = put(tmp_path / "old", results("trades"))
    new = told(tmp_path / "new", [pgd(A)])
    dead = put(tmp_path / "dead", None, {"state": "failed", "error": "no memory"})
    of_old, of_dead = compared(new, old, dead)
    assert of_old.remarks[0].startswith("B does not say which examples were evaluated")
    assert of_dead.remarks == ("No accuracy is told in C (failed): nothing is compared.",)
    assert main([str(new), str(old), "--out", str(tmp_path / "out")]) == 0
    assert "does not say which" in (tmp_path / "out" / "comparison.md").read_text()


@pytest.mark.parametrize("robust", ["11", "1211111100", 7, [1, 0], "", None, "0" * 10])
def test_verdicts_that_are_damaged_or_contradict_the_accuracy_are_not_used(tmp_path, robust):
    run = read_run(told(tmp_path / "a", [pgd(A) | {"robust": robust}]))
    assert run.rows[0].standing == "" and run.rows[0].accuracy == 0.8


def test_the_command_compares_single_runs_and_writes_it_beside_the_tables(tmp_path, capsys):
    warning = {"check": "outside", "row": "pgd_linf", "message": "one lies outside"}
    first = told(tmp_path / "g" / "a", [judged("clean", A), pgd(A)])
    second = told(tmp_path / "g" / "b", [judged("clean", A), pgd(B)], "mart", warnings=[warning])
    out = tmp_path / "out"
    assert main([str(first), str(second), "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "Example by example, A: pgd_at; B: mart" in shown and "McNemar" in shown
    line = next(line for line in shown.splitlines() if "-40.00" in line)
    assert line.split()[-1] == "0.219" and "! 40.00" in line
    text = (out / "comparison.md").read_text()
    assert f"| pgd_linf | linf 8/255, 20 steps | 80.00 | ! 40.00 | {MINUS}40.00 |" in text
    assert "Newcombe" in text and "a warning concerns this number" in text
    latex = (out / "comparison.tex").read_text()
    assert r"pgd\_linf & linf 8/255, 20 steps & 80.00 & ! 40.00 & $-$40.00" in latex
    with (out / "comparison.csv").open(newline="") as lines:
        clean, attacked = csv.DictReader(lines)
    assert clean["difference"] == "0.0" and clean["p"] == "1.0"
    assert (attacked["first"], attacked["second"]) == ("pgd_at", "mart")
    assert (attacked["first_only"], attacked["second_only"], attacked["n"]) == ("5", "1", "10")
    assert float(attacked["p"]) == pytest.approx(0.21875)
    page = (out / "report.html").read_text()
    assert "Example by example" in page and f"{MINUS}40.00" in page and "McNemar" in page
    assert page.index("Accuracy, in percent") < page.index("Example by example")


def test_a_grid_is_folded_and_not_compared(tmp_path, capsys):
    told(tmp_path / "grid" / "0", [pgd(A)])
    told(tmp_path / "grid" / "1", [pgd(B)], "mart")
    one = told(tmp_path / "one", [pgd(B)], "trades")
    out = tmp_path / "out"
    for given in ([tmp_path / "grid"], [tmp_path / "grid", one], [one, one]):
        assert main([*map(str, given), "--out", str(out)]) == 0
    assert not list(out.glob("comparison.*"))
    assert "Example by example" not in capsys.readouterr().out


def test_names_of_others_are_text_in_a_comparison(tmp_path):
    evil = "<script>|`x`</script>"
    rows = [judged(evil, A), judged("b_%", A, attack=evil)]
    first, second = told(tmp_path / "a", rows), told(tmp_path / "b", rows, evil)
    out = tmp_path / "out"
    assert main([str(first), str(second), "--out", str(out)]) == 0
    assert (out / "report.html").read_text().count("<script") == 1
    text = (out / "comparison.md").read_text()
    assert r"\<script\>\|\`x\`\</script\>" in text and not re.search(r"(?<!\\)<", text)
    assert r"b\_\%" in (out / "comparison.tex").read_text()


def test_small_p_values_and_signs_are_written_short():
    assert [paired_formats.chance(p) for p in (1.0, 0.0313, 0.001, 0.00099)] == [
        "1.000",
        "0.031",
        "0.001",
        "<0.001",
    ]
    assert [paired_formats.points(d) for d in (0.012, 0.0, -1e-9, -0.5)] == [
        "+1.20",
        "0.00",
        "0.00",
        f"{MINUS}50.00",
    ]

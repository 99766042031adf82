"""The PREDICT study: five categories that sum to 1, against the binomial law where p is known."""

import json
from math import ceil, sqrt
from shutil import copytree
from statistics import NormalDist

import pytest
import torch
from running import DATA, FITTING, TRAINING, configuration, run
from scipy.stats import binom
from test_smoothing import HalfSpace

from advtrain.certification.bounds import rank_p_value
from advtrain.certification.prediction import (
    PREDICTIONS,
    Prediction,
    PredictStudy,
    categorise,
    parse,
)
from advtrain.certification.smoothing import Smoothed

KINDS = ("correct_accurate", "correct_inaccurate", "incorrect_accurate", "incorrect_inaccurate")
STUDY = {"sigma": 0.25, "alpha": 0.001, "gold_draws": 300, "size": None, "batch_size": 1000}
SMALL = (
    *("job=eval", "logger=none", "device=cpu", "eval=predict", *DATA),
    *("eval.predict.n=[20,50]", "eval.predict.gold_draws=300"),
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    directory = tmp_path_factory.mktemp("trained")
    assert run(directory, *TRAINING)["state"] == "done"
    return directory


def judged(directory, trained, *overrides):
    return run(directory, f"checkpoint={trained}", *SMALL, *overrides)


@pytest.fixture(scope="module")
def whole(trained, tmp_path_factory):
    directory = tmp_path_factory.mktemp("studied") / "run"
    assert judged(directory, trained)["state"] == "done"
    return directory


@pytest.fixture
def studied(whole, tmp_path):
    """A copy of a finished study."""
    return copytree(whole, tmp_path / "run")


def results(directory):
    return json.loads((directory / "results.json").read_text())


def test_each_example_is_in_the_category_of_its_answer_label_and_gold():
    given = [  # label, prediction, gold
        *((3, 3, 3), (3, 3, 3), (3, 3, 4)),
        *((3, 4, 4), (3, 4, 3), (3, 5, 4)),
        *((3, -1, 3), (3, -1, 4)),
    ]
    predictions = [Prediction(i, label, said, 0.5) for i, (label, said, _) in enumerate(given)]
    row = categorise(100, predictions, {i: gold for i, (_, _, gold) in enumerate(given)})
    assert [row[kind] for kind in (*KINDS, "abstain")] == [2 / 8, 1 / 8, 1 / 8, 2 / 8, 2 / 8]
    assert row["n"] == 100 and row["seconds"] == 4.0
    with pytest.raises(ValueError, match="1 predictions meet 0 classes"):
        categorise(100, predictions[:1], {})


@pytest.mark.parametrize("n", [40, 100, 400])
def test_shares_are_those_of_the_binomial_law_where_rates_are_known(n):
    """600 images at 0.2 sigma from the boundary, of which 200 are labelled as across it."""
    count, alpha, away = 600, 0.1, 0.2
    x = torch.full((count, 1), 0.5 - away * 0.25)
    s = Smoothed(HalfSpace(), 2, 0.25, batch_size=20_000)
    answers = s.predict(x, n, alpha, seeds=range(count)).tolist()
    labels = [int(i < 200) for i in range(count)]
    predictions = [Prediction(i, labels[i], answers[i], 0.0) for i in range(count)]
    row = categorise(n, predictions, dict.fromkeys(range(count), 0))
    hits = range(ceil(n / 2), n + 1)
    needed = next(k for k in hits if rank_p_value(k, n - k) <= alpha)
    rate = NormalDist().cdf(away)
    says_0 = binom.sf(needed - 1, n, rate)
    says_1 = binom.cdf(n - needed, n, rate)
    expected = (
        *(says_0 * 2 / 3, says_1 * 1 / 3, says_0 * 1 / 3, says_1 * 2 / 3),
        1 - says_0 - says_1,
    )
    found = [row[kind] for kind in (*KINDS, "abstain")]
    assert sum(found) == pytest.approx(1, abs=1e-12)
    for share, wanted in zip(found, expected, strict=True):
        assert abs(share - wanted) <= 4 * sqrt(wanted * (1 - wanted) / count) + 1e-9


def test_a_line_has_the_columns_of_the_format_and_is_read_back():
    assert PREDICTIONS.header == "idx\tlabel\tpredict\tcorrect\ttime"
    line = Prediction(20, 7, -1, 75.25).line()
    assert line == "20\t7\t-1\t0\t0:01:15.250000" and parse(line) == Prediction(20, 7, -1, 75.25)
    assert parse("100\t2\t2\t1\t0.152").seconds == 0.152


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("1\t3\t3\t1", "4 columns"),
        ("1\t3\t4\t1\t1.0", "correct is 1"),
        ("1\t3\t-2\t0\t1.0", "out of range"),
        ("1\t3\t3\t1\tlong", "long"),
        ("0\t3\t3\t1\t1.0", "idx 0 was predicted before"),
    ],
)
def test_broken_and_repeated_lines_are_told_and_not_counted(tmp_path, line, complaint):
    path = tmp_path / "N_100.tsv"
    path.write_text(f"{PREDICTIONS.header}\n0\t3\t3\t1\t1.0\n{line}\n2\t3\t4\t0\t1.0\n2\t3")
    log = PREDICTIONS.read(path)
    assert [each.index for each in log.lines] == [0, 2] and log.cut == "2\t3"
    assert len(log.problems) == 1 and complaint in log.problems[0]


def test_an_evaluation_leaves_its_shares_and_a_log_for_each_number_of_draws(whole):
    found = results(whole)["predict_study"]
    settings = {"view", "sigma", "alpha", "gold_draws", "examples"}
    assert found.keys() == settings | {"rows", "seconds"}
    assert (found["view"], found["gold_draws"], found["examples"]) == ("identity", 300, 20)
    assert [row["n"] for row in found["rows"]] == [20, 50]
    for row in found["rows"]:
        assert sum(row[kind] for kind in (*KINDS, "abstain")) == pytest.approx(1, abs=1e-12)
        log = PREDICTIONS.read(whole / "predict" / f"N_{row['n']}.tsv")
        assert (len(log.lines), log.problems, log.cut) == (20, (), "")
        said = sum(each.correct for each in log.lines) / 20
        assert said == pytest.approx(row["correct_accurate"] + row["correct_inaccurate"])
    assert found["rows"][1]["abstain"] < found["rows"][0]["abstain"] < 1
    assert [row["name"] for row in results(whole)["rows"]] == ["clean"]


def test_a_killed_study_goes_on_after_its_last_line(studied, trained, monkeypatch):
    folder, first = studied / "predict", results(studied)["predict_study"]
    whole = {path.name: path.read_text() for path in folder.glob("*.tsv")}
    assert whole.keys() == {"N_20.tsv", "N_50.tsv", "gold.tsv"}
    (folder / "N_50.tsv").write_text(whole["N_50.tsv"][:200])
    (folder / "gold.tsv").unlink()
    asked = []
    real = Smoothed.predict
    monkeypatch.setattr(
        Smoothed,
        "predict",
        lambda s, x, n, *a, **k: asked.append((n, len(x))) or real(s, x, n, *a, **k),
    )
    judged(studied, trained)
    assert {n for n, _ in asked} == {50} and 0 < sum(images for _, images in asked) < 20
    for path in folder.glob("*.tsv"):
        now, before = (text.splitlines() for text in (path.read_text(), whole[path.name]))
        assert [line.rpartition("\t")[0] for line in now] == [
            line.rpartition("\t")[0] for line in before
        ]
    again = results(studied)["predict_study"]
    for part in (first, again, *first["rows"], *again["rows"]):
        part.pop("seconds")
    assert again == first


def test_logs_of_another_question_are_replaced_and_those_of_more_draws_added(studied, trained):
    text = (studied / "predict" / "N_20.tsv").read_text()
    judged(studied, trained, "eval.predict.n=[20,60]")
    assert (studied / "predict" / "N_20.tsv").read_text() == text
    assert (studied / "predict" / "N_60.tsv").exists()
    judged(studied, trained, "eval.predict.sigma=0.5")
    assert (studied / "predict" / "N_20.tsv").read_text() != text
    assert not (studied / "predict" / "N_60.tsv").exists()


def test_no_two_logs_share_noise(tmp_path, trained, monkeypatch):
    seeds = []

    def noting(real):
        return lambda *a, **k: seeds.append(tuple(k["seeds"])) or real(*a, **k)

    for name in ("predict", "counts"):
        monkeypatch.setattr(Smoothed, name, noting(getattr(Smoothed, name)))
    judged(tmp_path, trained, "eval.predict.size=4")
    assert len(seeds) == 3 and len({seed for part in seeds for seed in part}) == 12


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"n": []}, r"n=\[\] is refused"),
        ({"n": [100, 100]}, "each larger than the one before"),
        ({"n": [100, 20]}, "each larger than the one before"),
        ({"n": [20, 300]}, "gold_draws=300 is refused"),
    ],
)
def test_a_study_that_says_nothing_is_refused(given, told):
    with pytest.raises(ValueError, match=told):
        PredictStudy(**STUDY, **given)


@pytest.mark.parametrize(
    ("scale", "n", "gold"),
    [
        ("full", [100, 1000, 10_000], 100_000),
        ("small", [100, 1000], 10_000),
        ("smoke", [100], 1000),
    ],
)
def test_a_scale_leaves_out_what_takes_more_draws(scale, n, gold):
    study = configuration("eval=predict", f"scale={scale}")["eval"]["predict"]
    assert (study["n"], study["gold_draws"]) == (n, gold)


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("eval.predict.n=[]", "eval.predict: n=[]"),
        ("eval.predict.n=[0,20]", "eval.predict.n="),
        ("eval.predict.gold_draws=10000", "gold_draws=10000 is refused"),
        ("eval.predict.alpha=1", "eval.predict.alpha=1"),
    ],
)
def test_a_wrong_study_ends_with_its_key_in_a_sentence(tmp_path, override, told):
    status = run(tmp_path, *FITTING, "eval=predict", override)
    assert status["exit_code"] == 2 and told in status["error"], status["error"]

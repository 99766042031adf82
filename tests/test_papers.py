"""A paper's figures beside ours: intervals, verdicts, and what no run is compared for."""

import csv
import json
from pathlib import Path

import pytest
from report_files import certified, put, results, row, unrendered  # noqa: F401
from scipy.stats import binomtest, t

from advtrain.reporting import formats, report, study
from advtrain.reporting.papers import beside, departures, reach_of
from advtrain.reporting.reading import read_run
from advtrain.reporting.reading_proofs import CATEGORIES
from advtrain.reporting.report import report_of
from advtrain.reporting.terminal import print_run, print_set
from advtrain.reporting.wording import MINUS
from advtrain.reporting.writing import write_run, write_set

PAPER = {
    "source": "the slides of Somebody 2020",
    "setting": {"scale": "full", "dataset": "digits"},
    "given": ["checkpoint"],
    "remarks": {
        "table": ["Networks are not printed."],
        "row": ["Epochs are ours."],
        "clean": ["Printed elsewhere as 0.42."],
    },
}
CHOICES = {"defense": "pgd_at", "model": "small_cnn", "dataset": "digits", "scale": "full"}
PUBLISHED = {"clean": 0.95, "pgd_linf": 0.75}


def exact(hits, n):
    found = binomtest(hits, n).proportion_ci(0.95, "exact")
    return found.low, found.high


def table_run(directory, *, overrides=(), choices=None, seed=0, accuracies=(0.9, 0.5), **more):
    rows = [
        row("clean", accuracies[0], ci95=list(exact(round(100 * accuracies[0]), 100))),
        row("pgd_linf", accuracies[1], ci95=list(exact(round(100 * accuracies[1]), 100))),
    ]
    chosen = CHOICES | (choices or {})
    content = results(rows=rows, seed=seed, choices=chosen, **more)
    content["config"]["model"] = {"_target_": chosen["model"]}
    content["config"] |= {"published": PUBLISHED, "paper": PAPER}
    return put(directory, content, {"state": "done", "overrides": list(overrides)})


def line_of(*directories):
    return report_of([read_run(directory) for directory in directories]).table.lines[0]


def test_one_run_is_held_to_its_exact_interval():
    assert reach_of([0.5], 200) == pytest.approx(exact(100, 200))
    assert reach_of([1.0], 50) == pytest.approx(exact(50, 50))
    assert reach_of([0.5], None) is None


def test_several_seeds_are_held_to_where_one_more_would_lie():
    shares = [0.50, 0.60, 0.70]
    spread = t.ppf(0.975, 2) * 0.1 * (4 / 3) ** 0.5
    assert reach_of(shares, None) == pytest.approx((0.6 - spread, min(1.0, 0.6 + spread)))
    assert reach_of([0.5, 0.5, 0.5], 100) == pytest.approx(exact(50, 100))


@pytest.mark.parametrize(
    ("value", "within"), [(0.40, True), (0.398, False), (0.60, True), (0.602, False)]
)
def test_a_verdict_says_whether_the_papers_figure_lies_within(value, within):
    figure = beside(value, 0.5, reach_of([0.5], 100), comparable=True)
    low, high = exact(50, 100)
    assert (low <= value <= high) == within == figure.within
    assert figure.difference == pytest.approx(0.5 - value)
    silent = beside(value, 0.5, reach_of([0.5], 100), comparable=False)
    assert silent.difference is None and silent.within is None and silent.value == value


def test_without_an_interval_there_is_a_difference_and_no_verdict():
    figure = beside(0.4, 0.5, None, comparable=True)
    assert figure.difference == pytest.approx(0.1) and figure.within is None


@pytest.mark.parametrize(
    ("overrides", "choices", "told"),
    [
        (["experiment=x", "seed=3", "logger.mode=offline", "hydra.run.dir=a"], {}, []),
        (["dataset.root=/data", "eval.size=1000", "checkpoint=a.pt"], {}, []),
        (["epochs=3"], {}, ["epochs=3"]),
        (
            ["+eval.attacks.x.steps=1", "~eval.certify"],
            {},
            ["eval.attacks.x.steps=1", "eval.certify"],
        ),
        (["scale=smoke"], {"scale": "smoke"}, ["scale=smoke in place of full"]),
        ([], {"dataset": "mnist"}, ["dataset=mnist in place of digits"]),
        (
            ["job=eval", "checkpoint=a", "defense=trades"],
            {},
            ["job=eval judges a checkpoint whose training is not known here"],
        ),
    ],
)
def test_departures_are_what_could_change_a_figure(tmp_path, overrides, choices, told):
    run = read_run(table_run(tmp_path / "0", overrides=overrides, choices=choices))
    assert departures(run) == told


def test_a_value_of_the_configuration_may_be_part_of_the_setting(tmp_path):
    directory = table_run(tmp_path / "0")
    for wanted, told in (("0.5", []), ("1", ["defense.beta=0.5 in place of 1"])):
        paper = PAPER | {"setting": {"defense.beta": wanted}}
        content = results(choices=CHOICES)
        content["config"] |= {"defense": {"beta": 0.5}, "paper": paper}
        assert departures(read_run(put(directory, content))) == told


def test_seeds_have_one_figure_and_the_wider_interval(tmp_path):
    runs = [
        table_run(tmp_path / str(seed), seed=seed, accuracies=(0.9, accuracy))
        for seed, accuracy in enumerate((0.4, 0.5, 0.6))
    ]
    figures = line_of(*runs).published
    assert figures["pgd_linf"].within is True  # 0.75 is within 0.5 ± 0.5, not within 100 images
    assert figures["pgd_linf"].difference == pytest.approx(-0.25)
    assert figures["clean"].within is True


def shown(capsys, directory):
    write_run(directory)
    print_run(report_of([read_run(directory)]))
    print_set(write_set([directory.parent], directory.parent))
    return capsys.readouterr().out


REMARKS = ("Networks are not printed.", "Epochs are ours.", "Printed elsewhere as 0.42.")
INCOMPARABLE = "These figures cannot be compared with the paper's: scale=smoke in place of full."


@pytest.mark.usefixtures("unrendered")
def test_every_format_has_figures_verdicts_and_remarks(tmp_path, capsys):
    directory = table_run(tmp_path / "0")
    text = shown(capsys, directory)
    assert text.count("95.00 (-5.00, within)") == 2 and text.count("75.00 (-25.00, outside)") == 2
    assert "paper 95.00 (-5.00, within)*" in text and "pgd_at · small_cnn · digits*" in text
    for name in ("table.md", "table.tex", "table.csv", "report.html"):
        for place in (directory, tmp_path):
            content = (place / name).read_text()
            assert all(words in content for words in REMARKS), (place, name)
            assert "cannot be compared" not in content
    files = {path.name: path.read_text() for path in tmp_path.glob("*.*")}
    assert f"| 95.00 ({MINUS}5.00, within)" in files["table.md"]
    assert "75.00 ($-$25.00, outside)" in files["table.tex"]
    assert f"75.00 ({MINUS}25.00, outside)" in files["report.html"]
    assert "the value in the slides of Somebody 2020" in files["table.md"]
    (line,) = csv.DictReader(files["table.csv"].splitlines())
    assert line["pgd_linf_published"] == "0.75" and line["pgd_linf_difference"] == "-0.25"
    assert (line["clean_verdict"], line["pgd_linf_verdict"]) == ("within", "outside")
    assert line["not_comparable"] == "" and all(words in line["remarks"] for words in REMARKS)


@pytest.mark.usefixtures("unrendered")
def test_another_setting_is_said_in_a_line_and_gets_no_verdict(tmp_path, capsys):
    directory = table_run(tmp_path / "0", choices={"scale": "smoke"}, overrides=["scale=smoke"])
    text = shown(capsys, directory)
    assert text.count(f"! {INCOMPARABLE}") == 2 and text.count("paper 95.00*") == 1
    for name in ("table.md", "table.tex", "report.html"):
        for place in (directory, tmp_path):
            content = (place / name).read_text().replace("&#39;", "'")
            assert INCOMPARABLE in content and "within)" not in content, (place, name)
            assert all(words in content for words in REMARKS)
    (line,) = csv.DictReader((tmp_path / "table.csv").read_text().splitlines())
    assert line["clean_published"] == "0.95" and line["clean_difference"] == ""
    assert line["clean_verdict"] == "" and line["not_comparable"] == "scale=smoke in place of full"


def test_only_what_departs_is_left_without_a_verdict(tmp_path):
    full = table_run(tmp_path / "0")
    small = table_run(tmp_path / "1", choices={"scale": "small", "model": "linear"})
    table = report_of([read_run(full), read_run(small)]).table
    assert len(table.lines) == 2
    (words,) = table.incomparable
    label = table.lines[1].label
    assert words == (
        f"The figures of {label} cannot be compared with the paper's: scale=small in place of full."
    )
    verdicts = [line.published["pgd_linf"].within for line in table.lines]
    assert verdicts == [False, None]
    assert formats.markdown(table).count("outside)") == 1


def with_figures(directory: Path, published, *, scale="full", **more):
    content = results(choices=CHOICES | {"scale": scale}, **more)
    content["config"] |= {"published": published, "paper": PAPER}
    return read_run(put(directory, content))


def test_certificates_have_verdicts(tmp_path):
    published = {"certified_0.25": 0.55, "certified_0.50": 0.3}
    run = with_figures(tmp_path / "0", published, certified=certified())
    text = report.markdown(report_of([run]))
    assert "paper 55.00 (+5.00, within)" in text and "paper 30.00 (+10.00, outside)" in text
    (line,) = csv.DictReader(report.comma_separated(report_of([run]))["certified"].splitlines())
    assert (line["published_0.25"], line["difference_0.25"]) == ("0.55", "0.05")
    assert (line["verdict_0.25"], line["verdict_0.5"]) == ("within", "outside")
    run = with_figures(tmp_path / "1", published, certified=certified(), scale="smoke")
    text = report.markdown(report_of([run]))
    assert "paper 55.00" in text and "within)" not in text
    assert text.count("scale=smoke in place of full.") == 2  # by accuracies, by certificates


def test_answers_of_predict_have_verdicts(tmp_path):
    shares = {"correct_accurate": 0.7, "correct_inaccurate": 0.0, "incorrect_accurate": 0.2}
    answers = {"n": 100, **shares, "incorrect_inaccurate": 0.0, "abstain": 0.1, "seconds": 1.0}
    known = {"sigma": 0.25, "alpha": 0.001, "gold_draws": 1000, "examples": 100, "rows": [answers]}
    published = {"predict_100_correct_accurate": 0.55, "predict_100_abstain": 0.12}
    run = with_figures(tmp_path / "0", published, predict_study=known)
    named = study.studies([("", run)])
    text = study.markdown(named)
    assert "70.00 paper 55.00 (+15.00, outside)" in text
    assert f"10.00 paper 12.00 ({MINUS}2.00, within)" in text
    (line,) = csv.DictReader(study.comma_separated(named).splitlines())
    assert line["correct_accurate_verdict"] == "outside" and line["abstain_verdict"] == "within"
    assert line["incorrect_accurate_published"] == ""
    smaller = with_figures(tmp_path / "1", published, predict_study=known, scale="small")
    text = study.markdown(study.studies([("", smaller)]))
    assert "scale=small in place of full" in text and "outside)" not in text


@pytest.mark.usefixtures("unrendered")
def test_what_keeps_several_tables_from_a_comparison_is_said_once(tmp_path, capsys):
    shares = dict.fromkeys(CATEGORIES, 0.2)
    answers = {"sigma": 0.5, "alpha": 0.001, "examples": 5, "rows": [{"n": 100, **shares}]}
    more = {"certified": certified(), "predict_study": answers}
    directory = table_run(tmp_path / "0", choices={"scale": "smoke"}, **more)
    stored = json.loads((directory / "results.json").read_text())
    stored["config"]["published"] |= {"certified_0.25": 0.5, "predict_100_abstain": 0.5}
    put(directory, stored)
    report = report_of([read_run(directory)])
    assert report.table.lines and report.claims and report.studies
    for show in (print_run, print_set):
        show(report)
        assert capsys.readouterr().out.count("cannot be compared") == 1


def test_runs_that_were_only_trained_are_counted_in_one_line(tmp_path, capsys):
    for seed, defense in enumerate(("trades", "mart", "pgd_at")):
        status = {"state": "done", "choices": {"defense": defense}, "config": {"seed": seed}}
        put(tmp_path / defense, None, status)
    failed = {"state": "failed", "error": "it fell", "choices": {"defense": "free"}}
    put(tmp_path / "free", None, failed)
    print_set(report_of([read_run(path) for path in sorted(tmp_path.iterdir())]))
    told = capsys.readouterr().out
    assert told.count("not evaluated") == 1 and "3 configurations: not evaluated" in told
    assert "it fell" in told

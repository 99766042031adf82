"""advtrain-report on certification logs in Cohen's format, as others write them."""

import csv
import json
import os

import pytest
from report_files import certified, cohen_log, put, results, unrendered  # noqa: F401

from advtrain.certification.shares import high_probability
from advtrain.reporting.claim_tables import claim_tables
from advtrain.reporting.claims import Wanted
from advtrain.reporting.cli import main
from advtrain.reporting.logs import doubts, kind, names, read_log
from advtrain.reporting.sources import find
from advtrain.reporting.tables import accuracy_table

quick = pytest.mark.usefixtures("unrendered")
QUARTER = [0.1, 0.2, 0.255, 0.3, 0.45, 0.6, "wrong", "wrong", "abstain", 7.11e-5]
HALF = [0.3, 0.312, 0.7, 0.9, 1.1, 1.71, "wrong", "abstain", "abstain", "abstain"]


@pytest.fixture
def tree(tmp_path):
    """Two logs where the authors keep theirs; one tells times as a clock, one as seconds."""
    root = tmp_path / "data" / "certify" / "cifar10" / "resnet110"
    cohen_log(root / "noise_0.25" / "test" / "sigma_0.25", QUARTER)
    cohen_log(root / "noise_0.50" / "test" / "sigma_0.50", HALF, time="0:00:13.771528")
    return tmp_path / "data"


def lines_of(path):
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def report(*words):
    return main([str(word) for word in words])


def test_a_tree_of_logs_is_the_table_of_certified_accuracies(tree, tmp_path, capsys):
    out = tmp_path / "out"
    assert report(tree, "--out", out, "--radii", "0,0.25,0.5,0.75,1") == 0
    first, second = lines_of(out / "table.csv")
    assert [row["configuration"] for row in (first, second)] == ["sigma 0.25", "sigma 0.50"]
    told = [
        [float(row[f"certified_{r}"]) for r in ("0", "0.25", "0.5", "0.75", "1")]
        for row in (first, second)
    ]
    assert told == [[0.7, 0.4, 0.1, 0.0, 0.0], [0.6, 0.6, 0.4, 0.3, 0.2]]
    assert float(first["acr"]) == pytest.approx(0.1905071, abs=1e-6)  # 1.905071 of 10, 7.11e-05 too
    assert (first["abstain"], second["abstain"], first["examples"]) == ("0.1", "0.3", "10")
    assert (first["sigma"], first["alpha"], first["norm"]) == ("0.25", "0.001", "l2")
    for row in (first, second):
        share = float(row["certified_0"])
        expected = high_probability(share, 10, 0.001)
        assert float(row["high_probability_0"]) == pytest.approx(expected, abs=1e-8)
    files = {"table.md", "table.tex", "table.csv", "report.html", "plots"}
    assert set(os.listdir(out)) == files
    assert os.listdir(out / "plots") == ["certified_curves.png"]
    shown = capsys.readouterr().out
    for text in (shown, (out / "table.md").read_text(), (out / "report.html").read_text()):
        assert "sigma 0.25" in text and "40.00" in text and "r=0.75" in text


@quick
def test_fractions_are_printed_as_papers_do(tree, tmp_path, capsys):
    out = tmp_path / "out"
    assert report(tree, "--out", out, "--radii", "0.25,0.5", "--fractions") == 0
    row = next(line for line in (out / "table.md").read_text().splitlines() if "0.50 |" in line)
    assert row.startswith("| sigma 0.50 | **0.60** | **0.40** | 0.502 | 0.30 | 10 |")
    assert "0.60" in capsys.readouterr().out


def test_radii_are_quarters_as_far_as_any_log_reaches_unless_chosen(tree):
    def columns(**wanted):
        logs = [read_log(path) for path in find([tree]).logs]
        (claims,) = claim_tables(accuracy_table([]), logs, Wanted(**wanted))
        return list(claims.radii)

    assert columns() == [0, 0.25, 0.5, 0.75, 1, 1.25, 1.5]
    assert columns(step=0.5) == [0, 0.5, 1, 1.5]
    assert columns(radii=(0.125, 1)) == [0.125, 1]
    cohen_log(tree / "far", [3.8])
    assert columns() == [0.5 * k for k in range(8)]


def test_a_log_is_named_by_path_then_file_then_what_stands_beside_it(tmp_path):
    root = tmp_path / "certify" / "cifar10" / "resnet110"
    moved = root / "noise_0.12" / "test" / "sigma_0.50"
    paths = [moved, tmp_path / "mine.tsv", tmp_path / "run" / "certify.tsv"]
    paths += [tmp_path / name / "certify.tsv" for name in ("one", "other")]
    logs = [read_log(cohen_log(path, [0.5])) for path in paths]
    (tmp_path / "run" / "certify.json").write_text(json.dumps({"sigma": 0.25, "alpha": 0.01}))
    third = read_log(paths[2])
    assert names([third]) == ["sigma 0.25"]
    assert (third.found.alpha, third.found.sigma, third.alpha_told) == (0.01, 0.25, True)
    assert names([logs[1]]) == ["mine.tsv"] and names([logs[0]]) == [
        "sigma 0.50, trained with 0.12"
    ]
    assert names(logs[3:]) == ["one", "other"]
    same = [read_log(cohen_log(tmp_path / name / "x.tsv", [0.5])) for name in ("one", "other")]
    assert names(same) == [f"x.tsv ({log.path})" for log in same]


@quick
def test_data_sets_are_named_where_they_differ_and_then_none_is_best(tmp_path):
    for dataset in ("cifar10", "imagenet"):
        cohen_log(
            tmp_path / "certify" / dataset / "net" / "noise_0.25" / "test" / "sigma_0.25", QUARTER
        )
    assert report(tmp_path, "--out", tmp_path / "out") == 0
    text = (tmp_path / "out" / "table.md").read_text()
    assert "| cifar10 · sigma 0.25 |" in text and "| imagenet · sigma 0.25 |" in text
    assert "**" not in text and "bold" not in text


def test_radii_that_three_digits_may_have_lifted_are_counted(tmp_path):
    log = read_log(cohen_log(tmp_path / "a", [0.4996, 0.25, 0.251, 0.75, 0.75, "abstain"]))
    (words,) = doubts(log, [0.0, 0.25, 0.5, 0.75, 1.0])
    assert "3 significant digits" in words and "3 of 4 cells" in words
    assert "(1 at 0.25, 1 at 0.5, 2 at 0.75)" in words
    cohen_log(tmp_path / "b", [0.5])
    (tmp_path / "b").write_text((tmp_path / "b").read_text() + "20\t3\t3\t0.412345678\t1\t1\n")
    assert doubts(read_log(tmp_path / "b"), [0.5]) == []


@quick
def test_broken_repeated_and_unfinished_lines_are_told_wherever_the_numbers_are(tmp_path, capsys):
    path = cohen_log(tmp_path / "sigma_0.25", [0.3, 0.4])
    again = ["0\t3\t3\t0.9\t1\t1", "40\t3\t3\t0.5", "60\t3\t5\t0.5\t1\t1", "80\t3\t3\t0.9"]
    path.write_text(path.read_text() + "\n".join(again))
    out = tmp_path / "out"
    assert report(path, "--out", out) == 0
    (row,) = lines_of(out / "table.csv")
    assert (row["examples"], row["certified_0.5"]) == ("2", "0.0")
    shown = capsys.readouterr().out
    for text in (shown, (out / "table.md").read_text(), (out / "report.html").read_text()):
        assert "line 4 is not counted: idx 0 was certified before" in text
        assert "this line disagrees (label 3, predict 3, radius 0.9)" in text
        assert "line 5 is not counted: it has 4 columns" in text
        assert "line 6 is not counted: correct is 1" in text
        assert "last line is unfinished" in text
    assert "line 5" in row["remarks"]


def test_many_broken_lines_are_told_by_their_number(tmp_path):
    path = cohen_log(tmp_path / "log", [0.3])
    path.write_text(path.read_text() + "broken\n" * 30)
    problems = read_log(path).problems
    assert len(problems) == 6 and problems[-1] == "25 more lines are not counted."


@quick
def test_a_predict_log_is_recognised_and_left_out(tmp_path, capsys):
    cohen_log(tmp_path / "d" / "sigma_0.25", QUARTER)
    (tmp_path / "d" / "N_100").write_text("idx\tlabel\tpredict\tcorrect\ttime\n0\t0\t0\t1\t1\n")
    (tmp_path / "d" / "odd").write_text("idx,label,predict,radius,correct,time\n0,0,0,1,1,1\n")
    assert report(tmp_path / "d" / "N_100", "--out", tmp_path / "out") == 2
    assert "PREDICT log" in capsys.readouterr().err
    assert report(tmp_path / "d", "--out", tmp_path / "out") == 0
    shown = capsys.readouterr().out
    for text in (shown, (tmp_path / "out" / "report.html").read_text()):
        assert "N_100: PREDICT" in text and "odd: the columns are not those" in text
    assert kind(tmp_path / "d" / "odd") == "similar"


@quick
def test_a_log_without_certificates_is_refused_alone_and_told_among_others(tmp_path, capsys):
    empty = cohen_log(tmp_path / "d" / "sigma_0.50", [])
    assert report(empty, "--out", tmp_path / "out") == 2
    assert "holds no certificate" in capsys.readouterr().err
    assert report(tmp_path / "d", "--out", tmp_path / "out") == 2
    capsys.readouterr()
    cohen_log(tmp_path / "d" / "sigma_0.25", QUARTER)
    assert report(tmp_path / "d", "--out", tmp_path / "out") == 0
    assert "holds no certificate" in capsys.readouterr().out


def test_alpha_is_read_or_given_or_assumed_and_doubted_where_radii_say_more(tmp_path):
    path = cohen_log(tmp_path / "certify.tsv", [0.977, 0.2])  # 3.91 sigma: alpha = 0.01
    (tmp_path / "certify.json").write_text('{"sigma": 0.25}')
    assumed, given = read_log(path), read_log(path, 0.01)
    assert (assumed.found.alpha, given.found.alpha) == (0.001, 0.01)
    assert "so many draws do at alpha = 0.01. Give --alpha" in doubts(assumed, [])[-1]
    assert doubts(given, []) == []
    (tmp_path / "certify.json").write_text('{"sigma": 0.25, "alpha": 0.002, "n": 1000}')
    told = read_log(path, 0.01)
    assert (told.found.alpha, told.found.n, doubts(told, [])) == (0.002, 1000, [])
    (tmp_path / "certify.json").write_text('{"sigma": 0.25, "alpha": 7')
    assert read_log(path).found.sigma is None


@quick
def test_logs_of_different_examples_are_said_to_be_such(tree, tmp_path, capsys):
    cohen_log(tree / "certify/cifar10/resnet110/noise_1.00/test/sigma_1.00", QUARTER[:7])
    assert report(tree, "--out", tmp_path / "out") == 0
    assert "do not hold the same examples (n = 7 and 10)" in capsys.readouterr().out


@quick
def test_runs_and_logs_in_one_call_share_the_certificates_and_keep_their_own(
    tree, tmp_path, capsys
):
    run = put(tmp_path / "run", results(certified=certified()))
    cohen_log(run / "certify.tsv", [0.1])  # the run's own, and part of it
    out = tmp_path / "out"
    assert report(run, tree, "--out", out) == 0
    assert [row["configuration"] for row in lines_of(out / "table.csv")] == [
        "pgd_at · small_cnn · digits"
    ]
    rows = lines_of(out / "certified.csv")
    assert [row["configuration"] for row in rows] == [
        "pgd_at · small_cnn · digits",
        "sigma 0.25",
        "sigma 0.50",
    ]
    assert [row["certified_0.5"] for row in rows] == ["0.4", "0.1", "0.4"]
    assert [row["certified_1"] for row in rows] == [
        "",
        "0.0",
        "0.2",
    ]  # its log is of other examples
    assert "sums up to other numbers" in capsys.readouterr().out
    assert "2 certification logs" in (out / "report.html").read_text()


@pytest.mark.parametrize(
    "words",
    [
        ["--radii", "0.25,x"],
        ["--radii", "-1"],
        ["--radii", "nan"],
        ["--step", "0"],
        ["--alpha", "1"],
        ["--radii", "0.25", "--step", "0.5"],
    ],
)
def test_options_out_of_range_are_refused(tree, words, capsys):
    with pytest.raises(SystemExit) as refusal:
        report(tree, *words)
    assert refusal.value.code == 2 and "argument" in capsys.readouterr().err


@quick
def test_names_of_logs_are_text_on_the_page(tmp_path):
    path = cohen_log(tmp_path / "<img src=x>|a_b.tsv", QUARTER)
    path.write_text(path.read_text() + "<script>\t1\n")
    assert report(path, "--out", tmp_path / "out") == 0
    page = (tmp_path / "out" / "report.html").read_text()
    assert "<img src=x" not in page and page.count("<script") == 1 and "&lt;img src=x&gt;" in page
    assert "\\|a_b.tsv" in (tmp_path / "out" / "table.md").read_text()
    assert "a\\_b.tsv" in (tmp_path / "out" / "table.tex").read_text()


def test_logs_are_found_in_order_without_those_inside_runs(tmp_path):
    run = put(tmp_path / "a" / "run", results())
    cohen_log(run / "certify.tsv", [0.1])
    cohen_log(tmp_path / "a" / ".git" / "log", [0.1])
    paths = [cohen_log(tmp_path / "a" / name, [0.1]) for name in ("x", "y")]
    (tmp_path / "a" / "z").symlink_to(paths[0])
    found = find([tmp_path / "a", paths[0]])
    assert found.runs == (run,) and list(found.logs) == paths

"""Certificates of runs in tables, figures, pages and on the terminal, from results.json alone."""

import csv
import io
import json
import re

import pytest
from report_files import certified, cohen_log, put, results, row, unrendered  # noqa: F401

from advtrain.certification.shares import high_probability
from advtrain.reporting.claim_formats import comma_separated as certificates_csv
from advtrain.reporting.claim_plots import certified_curves, steps
from advtrain.reporting.cli import main
from advtrain.reporting.formats import comma_separated
from advtrain.reporting.reading import read_run
from advtrain.reporting.report import latex, markdown, report_of
from advtrain.reporting.style import figure
from advtrain.reporting.terminal import print_run, print_set
from advtrain.reporting.writing import write_run, write_set

pytestmark = pytest.mark.usefixtures("unrendered")
BROKEN = {
    "idx": 40,
    "label": 3,
    "predict": 3,
    "radius": 0.4512,
    "distance": 0.31,
    "answer": 5,
    "p_value": 1.2e-12,
}
SHARES = {
    "correct_accurate": 0.66,
    "correct_inaccurate": 0.01,
    "incorrect_accurate": 0.2,
    "incorrect_inaccurate": 0.03,
    "abstain": 0.1,
}
STUDY = {
    "sigma": 0.25,
    "alpha": 0.001,
    "gold_draws": 100_000,
    "examples": 500,
    "rows": [{"n": n, **SHARES, "seconds": n / 50} for n in (100, 1000)],
}
EXACT = {
    "linf": {"accuracy_at_radius": {"0.01": 0.97, "0.10": 0.5}, "acr": 0.09},
    "l2": {"accuracy_at_radius": {"0.25": 0.96, "1.00": 0.4}, "acr": 0.9},
}


def soundness(*broken):
    return {"attack": "pgd_l2", "examples": 120, "broken": list(broken)}


def sweep(tmp_path, *entries):
    """A run per entry `certified`; sigma is what sets them apart."""
    runs = []
    for place, entry in enumerate(entries):
        content = results(certified=entry)
        content["config"]["sigma"] = entry["sigma"]
        overrides = [f"eval.certify.sigma={entry['sigma']}"]
        runs.append(put(tmp_path / str(place), content, {"state": "done", "overrides": overrides}))
    return runs


def of(*directories):
    return report_of([read_run(directory) for directory in directories])


def shown(report, printed, *, colour=False):
    from rich.console import Console

    stream = io.StringIO()
    system = "standard" if colour else None
    printed(report, Console(file=stream, width=400, force_terminal=colour, color_system=system))
    return stream.getvalue()


def test_results_of_earlier_versions_are_l2_gaussian_and_fp32(tmp_path):
    report = of(put(tmp_path / "0", results(certified=certified())))
    ((claims,), (claim,)) = report.claims, report.claims[0].claims
    assert claims.norm == "l2" and claims.radii == (0.0, 0.25, 0.5)
    assert claim.shares == {0.0: 0.8, 0.25: 0.6, 0.5: 0.4}
    assert claim.high[0.25] == high_probability(0.6, 200, 0.001)  # by the formula
    text = markdown(report)
    assert "uniform" not in text and "bf16" not in text and "asked" not in text
    assert report.failures == report.reassurances == [] and not report.studies


def test_high_probability_is_what_results_say(tmp_path):
    told = {"0.25": 0.51, "0.50": 0.31}
    report = of(put(tmp_path / "0", results(certified=certified(high_probability=told))))
    assert "| 51.00 | 31.00 |" in markdown(report) and "51.00 & 31.00" in latex(report)
    assert "51.00" in shown(report, print_run)


def test_a_broken_certificate_is_an_error_in_red_and_no_footnote(tmp_path, capsys):
    entry = certified(soundness=soundness(BROKEN, {"odd": 1}))
    run = put(tmp_path / "0", results(certified=entry))
    write_run(run)
    table, page = (run / "table.md").read_text(), (run / "report.html").read_text()
    assert table.startswith("> **ERROR: 2 of 120 attacked certificates are BROKEN")
    assert "idx 40: label 3, certified 3 within 0.4512, but 5 at 0.31 (p = 1.2e-12)" in table
    assert "idx ?" in table and "Chance alone may break 0.12 of 120" in table
    assert (run / "table.tex").read_text().startswith("\\noindent\\textbf{ERROR: 2 of 120")
    assert page.index('<span class="failure"><b>ERROR:</b> 2 of 120') < page.index("<section>")
    red = shown(of(run), print_run, colour=True)
    assert re.search(r"\x1b\[1;31mERROR: 2 of 120", red)
    assert main([str(run)]) == 0 and "ERROR: 2 of 120" in capsys.readouterr().out


def test_in_a_set_the_error_names_its_run_and_others_stay_calm(tmp_path):
    entries = [certified(soundness=soundness()), certified(sigma=1.0, soundness=soundness(BROKEN))]
    runs = sweep(tmp_path / "grid", *entries)
    report = write_set([tmp_path / "grid"], tmp_path / "grid")
    (failure,), (calm,) = report.failures, report.reassurances
    assert "sigma=1.0" in failure and "1 of 120 attacked certificates is BROKEN" in failure
    assert "sigma=0.5" in calm
    assert calm.endswith("120 attacked inside their certified radius by pgd_l2, none fell.")
    text = (tmp_path / "grid" / "table.md").read_text()
    assert text.startswith("> **ERROR: eval.certify.sigma=1.0: 1 of 120") and calm in text
    page = (tmp_path / "grid" / "report.html").read_text()
    assert page.index("<b>ERROR:</b>") < page.index("<section>") < page.index("<b>Sound:</b>")
    told = shown(report, print_set).strip().splitlines()
    assert told[-2].startswith("eval") and told[-1].startswith("ERROR: eval")
    rows = list(csv.DictReader(io.StringIO(certificates_csv(report.claims))))
    assert [r["soundness_broken"] for r in rows] == ["0", "1"] and len(runs) == 2


@pytest.mark.parametrize("broken", [3, "40", {"idx": 1}])
def test_a_broken_entry_that_is_not_understood_is_an_error_too(tmp_path, broken):
    entry = certified(soundness={"attack": None, "examples": "many", "broken": broken})
    (failure,) = of(put(tmp_path / "0", results(certified=entry))).failures
    assert failure.startswith("1 certificate is BROKEN")


def test_view_noise_precision_and_asked_radii_stand_at_the_row_or_under_it(tmp_path):
    entry = certified(precision="bf16", radii=[0.25, 0.5], draws=2345.6, view="lambda=0.2")
    report = of(put(tmp_path / "0", results(certified=entry)))
    for text in (markdown(report), shown(report, print_run)):
        assert "digits (lambda=0.2, bf16)" in text
        assert "holds for the network in bf16, not in fp32" in text
        assert "radii asked: 0.25, 0.5." in text and "2,346 an example on average" in text
    (line,) = csv.DictReader(io.StringIO(certificates_csv(report.claims)))
    assert (line["radii_asked"], line["draws"], line["precision"]) == ("0.25 0.5", "2345.6", "bf16")
    assert line["view"] == "lambda=0.2"


def test_radii_of_another_norm_stand_in_a_table_a_column_and_a_figure_of_their_own(tmp_path):
    entries = [certified(), certified(sigma=1.0, norm="l1", noise="uniform")]
    sweep(tmp_path / "grid", *entries)
    report = write_set([tmp_path / "grid"], tmp_path / "grid")
    assert [claims.norm for claims in report.claims] == ["l2", "l1"]
    keys = [column.key for column in report.table.columns]
    assert keys[3:6] == ["certified", "certified_0.25", "certified_0.50"]
    assert keys[6:] == ["certified_l1", "certified_l1_0.25", "certified_l1_0.50", "acr", "acr_l1"]
    text = (tmp_path / "grid" / "table.md").read_text()
    assert "(uniform noise)" in text and "certified l1 r=0.25" not in text  # in its own table
    assert "Certified accuracy in l1, in percent" in text
    drawn = {path.name for path in (tmp_path / "grid" / "plots").glob("certified*")}
    assert drawn == {"certified_curves.png", "certified_curves_l1.png"}
    page = (tmp_path / "grid" / "report.html").read_text()
    assert page.count("Share of the examples that are certified correct") == 4  # alt and caption


def test_a_norm_names_no_file_outside_the_folder(tmp_path):
    entry = certified(norm="../../<b>")
    run = put(tmp_path / "0", results(certified=entry))
    write_run(run)
    assert (run / "plots" / "certified_b.png").is_file()
    assert "<b>/" not in (run / "report.html").read_text()


def test_predict_is_a_table_of_five_categories(tmp_path):
    run = put(tmp_path / "0", results(predict_study=STUDY))
    write_run(run)
    row_of_100 = "| 100 | 66.00 | 1.00 | 20.00 | 3.00 | 10.00 | 2.0 s |"
    assert row_of_100 in (run / "table.md").read_text()
    assert "100 & 66.00 & 1.00 & 20.00 & 3.00 & 10.00 & 2.0 s" in (run / "table.tex").read_text()
    page = (run / "report.html").read_text()
    assert "Answers by PREDICT" in page and "100,000 other draws" in page
    lines = list(csv.DictReader(io.StringIO((run / "predict.csv").read_text())))
    assert [line["n"] for line in lines] == ["100", "1000"]
    assert {key: float(lines[0][key]) for key in SHARES} == SHARES
    assert re.search(r"1000 +66\.00 +1\.00 +20\.00 +3\.00 +10\.00 +20 s", shown(of(run), print_run))


def test_studies_of_several_runs_are_one_table_and_rows_without_a_category_are_left_out(tmp_path):
    other = STUDY | {"rows": [STUDY["rows"][0], {"n": 5, "abstain": 1.0}], "sigma": 0.5}
    runs = [put(tmp_path / "0", results("a", predict_study=STUDY))]
    runs += [put(tmp_path / "1", results("b", predict_study=other))]
    text = markdown(of(*runs))
    assert text.count("| a | 1") == 2 and text.count("| b | 100 |") == 1 and "| b | 5 |" not in text
    assert "sigma" not in text.split("PREDICT by")[1].split("\n")[0]  # it differs


def test_exact_certificates_of_a_linear_model_stand_beside_those_of_smoothing(tmp_path):
    run = put(tmp_path / "0", results(certified=certified(), exact=EXACT))
    write_run(run)
    report = of(run)
    assert [claims.norm for claims in report.claims] == ["l2", "linf"]
    smooth, exact = report.claims[0].claims
    assert exact.is_exact and exact.shares == {0.25: 0.96, 1.0: 0.4} == exact.high
    assert smooth.shares.keys() == {0.0, 0.25, 0.5}
    text = markdown(report)
    assert "digits (exact) | \N{EN DASH} | **96.00** |" in text and "in linf, in percent" in text
    assert text.count("with high probability |") == 1  # nothing exact is due to chance
    assert {path.name for path in (run / "plots").glob("certified*")} == {
        "certified.png",
        "certified_linf.png",
    }


def test_seeds_are_a_mean_and_the_deviation(tmp_path):
    runs = []
    for seed, share in enumerate((0.5, 0.7)):
        entry = certified(accuracy_at_radius={"0.25": share}, acr=share)
        runs.append(put(tmp_path / str(seed), results(seed=seed, certified=entry)))
    (claim,) = of(*runs).claims[0].claims
    assert claim.shares[0.25] == pytest.approx(0.6)
    assert claim.spread[0.25] == claim.acr_spread == pytest.approx(0.2 / 2**0.5)
    assert "60.00 ± 14.14" in markdown(of(*runs)) and "0.600 ± 0.141" in markdown(of(*runs))


def test_steps_are_the_share_of_radii_that_reach_there_and_end_at_the_largest():
    with figure(2, 2) as (_, grid):
        axes = grid[0][0]
        steps(axes, [0.2, 0.5, 0.5, -1.0])
        steps(axes, [0.2, 0.5, 0.5, -1.0], loss=0.5)
        solid, thin = axes.lines
        assert solid.get_drawstyle() == "steps-pre"
        assert list(solid.get_xdata()) == [0, 0.2, 0.5, 0.5, 0.5]
        assert list(solid.get_ydata()) == [0.75, 0.75, 0.5, 0.25, 0]
        assert list(thin.get_ydata()) == [0.25, 0.25, 0, 0, 0]


def test_curves_of_several_sigmas_are_one_figure_in_the_order_of_sigma(tmp_path, monkeypatch):
    runs = sweep(
        tmp_path, *(certified(sigma=s, examples=2, accuracy=1.0) for s in (1.0, 0.25, 0.5))
    )
    for run in runs[:2]:
        cohen_log(run / "certify.tsv", [0.3, 0.6])
    told = []
    keep = "advtrain.reporting.claim_plots.save"
    monkeypatch.setattr(keep, lambda drawing, path: told.append(drawing) or path)
    assert certified_curves(of(*runs).claims[0], tmp_path / "x.png")
    (axes,) = told[0].axes
    words = [text.get_text() for text in told[0].legends[0].get_texts()]
    assert [re.findall(r"sigma=(\S+)", word)[0] for word in words] == ["0.25", "0.5", "1.0"]
    assert axes.get_xlabel().startswith("radius in l2, pixels in [0, 1]")
    assert "markers: no log was found" in axes.get_xlabel()
    assert len(axes.lines) == 2 * 2 + 1  # with high probability too, where there is a log


def test_a_log_that_sums_up_otherwise_is_not_drawn(tmp_path):
    run = put(tmp_path / "0", results(certified=certified(examples=2, accuracy=0.5)))
    cohen_log(run / "certify.tsv", [0.3, "wrong"])
    assert len(of(run).claims[0].claims[0].radii) == 2
    cohen_log(run / "certify.tsv", [0.3, 0.4])
    assert of(run).claims[0].claims[0].radii == ()
    assert "sums up to other numbers" in markdown(of(run))


def test_hostile_words_in_certificates_are_text(tmp_path):
    evil = "<script>alert(1)</script>"
    check = {"attack": evil, "examples": 1, "broken": [{"idx": evil, "answer": evil}]}
    entry = certified(noise=evil, precision=evil, norm=evil, soundness=check)
    study = STUDY | {"rows": [STUDY["rows"][0] | {"n": 7}]}
    content = results(certified=entry, predict_study=study, exact={evil: EXACT["l2"]}, name=evil)
    run = put(tmp_path / "grid" / "0", content)
    write_run(run)
    write_set([tmp_path / "grid"], tmp_path / "grid")
    for page in (run / "report.html", tmp_path / "grid" / "report.html"):
        assert page.read_text().count("<script") == 1 and "&lt;script&gt;" in page.read_text()
    assert "\\<script" in (run / "table.md").read_text()


@pytest.mark.parametrize(
    "more",
    [
        {"radii": 3, "draws": "x", "high_probability": [1], "soundness": [1], "norm": 5},
        {"accuracy_at_radius": {"-1": 0.5, "nan": 0.5, "x": 0.1}, "high_probability": {"0.25": 7}},
        {"accuracy": None, "accuracy_at_radius": None},
        {"alpha": 5.0, "examples": -3},
        {"sigma": None, "n": None, "n0": None, "alpha": None, "examples": None, "acr": None},
    ],
)
def test_damaged_entries_are_left_out_and_crash_nothing(tmp_path, more, caplog):
    content = results(certified=certified(**more), predict_study={"rows": 3}, exact=[1])
    write_run(put(tmp_path / "0", content))
    write_set([tmp_path], tmp_path)
    assert not caplog.records


def test_a_run_with_certificates_alone_has_no_empty_parts(tmp_path):
    run = put(
        tmp_path / "0", results(rows=[row("clean", 0.9)], worst_case={}, certified=certified())
    )
    write_run(run)
    assert {path.name for path in run.glob("[!.]*")} == {
        *("results.json", "table.md", "table.tex", "table.csv", "certified.csv"),
        *("report.html", "references.bib", "plots"),
    }
    assert "certified_0.25" in comma_separated(of(run).table)
    assert json.loads((run / "results.json").read_text())["certified"]["n"] == 1000

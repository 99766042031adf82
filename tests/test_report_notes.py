import csv
import re

import pytest
from report_files import put, results, row

from advtrain.reporting.cli import main
from advtrain.reporting.formats import comma_separated, latex, markdown
from advtrain.reporting.reading import read_run
from advtrain.reporting.records import Stage
from advtrain.reporting.tables import accuracy_table
from advtrain.reporting.writing import write_run

CLEAN = row("clean", 0.9)
PGD = row("pgd_linf", 0.5, norm="linf", eps=8 / 255, steps=20)
OF_MODEL = {"check": "noise", "row": "model", "message": "logits differ between two calls."}
OF_ROW = {"check": "outside", "row": "pgd_linf", "message": "3 of 100 lie outside."}
STAGES = [
    {"name": "apgd_ce", "accuracy": 0.6, "n": 90, "forward_passes": 9000, "seconds": 2.0},
    {"name": "square", "accuracy": 0.55, "n": 60, "forward_passes": 300_000, "seconds": 61.0},
]
COMBINED = row("autoattack", 0.55, norm="linf", eps=8 / 255, version="plus", queries=500)
COMBINED["stages"] = STAGES


def noted(directory, *warnings, rows=(CLEAN, PGD), **more):
    return put(directory, results(rows=list(rows), warnings=list(warnings), **more))


def table_of(*directories):
    return accuracy_table([read_run(directory) for directory in directories])


def test_warnings_about_the_model_come_first_and_mark_the_configuration(tmp_path):
    table = table_of(noted(tmp_path / "0", OF_ROW, OF_MODEL))
    (line,) = table.lines
    assert line.marks == (1,) and line.cells["pgd_linf"].marks == (2,)
    assert line.cells["clean"].marks == ()
    assert [note.text for note in table.footnotes] == [
        "logits differ between two calls.",
        "pgd_linf: 3 of 100 lie outside.",
    ]


def test_footnotes_of_markdown_and_latex_stand_under_the_table(tmp_path):
    write_run(noted(tmp_path / "0", OF_ROW, OF_MODEL))
    text = (tmp_path / "0" / "table.md").read_text()
    assert "digits¹ | 90.00 [" in text and "| 50.00² [40.00, 60.00] |" in text
    assert "| pgd_linf | linf 8/255, 20 steps | 50.00² |" in text
    assert text.endswith(
        "\n¹ logits differ between two calls.\n\n² pgd_linf: 3 of 100 lie outside.\n"
    )
    tex = (tmp_path / "0" / "table.tex").read_text()
    assert r"50.00\textsuperscript{2} [40.00, 60.00]" in tex
    assert r"\par\smallskip \textsuperscript{2} pgd\_linf: 3 of 100 lie outside." in tex
    assert tex.index(r"\end{tabular}") < tex.index(r"\smallskip") < tex.index(r"\end{table}")


def test_the_csv_has_the_warnings_in_a_column(tmp_path):
    table = table_of(noted(tmp_path / "0", OF_ROW, OF_MODEL), noted(tmp_path / "1", defense="mart"))
    first, second = csv.DictReader(comma_separated(table).splitlines())
    said = "logits differ between two calls.; pgd_at, pgd_linf: 3 of 100 lie outside."
    assert first["warnings"] == f"pgd_at: {said}" and second["warnings"] == ""
    assert float(first["pgd_linf"]) == 0.5


def test_the_same_warning_of_seeds_or_views_is_told_once_with_all_that_it_is_about(tmp_path):
    seeds = [noted(tmp_path / str(seed), OF_ROW, seed=seed) for seed in (0, 1)]
    table = table_of(*seeds)
    assert table.lines[0].cells["pgd_linf"].marks == (1,)
    assert [n.abouts for n in table.footnotes] == [("seed 0, pgd_linf", "seed 1, pgd_linf")]
    assert "50.00¹ ± 0.00" in markdown(table)
    assert "¹ seed 0, pgd_linf; seed 1, pgd_linf: 3 of 100 lie outside." in markdown(table)
    assert r"\textsuperscript{1}" in latex(table)
    views = [row("clean", 0.9, view=view) for view in ("lambda=0", "lambda=1")]
    table = table_of(noted(tmp_path / "v", OF_MODEL, rows=views))
    assert [line.marks for line in table.lines] == [(1,)] * 3 and len(table.footnotes) == 1


@pytest.mark.parametrize("name", [None, "model", "all", "clean", "absent"])
def test_every_warning_is_told_wherever_it_belongs(tmp_path, capsys, name):
    given = {"check": "x", "row": name, "message": "beware of it"}
    directory = noted(tmp_path / "0", given)
    assert main([str(directory)]) == 0
    shown = capsys.readouterr().out
    about = f"{name}: " if name in ("clean", "absent") else ""
    assert shown.count(f"! warning: {about}beware of it") == 1
    assert ("! 90.00" in shown) == (name == "clean")
    for file in ("table.md", "table.tex", "table.csv"):
        assert (directory / file).read_text().count(f"{about}beware of it") == 1
    page = (directory / "report.html").read_text()
    assert page.count("beware of it") == 1
    assert (page.index("beware of it") > page.index(">clean</td>")) == (name == "clean")


def test_a_set_of_runs_shows_marks_and_sentences(tmp_path, capsys):
    noted(tmp_path / "0", OF_ROW, OF_MODEL)
    noted(tmp_path / "1", defense="mart")
    assert main([str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "\n! pgd_at" in shown and shown.count("! 50.00") == 1
    assert "! warning: pgd_at, pgd_linf: 3 of 100 lie outside." in shown
    page = (tmp_path / "report.html").read_text()
    assert re.search(r'50\.00<sup class="mark">2</sup>', page)
    assert page.count("logits differ") == 2  # under the table, and at the run


def test_why_a_run_has_no_numbers_is_no_footnote_too(tmp_path):
    table = table_of(noted(tmp_path / "0"), put(tmp_path / "1", "{"))
    assert "damaged" in table.lines[1].error and not table.footnotes


def test_stages_are_read_and_what_makes_no_sense_is_left_out(tmp_path):
    broken = [7, {"name": "fab"}, {"accuracy": 0.5}, {"name": "fab", "accuracy": 2}]
    rows = [COMBINED | {"stages": [*STAGES, *broken]}, PGD, PGD | {"stages": "no list"}]
    run = read_run(noted(tmp_path / "0", rows=rows))
    assert run.rows[0].stages == (
        Stage("apgd_ce", 0.6, 90, 9000, None, 2.0),
        Stage("square", 0.55, 60, 300_000, None, 61.0),
    )
    assert run.rows[1].stages == run.rows[2].stages == ()


def test_stages_stand_under_their_row(tmp_path, capsys):
    directory = noted(tmp_path / "0", rows=[CLEAN, COMBINED, PGD])
    assert main([str(directory)]) == 0
    lines = capsys.readouterr().out.splitlines()
    place = next(i for i, line in enumerate(lines) if line.startswith("autoattack"))
    assert "linf 8/255, 500 queries, plus" in lines[place]
    assert lines[place + 1].split()[:4] == ["apgd_ce", "on", "90", "60.00"]
    assert lines[place + 2].startswith("  square") and lines[place + 3].startswith("pgd_linf")
    text = (directory / "table.md").read_text()
    assert "\nautoattack: clean 90.0 → apgd_ce 60.0 → square 55.0\n" in text
    page = (directory / "report.html").read_text()
    places = [page.index(f"<td>{name}</td>") for name in ("autoattack", "apgd_ce", "pgd_linf")]
    assert places == sorted(places) and "on the 60 left" in page


def test_signs_of_others_are_text_in_notes_and_stages(tmp_path):
    evil = "[x](http://y) <b>|</b>"
    stages = [{"name": evil, "accuracy": 0.5}]
    rows = [CLEAN, row(evil, 0.5, stages=stages)]
    warnings = [{"check": evil, "row": about, "message": evil} for about in (evil, "model", "z")]
    write_run(noted(tmp_path / "0", *warnings, rows=rows))
    text = (tmp_path / "0" / "table.md").read_text()
    assert not re.search(r"(?<!\\)[<>]|(?<!\\)\]\(", text)
    assert "<b>|" not in (tmp_path / "0" / "report.html").read_text()


def test_a_link_without_other_signs_is_text_in_markdown(tmp_path):
    linked = "[here](http://example.org)"
    text = markdown(table_of(noted(tmp_path / "0", {"row": "model", "message": linked})))
    assert r"\[here\](http://example.org)" in text


def test_a_view_may_be_called_as_the_line_of_all_views(tmp_path):
    rows = [row("clean", 0.9, view="all views"), row("clean", 0.8, view="a")]
    write_run(noted(tmp_path / "0", rows=rows))
    assert "| clean | all views |" in (tmp_path / "0" / "table.md").read_text()

import html
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from report_files import put, results, row

from advtrain.reporting import plots
from advtrain.reporting.cli import main
from advtrain.reporting.formats import comma_separated, latex, markdown
from advtrain.reporting.notes import general_notes, row_notes
from advtrain.reporting.page import command
from advtrain.reporting.reading import find_runs, read_metrics, read_run
from advtrain.reporting.series import read_examples, read_radii
from advtrain.reporting.tables import accuracy_table
from advtrain.reporting.wording import DASH, MINUS
from advtrain.reporting.writing import write_run, write_set


def table_of(*directories):
    return accuracy_table([read_run(directory) for directory in directories])


def test_seeds_fold_into_mean_deviation_and_their_number(tmp_path):
    runs = [
        put(tmp_path / str(seed), results(seed=seed, rows=[row("clean", value)]))
        for seed, value in enumerate((0.8, 0.9, 1.0))
    ]
    (line,) = table_of(*runs).lines
    cell = line.cells["clean"]
    assert (line.seeds, cell.seeds, cell.n, cell.low) == (3, 3, 100, None)
    assert cell.value == pytest.approx(0.9) and cell.std == pytest.approx(0.1)
    assert "90.00 ± 10.00" in markdown(table_of(*runs))


def test_a_repeated_seed_is_no_further_sample(tmp_path):
    first = put(tmp_path / "0", results(rows=[row("clean", 0.8)]))
    again = put(tmp_path / "1", results(rows=[row("clean", 0.9)]))
    table = table_of(first, again)
    assert table.lines[0].cells["clean"].value == 0.9 and table.lines[0].cells["clean"].std is None
    assert "the later one counts" in table.notes[0]


def of_configuration(directory, seed=0, choices=None, overrides=(), **config):
    content = results(seed=seed, config={"seed": seed, **config})
    content["choices"] |= choices or {}
    return put(directory, content, {"state": "done", "overrides": list(overrides)})


def test_seeds_fold_whatever_is_told_beside_their_figures_and_however_numbers_are_spelled(tmp_path):
    known = {"_target_": "advtrain.data.sets.published", "root": "a"}
    first = of_configuration(tmp_path / "0", defense={"beta": 6, "eps": "2/5"}, dataset=known)
    other = of_configuration(
        *(tmp_path / "1", 1),
        defense={"beta": 6.0, "eps": 0.4},
        dataset={**known, "root": "b", "workers": 4, "cache": "c", "device_limit": 5},
        **{"published": {"clean": 0.5}, "paper": {"source": "s"}, "plan": {}, "packages": ["p"]},
        overrides=["dataset.workers=4", "dataset.root=b", "published.clean=0.5"],
    )
    (line,) = table_of(first, other).lines
    assert line.seeds == 2 and "=" not in line.label
    more = of_configuration(tmp_path / "2", 2, defense={"beta": 5, "eps": "2/5"}, dataset=known)
    assert [each.seeds for each in table_of(first, other, more).lines] == [2, 1]


def test_runs_on_the_images_of_two_folders_are_two_rows(tmp_path):
    target = "advtrain.data.imagefolder.imagefolder"
    runs = [
        of_configuration(
            tmp_path / name,
            dataset={"_target_": target, "root": f"/{name}"},
            overrides=[f"dataset.root=/{name}"],
        )
        for name in "ab"
    ]
    labels = [line.label for line in table_of(*runs).lines]
    assert labels == ["dataset.root=/a", "dataset.root=/b"]


def test_seeds_that_are_judged_on_other_examples_are_no_seeds_of_one_row(tmp_path):
    runs = []
    for seed, examples in enumerate("aab"):
        data = {"name": "digits", "split": "test", "n": 100, "examples": examples}
        runs.append(put(tmp_path / str(seed), results(seed=seed, dataset=data)))
    assert [line.seeds for line in table_of(*runs).lines] == [2, 1]


def test_rows_of_a_table_that_train_alike_stay_apart(tmp_path):
    runs = [
        of_configuration(tmp_path / row, choices={"row": f"t/{row}"}, defense={"beta": 6})
        for row in ("one", "two")
    ]
    assert [line.label for line in table_of(*runs).lines] == ["one", "two"]


def test_labels_name_only_what_differs(tmp_path):
    plain = put(tmp_path / "0", results("trades"))
    other = put(tmp_path / "1", results("mart"))
    assert [line.label for line in table_of(plain, other).lines] == ["trades", "mart"]
    changed = results("trades")
    changed["config"]["threat"]["eps"] = 4 / 255
    small = put(tmp_path / "2", changed, {"state": "done", "overrides": ["threat.eps=4/255"]})
    names = [line.label for line in table_of(plain, other, small).lines]
    assert len(set(names)) == 3 and names[2].startswith("trades · threat.eps=4/255")


def test_awp_is_named_and_the_plain_descent_is_not(tmp_path):
    runs = []
    for number, descent in enumerate(("plain", "awp")):
        content = results()
        content["choices"]["descent"] = content["config"]["descent"] = descent
        runs.append(put(tmp_path / str(number), content))
    content = results("trades")
    content["choices"]["descent"] = content["config"]["descent"] = "plain"
    runs.append(put(tmp_path / "2", content))
    labels = [line.label for line in table_of(*runs).lines]
    assert labels == ["pgd_at", "pgd_at · awp", "trades"]


def test_what_was_not_measured_is_a_dash_and_never_zero(tmp_path):
    full = put(tmp_path / "0", results("trades"))
    part = put(tmp_path / "1", results("mart", rows=[row("clean", 0.0)], worst_case={}))
    table = table_of(full, part)
    mart = next(line for line in markdown(table).splitlines() if line.startswith("| mart"))
    assert mart.count(DASH) == 2 and "0.00 [" in mart
    last = comma_separated(table).splitlines()[-1]
    assert ",0.0," in last and last.endswith("," * 13)


def test_the_best_is_bold_only_where_something_is_compared(tmp_path):
    one = put(tmp_path / "0", results("trades"))
    two = put(tmp_path / "1", results("mart", rows=[row("clean", 0.95)], worst_case={}))
    assert "**" not in markdown(table_of(one)) and "textbf" not in latex(table_of(one))
    text = markdown(table_of(one, two))
    assert "**95.00**" in text and "**90.00**" not in text and "**50.00**" not in text


def test_a_paper_stands_beside_ours(tmp_path):
    run = put(tmp_path / "0", results(published={"pgd_linf": 0.52}))
    text = markdown(table_of(run))
    assert "| pgd_linf | paper |" in text and f"| 52.00 ({MINUS}2.00, within) |" in text
    assert "pgd_linf_published" in comma_separated(table_of(run))


def test_every_view_is_a_line_and_what_belongs_to_all_is_another(tmp_path):
    rows = [row("clean", value, view=f"lambda={value}") for value in (0.9, 0.8)]
    table = table_of(put(tmp_path / "0", results("oat", rows=rows)))
    assert [line.view for line in table.lines] == ["lambda=0.9", "lambda=0.8", "all views"]
    assert table.lines[2].cells.keys() == {"worst_linf"}


def test_certificates_are_columns_by_radius(tmp_path):
    found = {"accuracy": 0.8, "acr": 0.31, "accuracy_at_radius": {"0.50": 0.2, "0.25": 0.5}}
    table = table_of(put(tmp_path / "0", results(certified=found | {"examples": 50})))
    keys = [column.key for column in table.columns]
    assert keys[-4:] == ["certified", "certified_0.25", "certified_0.50", "acr"]
    assert "0.310" in markdown(table) and "(n = 50)" in markdown(table)


def test_a_failed_job_is_a_line_with_its_reason(tmp_path):
    good = put(tmp_path / "0", results("trades"))
    status = {"state": "failed", "error": "RuntimeError: out of memory\n  File x", "choices": {}}
    bad = put(tmp_path / "1", None, status | {"choices": {"defense": "mart"}})
    table = table_of(good, bad)
    assert table.lines[1].error == "failed: RuntimeError: out of memory File x"
    for text in (markdown(table), latex(table), comma_separated(table)):
        assert "out of memory" in text


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[1, 2]",
        '{"rows": 3}',
        "[" * 100_000,
        '{"schema": 9, "rows": [{"name": "clean", "accuracy": NaN}, 7, {"accuracy": 0.5}]}',
        '{"schema": 1, "rows": [{"name": {"a": 1}, "accuracy": "high"}], "certified": [1]}',
        '{"rows": [], "threat": "linf", "dataset": "digits", "worst_case": {"linf": 55.0}}',
        '{"schema": 1, "rows": [{"name": "a", "accuracy": 1' + "0" * 5000 + "}]}",
    ],
)
def test_a_damaged_or_foreign_file_is_a_warning_and_no_crash(tmp_path, content):
    put(tmp_path / "bad", content)
    (tmp_path / "bad" / "metrics.jsonl").write_text(
        '{"epoch": 0, "train_loss": 1}\n{"epoch": 1, "t'
    )
    (tmp_path / "bad" / "certify.tsv").write_text("idx\tlabel\tpredict\tradius\tcorrect\ttime\n3\t")
    put(tmp_path / "good", results())
    table = write_set([tmp_path], tmp_path).table
    assert len(table.lines) == 2
    run = read_run(tmp_path / "bad")
    assert run.notes and all(note.message for note in run.notes)
    write_run(tmp_path / "bad")
    assert (tmp_path / "bad" / "report.html").is_file()


def test_a_file_that_is_too_large_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setitem(read_run.__globals__["MAX_BYTES"], "results.json", 10)
    run = read_run(put(tmp_path / "0", results()))
    assert run.state == "unreadable" and "larger" in run.error


def test_a_page_shows_hostile_text_as_text(tmp_path):
    evil = "<script>alert(1)</script>"
    warning = {"check": evil, "row": "clean", "message": evil}
    content = results(name=evil, warnings=[warning], rows=[row("clean", 0.9, attack=evil)])
    content["config"]["note"] = content["environment"]["host"] = evil
    overrides = [f"name={evil}", 'x="><img src=x>']
    put(tmp_path / "0", content, {"state": "failed", "error": evil, "overrides": overrides})
    write_run(tmp_path / "0")
    write_set([tmp_path], tmp_path)
    for page in (tmp_path / "0" / "report.html", tmp_path / "report.html"):
        text = page.read_text()
        assert text.count("<script") == 1 and "<img src=x" not in text  # that of the page itself
        assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text


def test_a_page_needs_no_network_and_holds_what_it_must(tmp_path):
    warning = {"check": "gap", "row": "pgd_linf", "message": "robust beats clean"}
    found = {"sigma": 0.25, "n": 1000, "alpha": 0.001, "acr": 0.4, "accuracy": 1.0}
    status = {"state": "done", "overrides": ["defense=pgd_at", "threat.eps=8/255"]}
    directory = put(tmp_path / "0", results(warnings=[warning], certified=found), status)
    metrics = [{"epoch": e, "train_loss": 1.0, "val_acc": 0.5, "val_adv_acc": 0.3} for e in (0, 1)]
    (directory / "metrics.jsonl").write_text("\n".join(json.dumps(entry) for entry in metrics))
    lines = ["idx\tlabel\tpredict\tradius\tcorrect\ttime", "0\t1\t1\t0.4\t1\t0:00:01", ""]
    (directory / "certify.tsv").write_text("\n".join(lines))
    picture = np.zeros((2, 3, 4, 4), dtype=np.uint8)
    labels = np.array([0, 1])
    np.savez(
        directory / "examples.npz",
        clean=picture,
        adversarial=picture + 8,
        labels=labels,
        predicted_clean=labels,
        predicted_adversarial=labels[::-1],
        row="pgd_linf",
        classes=np.array(["cat", "dog"]),
    )
    write_run(directory)
    drawn = {path.name for path in (directory / "plots").iterdir()}
    assert drawn == {"curves.png", "accuracy.png", "certified.png", "examples.png"}
    text = (directory / "report.html").read_text()
    assert not re.search(r"""(src|href)=["'](?!data:)|url\(|@import|<link|<script.+src""", text)
    assert text.count("data:image/png;base64,") == 3
    place = text.index("robust beats clean")
    assert text.index(">pgd_linf<") < place < text.index("worst linf<")
    assert "advtrain defense=pgd_at threat.eps=8/255" in text and "linf 8/255, 20 steps" in text
    assert read_examples(directory).predicted_adversarial == ["dog", "cat"]


@pytest.mark.parametrize(
    ("status", "told"),
    [
        ({"overrides": ["a=1"], "config_dir": "/c d"}, "advtrain --config-dir '/c d' a=1"),
        ({"overrides": ["+a={b:  'x  y'}"]}, """advtrain '+a={b:  '"'"'x  y'"'"'}'"""),
        ({"overrides": ["a=" + "[1,2]" * 500]}, "advtrain 'a=" + "[1,2]" * 500 + "'"),
        ({"overrides": ["a=" + "x" * 50_000]}, ""),
        ({"overrides": ["a=b\u202ec"]}, ""),
        ({"overrides": [3]}, ""),
        ({}, ""),
    ],
    ids=lambda value: str(value)[:30],
)
def test_the_command_is_told_to_the_letter_or_not_at_all(tmp_path, status, told):
    directory = put(tmp_path, results(), {"state": "done", **status})
    assert command(read_run(directory)) == told
    write_run(directory)
    page = html.unescape((directory / "report.html").read_text())
    assert (told in page) if told else "The command is not known" in page


def test_headings_are_told_to_who_does_not_see_them(tmp_path):
    warning = {"check": "a", "row": "pgd_linf", "message": "b"}
    put(tmp_path / "0", results(warnings=[warning]), {"state": "done"})
    write_run(tmp_path / "0")
    write_set([tmp_path], tmp_path)
    for page in (tmp_path / "0" / "report.html", tmp_path / "report.html"):
        heads = re.findall("<th([ >].*?)</th>", page.read_text())
        assert heads and all(head.startswith(' scope="col"') for head in heads)
        assert all(re.sub("<.*?>", "", head.partition(">")[2]).strip() for head in heads)
        assert '<span aria-hidden="true">!</span><span class="unseen">with a' in page.read_text()


def test_writing_twice_gives_the_same_files(tmp_path):
    directory = put(tmp_path / "0", results())
    (directory / "metrics.jsonl").write_text('{"epoch": 0, "train_loss": 1.0}\n')
    write_run(directory)
    before = {p: p.read_bytes() for p in directory.rglob("*") if p.is_file()}
    write_run(directory)
    assert {p: p.read_bytes() for p in directory.rglob("*") if p.is_file()} == before


def test_a_plot_that_fails_is_one_line_and_no_more(tmp_path, monkeypatch, caplog):
    def broken(*_):
        raise RuntimeError("no fonts\nat all")

    monkeypatch.setattr(plots, "accuracy_bars", broken)
    directory = put(tmp_path / "0", results())
    (directory / "examples.npz").write_bytes(b"no archive")
    write_run(directory)
    assert [record.getMessage().count("\n") for record in caplog.records] == [0, 0]
    assert (directory / "report.html").is_file() and (directory / "table.tex").is_file()


def test_latex_escapes_everything_special(tmp_path):
    directory = put(tmp_path / "0", results(rows=[row("a_b&c%$#{}~^\\", 0.5)], worst_case={}))
    head = next(line for line in latex(table_of(directory)).splitlines() if "a\\_b" in line)
    expected = r"a\_b\&c\%\$\#\{\}\textasciitilde{}\textasciicircum{}\textbackslash{}"
    assert expected in head


def test_certified_radii_count_only_what_is_correct(tmp_path):
    lines = [
        "idx\tlabel\tpredict\tradius\tcorrect\ttime",
        "0\t1\t1\t0.4\t1\t1",
        "1\t1\t2\t0.9\t0\t1",
    ]
    (tmp_path / "certify.tsv").write_text("\n".join([*lines, "2\t1\t-1\t0.0\t0\t1", "3\t1"]))
    assert read_radii(tmp_path) == [0.4, -1.0, -1.0]


def test_an_epoch_repeated_after_a_resume_counts_once(tmp_path):
    entries = ['"epoch": 0, "train_loss": 2', '"epoch": 1, "train_loss": NaN']
    entries += ['"epoch": 0, "train_loss": 1']
    (tmp_path / "metrics.jsonl").write_text("\n".join(f"{{{entry}}}" for entry in entries))
    first, second = read_metrics(tmp_path)
    assert first["train_loss"] == 1 and second["train_loss"] != second["train_loss"]


def test_runs_are_found_in_the_order_of_their_numbers(tmp_path):
    for name in ("10", "9", "2"):
        put(tmp_path / "grid" / name, results(), {"state": "done"})
    assert [path.name for path in find_runs([tmp_path])] == ["2", "9", "10"]


def test_the_command_writes_a_comparison_and_says_what_is_wrong(tmp_path, capsys):
    put(tmp_path / "grid" / "0", results("trades"))
    put(tmp_path / "grid" / "1", results("mart"))
    out = tmp_path / "out"
    assert main([str(tmp_path / "grid"), "--out", str(out)]) == 0
    assert {"table.md", "table.tex", "table.csv", "report.html"} <= set(os.listdir(out))
    told = capsys.readouterr()
    assert "trades" in told.out and "\x1b" not in told.out
    assert 'href="../grid/0"' in (out / "report.html").read_text()
    (tmp_path / "empty").mkdir()
    for wrong in (tmp_path / "empty", tmp_path / "absent", out / "table.md"):
        assert main([str(wrong)]) == 2
        assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_a_single_run_is_told_attack_by_attack(tmp_path, capsys):
    directory = put(tmp_path / "0", results())
    assert main([str(directory)]) == 0
    assert "linf 8/255, 20 steps" in capsys.readouterr().out
    assert "pgd_linf" in (directory / "table.md").read_text()


def test_reporting_never_imports_torch():
    code = (
        "import sys, advtrain.reporting.cli, advtrain.tracking, advtrain.progress;"
        "print([m for m in ('torch', 'matplotlib', 'wandb', 'scipy', 'numpy') if m in sys.modules])"
    )
    source = Path(__file__).parents[1] / "src"
    environment = os.environ | {"PYTHONPATH": str(source)}
    told = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True
    )
    assert told.stdout.strip() == "[]"


def test_a_warning_stands_at_its_view_or_once_at_the_last_row_of_its_name(tmp_path):
    rows = [row("pgd", 0.5, view="a"), row("pgd", 0.6, view="b")]
    told = [
        {"check": "x", "row": "pgd", "view": "a", "message": "of a"},
        {"check": "x", "row": "pgd", "message": "of all"},
        {"check": "x", "row": "absent", "message": "of none"},
    ]
    run = read_run(put(tmp_path / "0", results(rows=rows, warnings=told)))
    found = [[note.message for note in row_notes(run, known)] for known in run.rows]
    assert found == [["of a"], ["of all"]]
    assert [note.message for note in general_notes(run)] == ["of none"]


def test_signs_that_matplotlib_reads_as_formulas_are_drawn(tmp_path, caplog):
    write_run(put(tmp_path / "0", results(rows=[row("$x_{", 0.5), row("漢", 0.5)])))
    assert not caplog.records and (tmp_path / "0" / "plots" / "accuracy.png").is_file()


def test_a_row_tells_its_attack_where_it_is_not_named_for_it(tmp_path):
    given = {"norm": "linf", "eps": 8 / 255, "queries": 500}
    rows = [row("square", 0.5, attack="square", **given)]
    rows += [row("blackbox", 0.5, attack="square", **given)]
    told = markdown(table_of(put(tmp_path / "0", results(rows=rows))), read_run(tmp_path / "0"))
    assert "| square | linf 8/255, 500 queries |" in told
    assert "| blackbox | square, linf 8/255, 500 queries |" in told


def test_a_worst_case_over_several_radii_says_so(tmp_path, capsys):
    rows = [row(f"pgd_{eps}", 0.5, norm="linf", eps=eps) for eps in (0.15, 0.5, 0.3)]
    several = put(tmp_path / "0", results(rows=rows))
    single = put(tmp_path / "1", results())
    assert table_of(several).columns[-1].detail == "per example, eps 0.15 to 0.5"
    assert table_of(single).columns[-1].detail == "per example, 8/255"
    assert table_of(several, single).columns[-1].detail == "per example"
    assert main([str(several)]) == 0
    assert "per example, eps 0.15 to 0.5" in capsys.readouterr().out
    assert "eps 0.15 to 0.5" in (several / "report.html").read_text()

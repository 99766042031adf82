"""What runs are told to cite: every method has a source, and every source belongs to something."""

import importlib
from pathlib import Path

import pytest
from report_files import put, results, unrendered  # noqa: F401

from advtrain.config import conf_dir
from advtrain.reporting.bibliography import FILE, bibtex, cited, references
from advtrain.reporting.reading import read_run
from advtrain.reporting.writing import write_run

OURS = {"defense=standard", "descent=plain", "average=last", "penalty=none"}
MARKS = {mark for each in references() for mark in each.marks}
PGD = {"_target_": "advtrain.attacks.pgd.pgd", "steps": 20}


def run(tmp_path, choices, config, **more):
    content = results(choices=choices, config=config, **more)
    return read_run(put(tmp_path, content, {"state": "done"}))


def keys(found):
    return {each.key for each in found}


def test_the_file_is_read_whole_and_written_again_as_it_is():
    text = FILE.read_text(encoding="utf-8")
    assert len(references()) == text.count("\n@") and len(keys(references())) == len(references())
    for each in references():
        assert each.marks and {"author", "title", "year"} <= each.fields.keys()
        start = each.bibtex().removesuffix("\n}\n")
        assert f"{start},\n  advtrain = " in text


@pytest.mark.parametrize("mark", sorted(MARKS))
def test_every_mark_is_a_choice_or_a_part_of_the_code(mark):
    group, _, name = mark.partition("=")
    if name:
        assert (Path(conf_dir()) / group / f"{name}.yaml").exists()
        return
    module, _, attribute = f"advtrain.{mark}".rpartition(".")
    try:
        importlib.import_module(f"advtrain.{mark}")
    except ModuleNotFoundError:
        assert hasattr(importlib.import_module(module), attribute)


@pytest.mark.parametrize("group", ["defense", "descent", "average", "penalty"])
def test_every_method_has_a_source(tmp_path, group):
    for path in sorted((Path(conf_dir()) / group).glob("*.yaml")):
        choice = f"{group}={path.stem}"
        content = {"defense": {"_target_": f"advtrain.defenses.{path.stem}.X"}}
        found = cited([run(tmp_path, {group: path.stem}, content, rows=[])])
        assert bool(found) != (choice in OURS), choice


def test_a_run_is_told_what_it_is_made_of_and_nothing_else(tmp_path):
    config = {
        "defense": {"_target_": "advtrain.defenses.trades.Trades", "attack": PGD},
        "attack": {"_target_": "advtrain.attacks.gama.gama_pgd"},  # that the method does not take
        "eval": {"attacks": {"aa": {"_target_": "advtrain.attacks.autoattack.AutoAttack"}}},
    }
    choices = {"defense": "trades", "descent": "awp", "dataset": "digits"}
    judged = run(tmp_path, choices, config)
    suite = {"croce2020autoattack", "croce2020fab", "andriushchenko2020"}
    assert keys(cited([judged])) == {"madry2018", "zhang2019", "wu2020"} | suite
    trained = run(tmp_path, choices, config, rows=[])
    assert keys(cited([trained])) == {"madry2018", "zhang2019", "wu2020"}
    assert cited([judged, trained]) == cited([judged])


def test_page_and_bibtex_file_hold_them(tmp_path):
    directory = run(tmp_path, {"defense": "mart"}, {"defense": {"attack": PGD}}).directory
    write_run(directory)
    page = (directory / "report.html").read_text()
    assert "<h2>References</h2>" in page and "Wang, Y., Zou, D., Yi, J. et al. (2020)." in page
    assert "https://openreview.net/forum?id=rklOg6EFwS" in page
    mart, madry = (each for each in references() if each.key in ("wang2020mart", "madry2018"))
    assert (directory / "references.bib").read_text() == bibtex([mart, madry])

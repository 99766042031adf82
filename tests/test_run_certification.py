"""Certificates of the whole program: what they are of stands in its results, and in its keys."""

import json
from math import sqrt

import pytest
from running import JUDGING, TRAINING, run

LOOK = ("logger=none", "device=cpu", *JUDGING, "eval.certify.size=12", "eval.size=12")
ALONE = ("~eval.attacks.fgsm", "~eval.attacks.pgd_linf", "~eval.attacks.pgd_l2")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    directory = tmp_path_factory.mktemp("trained")
    assert run(directory, *TRAINING)["state"] == "done"
    return directory


def judged(directory, trained, *overrides):
    look = [each for each in LOOK if not each.startswith(("eval.attacks", "eval.certify.n="))]
    given = ("job=eval", f"checkpoint={trained}", *look, *ALONE, "eval.certify.n=200")
    status = run(directory, *given, *overrides)
    assert status["state"] == "done", status["error"]
    return json.loads((directory / "results.json").read_text())["certified"]


def test_results_say_which_noise_norm_and_precision_certificates_are_of(tmp_path, trained, capsys):
    usual = judged(tmp_path, trained)
    assert (usual["norm"], usual["noise"], usual["precision"]) == ("l2", "gaussian", "fp32")
    header = json.loads((tmp_path / "certify.json").read_text())
    assert header["norm"] == "l2" and header["noise"] == "gaussian"
    lines = (tmp_path / "certify.tsv").read_text()
    # the same directory: other noise makes other certificates, which replace those
    other = judged(tmp_path, trained, "eval.certify.noise=uniform", "eval.certify.precision=bf16")
    assert (other["norm"], other["noise"], other["precision"]) == ("l1", "uniform", "bf16")
    assert (tmp_path / "certify.tsv").read_text() != lines
    assert other["examples"] == 12 and 0 < other["acr"] < 0.25 * sqrt(3)
    said = capsys.readouterr()
    assert "in l1  n 12  in bf16" in said.out + said.err


def test_radii_in_linf_are_said_to_be_vacuous_where_none_reaches_the_usual_eps(tmp_path, trained):
    found = judged(tmp_path, trained)["linf"]
    assert found["largest_radius"] == pytest.approx(0.25 * 2.0 / 8, rel=0.1)  # 64 pixels
    assert found["vacuous"] == (found["largest_radius"] < found["eps"])


def test_too_few_draws_for_any_certificate_are_refused_with_those_needed(tmp_path, trained):
    status = run(tmp_path, "job=eval", f"checkpoint={trained}", *LOOK, "eval.certify.n=6")
    assert status["exit_code"] == 2
    assert "n=6 draws certify nothing" in status["error"] and "at least 7" in status["error"]

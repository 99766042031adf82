"""Evaluations that ask which radii are certified: what they write, resume from and refuse."""

import json

import pytest
import torch
from running import TINY, configuration, run

from advtrain.certification.adaptive import certify_radii
from advtrain.certification.draws import DRAWS
from advtrain.certification.log import read
from advtrain.certification.smoothing import Smoothed
from advtrain.plans import Certification
from advtrain.runs import load_run, setting
from advtrain.seeding import derive

ASKED = ("eval.certify.n=600", "eval.certify.radii=[0.1,1/3]", "seed=3")
PLAN = [each for each in TINY if not each.startswith("eval.certify.n=")]


def certified(directory):
    found = json.loads((directory / "results.json").read_text())["certified"]
    found.pop("seconds")
    return found


def lines(directory):
    return sorted((directory / "certify.tsv").read_text().splitlines())


def numbers_in(path):
    return {each.index: each.draws for each in DRAWS.read(path).lines}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    directory = tmp_path_factory.mktemp("whole")
    status = run(directory, *PLAN, *ASKED)
    assert status["state"] == "done", status["error"]
    return directory


def test_an_evaluation_says_which_radii_are_certified_and_on_how_many_draws(whole):
    found, certificates = certified(whole), read(whole / "certify.tsv").certificates
    assert found["radii"] == [0.1, 0.333333333] and found["acr"] is None
    assert set(found["accuracy_at_radius"]) == {"0.10", "0.333333"}
    assert {each.radius for each in certificates} <= {0.0, 0.1, 0.333333333}
    right = [each for each in certificates if each.correct]
    assert found["accuracy"] == len(right) / 20
    assert found["accuracy_at_radius"]["0.10"] == sum(each.radius > 0 for each in right) / 20 > 0
    numbers = numbers_in(whole / "draws.tsv")
    assert numbers.keys() == {each.index for each in certificates}
    assert found["draws"] == sum(numbers.values()) / 20 < 605


def test_certificates_are_those_of_each_image_alone(whole):
    model, _ = load_run(whole)
    certificate = read(whole / "certify.tsv").certificates[0]
    data = setting(configuration(*PLAN, *ASKED), whole, ()).data.test
    place = data.source.tolist().index(certificate.index)
    x, _ = data.batch(torch.tensor([place]))
    again = certify_radii(
        Smoothed(model, 10, 0.25),
        x,
        [0.1, 0.333333333],
        n0=5,
        n=600,
        alpha=0.01,
        seeds=[derive(3, "certify", certificate.index)],
    )
    told = (certificate.prediction, certificate.radius)
    assert (again.predictions.item(), again.radii.item()) == told
    assert again.draws.item() == numbers_in(whole / "draws.tsv")[certificate.index]


def test_what_was_cut_goes_on_to_the_same_end(whole):
    end, answers = (
        certified(whole),
        {each.index: each for each in read(whole / "certify.tsv").certificates},
    )
    log, tally = whole / "certify.tsv", whole / "draws.tsv"
    for kept in (log, tally):
        text = kept.read_text()
        kept.write_text(text[: text.index("\n", len(text) // 2) + (3 if kept is tally else 1)])
    half = len(read(log).certificates)
    assert 0 < half < 20 and half <= len(numbers_in(tally))
    assert run(whole, *PLAN, *ASKED)["state"] == "done"
    assert certified(whole) == end
    for each in read(log).certificates:
        before = answers[each.index]
        assert (each.prediction, each.radius) == (before.prediction, before.radius)


def test_certificates_whose_numbers_of_draws_are_lost_are_made_again_and_no_others(whole):
    end, before = certified(whole), (whole / "certify.tsv").read_text().splitlines()
    tally = whole / "draws.tsv"
    tally.write_text("".join(tally.read_text().splitlines(keepends=True)[:13]))
    kept = numbers_in(tally)
    assert run(whole, *PLAN, *ASKED)["state"] == "done"
    assert certified(whole) == end
    again = (whole / "certify.tsv").read_text().splitlines()
    lost = [line for line in before if line not in again]
    assert 0 < len(lost) <= 20 - len(kept)


def test_without_the_numbers_of_draws_all_certificates_are_made_again(whole):
    end = certified(whole)
    (whole / "draws.tsv").unlink()
    assert run(whole, *PLAN, *ASKED)["state"] == "done"
    assert certified(whole) == end and len(numbers_in(whole / "draws.tsv")) == 20


def test_without_a_question_nothing_changes(tmp_path):
    assert run(tmp_path, *TINY)["state"] == "done"
    found = certified(tmp_path)
    assert found["radii"] is None and found["draws"] == 35 and found["acr"] is not None
    assert not (tmp_path / "draws.tsv").exists()


def plan(**keys):
    usual = configuration("eval=certify")["eval"]["certify"]
    return Certification(**({k: v for k, v in usual.items() if k != "_target_"} | keys))


def test_a_width_asks_for_its_multiples():
    assert plan(width=0.1, n=1000).asked == [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
    assert plan(radii=[8 / 255]).asked == [0.031372549]
    assert plan().asked is None


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"radii": []}, "asks nothing"),
        ({"radii": [0.5, 0.25]}, "ascending"),
        ({"radii": [0.25, 0.25 + 1e-12]}, "only once"),
        ({"radii": [-0.25]}, "radius -0.25"),
        ({"radii": [0.75], "n": 1000}, r"up to 0\.615\d+ at alpha=0\.001, and 0\.75 needs n=5114"),
        ({"radii": [0.1], "width": 0.1}, "give one, not both"),
        ({"width": 1.0}, "width=1 is refused"),
        ({"width": 1e-9}, "width=1e-09 is refused"),
    ],
)
def test_questions_that_cannot_be_answered_are_refused_in_a_sentence(keys, message):
    with pytest.raises(ValueError, match=message):
        plan(**keys)


@pytest.mark.parametrize(
    ("override", "wanted"),
    [
        ("eval.certify.radii=[0.75]", "goes too far"),
        ("eval.certify.radii=[-0.5]", "at least 0"),
        ("eval.certify.width=0", "greater than 0"),
    ],
)
def test_configurations_of_questions_are_refused_before_training(tmp_path, override, wanted):
    status = run(tmp_path, *TINY, override)
    assert status["exit_code"] == 2 and wanted in status["error"], status
    assert not (tmp_path / "checkpoints" / "last.pt").exists()

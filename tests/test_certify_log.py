"""certify.tsv, and the numbers that are read from it.

The authors' logs (git clone https://github.com/locuslab/smoothing, data/certify/cifar10/resnet110;
read each with `log.read`, then `summarise`) give, as printed in the paper where it prints them:

train / test sigma   r = 0   .25   .50   .75  1.00  1.25  1.50   abstain    ACR
0.12 / 0.12           .814  .586     0     0     0     0     0      .038  .2701
0.25 / 0.25           .748  .600  .428  .266     0     0     0      .086  .4289
0.50 / 0.50           .652  .546  .414  .320  .234  .152  .094      .166  .5375
1.00 / 1.00           .472  .392  .340  .278  .216  .174  .140      .290  .5417
0.12 / 0.50           .118  .096  .082  .068  .042  .018  .004      .122  .0908
0.25 / 0.50           .334  .260  .168  .104  .050  .016  .004      .284  .1906
1.00 / 0.50           .436  .390  .352  .284  .252  .208  .164      .096  .5029

500 lines each, none refused.
"""

import json
import random
import subprocess
import sys
from math import ceil

import pytest

from advtrain.certification.bounds import largest_radius
from advtrain.certification.log import (
    HEADER,
    PREDICT_HEADER,
    Certificate,
    Writer,
    clock,
    parse,
    read,
    repair,
)
from advtrain.certification.shares import high_probability
from advtrain.certification.summary import default_radii, summarise

SETTING = {"sigma": 0.25, "n0": 100, "n": 100_000, "alpha": 0.001}


@pytest.fixture
def certificates():
    chance = random.Random(0)
    made = []
    for index in range(40):
        prediction = chance.choice([-1, 3, 3, 5])
        radius = 0.0 if prediction == -1 else chance.random() ** 3
        made.append(Certificate(index, 3, prediction, radius, chance.random() * 5000))
    return made


def write(path, certificates):
    with Writer(path) as writer:
        writer.write(certificates)
    return writer.found


def test_log_returns_what_was_written(tmp_path, certificates):
    path = tmp_path / "certify.tsv"
    write(path, certificates)
    log = read(path)
    assert (log.problems, log.cut) == ((), "")
    for ours, theirs in zip(certificates, log.certificates, strict=True):
        assert (ours.index, ours.label, ours.prediction, ours.correct) == (
            theirs.index,
            theirs.label,
            theirs.prediction,
            theirs.correct,
        )
        assert ours.radius - 1e-9 <= theirs.radius <= ours.radius
        assert theirs.seconds == pytest.approx(ours.seconds, abs=1e-6)


def test_file_has_the_columns_of_the_format(tmp_path):
    write(tmp_path / "certify.tsv", [Certificate(20, 7, 7, 0.49999999999, 75.25)])
    text = (tmp_path / "certify.tsv").read_bytes().decode()
    header = "idx\tlabel\tpredict\tradius\tcorrect\ttime\n"
    assert text == header + "20\t7\t7\t0.499999999\t1\t0:01:15.250000\n"


@pytest.mark.parametrize("radius", [0.4996, 0.49999999999, 0.378, 7.11e-5, 3e-12, 3.8114571, 0.5])
def test_radii_are_never_rounded_up_and_settle_at_once(radius):
    once = parse(Certificate(0, 1, 1, radius, 1.0).line())
    assert radius - 1e-9 < once.radius <= radius
    assert parse(once.line()) == once


def test_lines_are_on_the_disk_before_the_log_is_closed(tmp_path, certificates):
    with Writer(tmp_path / "certify.tsv") as writer:
        for done, certificate in enumerate(certificates[:3], start=1):
            writer.write([certificate])
            assert len(read(tmp_path / "certify.tsv").certificates) == done


def test_both_forms_of_time_and_scientific_notation_are_read():
    assert parse("0\t3\t3\t0.378\t1\t15.4") == Certificate(0, 3, 3, 0.378, 15.4)
    assert parse("20\t7\t7\t7.11e-05\t1\t0:00:13.771528").radius == 7.11e-5
    assert parse("20\t7\t-1\t0.0\t0\t1:02:03") == Certificate(20, 7, -1, 0.0, 3723.0)


@pytest.mark.parametrize("duration", [0.0, 0.9999999, 59.9999999, 3600.0, 90_061.5])
def test_clock_keeps_the_duration(duration):
    line = f"0\t1\t1\t0.1\t1\t{clock(duration)}"
    assert parse(line).seconds == pytest.approx(duration, abs=1e-6)


def test_a_log_cut_anywhere_goes_on_as_if_never_interrupted(tmp_path, certificates):
    path = tmp_path / "certify.tsv"
    write(path, certificates)
    whole = path.read_bytes()
    for size in [0, 5, len(HEADER), len(HEADER) + 1, *range(60, len(whole), 37), len(whole)]:
        path.write_bytes(whole[:size])
        with Writer(path) as writer:
            found = writer.found
            assert found.problems == ()
            done = {each.index for each in found.certificates}
            assert done == set(range(len(done)))
            writer.write(each for each in certificates if each.index not in done)
        assert path.read_bytes() == whole


def test_a_sound_log_is_not_rewritten(tmp_path, certificates):
    path = tmp_path / "certify.tsv"
    write(path, certificates)
    before = path.stat().st_ino
    assert repair(path) == read(path)
    assert path.stat().st_ino == before


@pytest.mark.parametrize(("examples", "alpha"), [(500, 0.001), (500, 0.01), (10_000, 0.001)])
def test_high_probability_takes_off_what_false_certificates_make_up(examples, alpha):
    """By the exact law of their number; see the docstring for the last case."""
    from scipy.stats import binom

    lost = 0.9 - high_probability(0.9, examples, alpha)
    failing = binom.sf(ceil(lost * examples) - 1, examples, alpha)
    assert failing < (0.001 if examples == 500 else 0.0016)
    assert high_probability(0.001, examples, alpha) == 0


def test_high_probability_is_the_formula_of_the_authors():
    assert high_probability(0.6, 500, 0.001) == pytest.approx(0.5906797665, abs=1e-10)
    certificates = [Certificate(index, 3, 3, 0.3, 1.0) for index in range(500)]
    summary = summarise(certificates, **SETTING)
    assert summary["high_probability"]["0.25"] == high_probability(1.0, 500, 0.001)
    assert summary["high_probability"].keys() == summary["accuracy_at_radius"].keys()


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("1\t3\t3\t0.2", "4 columns"),
        ("1\t3\t3\tx\t1\t1.0", "float"),
        ("1\t3\t3.5\t0.2\t1\t1.0", "int"),
        ("1\t3\t3\tnan\t1\t1.0", "radius nan"),
        ("1\t3\t3\t-0.1\t1\t1.0", "radius -0.1"),
        ("1\t3\t-1\t0.2\t0\t1.0", "radius 0.2"),
        ("1\t3\t4\t0.2\t1\t1.0", "correct is 1"),
        ("1\t3\t-2\t0.0\t0\t1.0", "out of range"),
        ("1\t3\t3\t0.2\t1\t1:00", "time"),
        ("0\t3\t3\t0.25\t1\t9.0", "idx 0 was certified before, and counts once."),
        (
            "0\t3\t3\t0.9\t1\t1.0",
            "radius 0.25); this line disagrees (label 3, predict 3, radius 0.9)",
        ),
        (HEADER, "the header again"),
        ("1_0\t3\t3\t0.2\t1\t1.0", "underscore"),
        ("1\t3\t3\t0.2\t1\t1.0\t", "7 columns"),
        ("", "1 columns"),
        ("\x00\x00\xff", "1 columns"),
    ],
)
def test_broken_and_repeated_lines_are_told_and_not_counted(tmp_path, line, complaint):
    path = tmp_path / "certify.tsv"
    good = Certificate(0, 3, 3, 0.25, 1.0)
    later = Certificate(2, 3, 3, 0.5, 1.0)
    path.write_text(f"{HEADER}\n{good.line()}\n{line}\n{later.line()}\n", encoding="latin-1")
    log = read(path)
    assert log.certificates == (good, later)
    assert len(log.problems) == 1
    assert complaint in log.problems[0] and "certify.tsv, line 3" in log.problems[0]
    assert repair(path) == log
    assert read(path).certificates == (good, later) and read(path).problems == ()


@pytest.mark.parametrize("text", ["idx\tlabel\tpredict\tcorrect\ttime\n", "hello\n", "hello"])
def test_a_foreign_file_is_refused_and_left_alone(tmp_path, text):
    path = tmp_path / "certify.tsv"
    path.write_text(text)
    for attempt in (read, repair, Writer):
        with pytest.raises(ValueError, match="not with the columns of a certification log"):
            attempt(path)
    assert path.read_text() == text


def test_a_predict_log_is_recognised(tmp_path):
    (tmp_path / "N_100").write_text(f"{PREDICT_HEADER}\n0\t0\t0\t1\t0:00:01.737771\n")
    with pytest.raises(ValueError, match=r"PREDICT log.* no radii"):
        read(tmp_path / "N_100")


def test_summary_counts_abstentions_and_errors_as_wrong():
    certificates = [
        Certificate(0, 3, 3, 0.25, 1.0),
        Certificate(1, 3, 3, 0.6, 1.0),
        Certificate(2, 3, 4, 0.9, 1.0),
        Certificate(3, 3, -1, 0.0, 1.0),
    ]
    assert summarise(certificates, **SETTING) == {
        **SETTING,
        "examples": 4,
        "accuracy": 0.5,
        "acr": pytest.approx(0.2125),
        "accuracy_at_radius": {"0.25": 0.5, "0.50": 0.25, "0.75": 0.0},
        "high_probability": {"0.25": 0.0, "0.50": 0.0, "0.75": 0.0},
        "abstain": 0.25,
    }


def test_summary_is_plain_json_and_the_same_from_the_log(tmp_path, certificates):
    write(tmp_path / "certify.tsv", certificates)
    again = summarise(read(tmp_path / "certify.tsv").certificates, **SETTING)
    direct = summarise(certificates, **SETTING)
    assert again.pop("acr") == pytest.approx(direct.pop("acr"), abs=1e-9)
    assert again == direct == json.loads(json.dumps(direct))


def test_radii_reach_as_far_as_the_draws_can_certify():
    assert default_radii(largest_radius(0.25, 1000, 0.001)) == [0.25, 0.5]
    assert default_radii(largest_radius(0.5, 100_000, 0.001))[-1] == 1.75
    assert default_radii(largest_radius(1.0, 100_000, 0.001))[-1] == 3.75


def test_radii_may_be_chosen_and_keep_their_names():
    certificates = [Certificate(0, 3, 3, 0.25, 1.0)]
    summary = summarise(certificates, **SETTING, radii=[0.125, 0.25, 1])
    assert summary["accuracy_at_radius"] == {"0.125": 1.0, "0.25": 1.0, "1.00": 0.0}


def test_summary_refuses_nothing_and_repetition():
    one = Certificate(0, 3, 3, 0.25, 1.0)
    with pytest.raises(ValueError, match="no certificates"):
        summarise([], **SETTING)
    with pytest.raises(ValueError, match="certified twice"):
        summarise([one, one], **SETTING)


def test_reading_and_summing_up_need_neither_torch_nor_scipy():
    code = (
        "import sys, advtrain.certification.log, advtrain.certification.summary;"
        "sys.exit('torch' in sys.modules or 'scipy' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0

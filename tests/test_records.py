"""The log of verdicts: what was written comes back, and damage is told and left out."""

import json
from dataclasses import asdict, replace

import pytest

from advtrain.records import CHECK, VerdictLog, Verdicts

GOOD = Verdicts("k", (0, 1, 2), "110", "010", 0, 0, 6, 3, 0.5)


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "verdicts.jsonl"
    VerdictLog(path).append(GOOD)
    return path


def test_classes_come_back(path):
    told = replace(GOOD, row="c", labels=(3, 1, 0), answers=(3, -1, 2))
    VerdictLog(path).append(told)
    assert VerdictLog(path).find("c", (0, 1, 2)) == told


def test_verdicts_come_back_and_a_torn_last_line_is_cut_off(path):
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:40])
    assert VerdictLog(path).find("k", (0, 1, 2)) == GOOD
    assert path.read_bytes() == whole


@pytest.mark.parametrize(
    "line",
    [
        "garbage",
        "[]",
        *(
            json.dumps(asdict(GOOD) | change)
            for change in (
                {"robust": "01"},
                {"adversarial": "1100"},
                {"robust": "01x"},
                {"robust": [0, 1, 0]},
                {"at": [0, 1]},
                {"at": [0, 1, [2]]},
                {"outside": "0"},
                {"row": ["k"]},
                {"adversarial": {"0": 1, "1": 0, "01": 1}},
                {"robust": ["0", "1", "0"]},
                {"draws": [["0", "1", "0"]]},
                {"seconds": None},
                {"seconds": float("nan")},
                {"seconds": -1},
                {"more": 1},
                {"answers": [1, 2]},
                {"answers": [1, 2, -2]},
                {"labels": [0, 1, -1]},
                {"labels": [0, 1, 1.5]},
            )
        ),
    ],
)
def test_a_damaged_line_is_told_and_left_out(path, caplog, line):
    whole = path.read_text()
    other = replace(GOOD, row="other")
    path.write_text(whole + line + "\n")
    VerdictLog(path).append(other)
    assert "verdicts.jsonl, line 2, is no verdict" in caplog.text
    caplog.clear()
    assert list(VerdictLog(path).lines.values()) == [GOOD, other]
    assert path.read_text().startswith(whole) and path.read_text().count("\n") == 2
    assert not caplog.text


def test_a_verdict_that_is_not_as_it_was_written_is_judged_again(path, caplog):
    path.write_text(path.read_text().replace('"robust": "010"', '"robust": "011"'))
    assert VerdictLog(path).find("k", (0, 1, 2)) is None
    assert "judged again" in caplog.text and path.read_text() == ""


def test_verdicts_from_before_there_were_checksums_count(path):
    fields = {key: value for key, value in json.loads(path.read_text()).items() if key != CHECK}
    path.write_text(json.dumps(fields) + "\n")
    assert VerdictLog(path).find("k", (0, 1, 2)) == GOOD

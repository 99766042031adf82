"""The log of verdicts: what was written comes back, and damage is told."""

import json
from dataclasses import asdict, replace

import pytest

from advtrain.records import VerdictLog, Verdicts

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
                {"seconds": None},
                {"more": 1},
                {"answers": [1, 2]},
                {"answers": [1, 2, -2]},
                {"labels": [0, 1, -1]},
                {"labels": [0, 1, 1.5]},
            )
        ),
    ],
)
def test_a_damaged_line_is_refused_with_its_number(path, line):
    path.write_text(path.read_text() + line + "\n" + path.read_text())
    with pytest.raises(ValueError, match=r"verdicts\.jsonl, line 2, is no verdict"):
        VerdictLog(path)

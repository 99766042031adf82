"""A few random inputs of each kind; `scripts/fuzz.py` draws thousands of them."""

import signal
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import random_calls as calls
import random_configurations as configurations
import random_files as files
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

sys.path.append(str(Path(__file__).parents[1] / "scripts"))

import fuzz


def some(count: int) -> Any:
    """That many examples, the same each time that the same modules are loaded.

    Of these, but not of tests, hypothesis takes constants to try.
    """
    return settings(
        max_examples=count,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


@some(500)
@given(calls.calls())
def test_a_call_of_an_attack_keeps_its_promises_or_is_refused(call: calls.Call) -> None:
    calls.kept(call)


@some(200)
@given(files.damages)
def test_a_damaged_file_is_read_as_far_as_it_goes_or_refused(damage: files.Damage) -> None:
    with TemporaryDirectory() as folder:
        files.read(damage, Path(folder))


@some(15)
@given(configurations.lines)
def test_a_command_line_is_accepted_or_refused_in_sentences(line: tuple[str, ...]) -> None:
    configurations.checked(line)


@some(4)
@given(configurations.small())
def test_a_command_line_that_is_accepted_runs(line: tuple[str, ...]) -> None:
    with TemporaryDirectory() as folder:
        configurations.ran(line, Path(folder))


@pytest.mark.parametrize("kind", files.KINDS, ids=lambda kind: kind.name)
def test_a_sound_file_is_read(kind: files.Reader, tmp_path: Path) -> None:
    found = files.Damage(files.KINDS.index(kind), ())
    assert files.read(found, tmp_path) == "answered"


def test_the_checks_of_random_inputs_can_fail(tmp_path: Path, monkeypatch: Any) -> None:
    def cheating(model: Any, x: Any, y: Any, **keys: Any) -> Any:
        return 1 - x

    monkeypatch.setitem(calls.ATTACKS, "fgsm", (cheating, {}))
    threat, off = calls.Linf(0.1), (False, False)
    call = calls.Call("fgsm", {}, threat, (2, 3), 2, "linear", "float32", *off, 0, False, "plain")
    with pytest.raises(AssertionError, match="exceeds eps"):
        calls.kept(call)


def test_a_reader_that_hangs_is_not_one_that_refuses(monkeypatch: Any, capsys: Any) -> None:
    def hanging(drawn: int) -> str:
        try:
            time.sleep(60)
        except Exception:  # as readers take any error for damage
            return "refused"
        return "answered"

    monkeypatch.setattr(fuzz, "LONGEST", 1)
    before = signal.signal(signal.SIGALRM, fuzz._late)
    try:
        assert not fuzz._hold("files", 1, st.just(7), hanging, 0)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert "on 7" in capsys.readouterr().out

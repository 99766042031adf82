"""A reader that has gone, as `| head` does, ends the printing and not the work."""

import json
import os
import subprocess
import sys

import pytest
from running import TRAINING

from advtrain.telling import flush, tell

SHORT = (*TRAINING, "job=train")


def unread(*arguments, cwd, stdout=None):
    """The exit code of a command whose standard error (and output) nobody reads."""
    read, write = os.pipe()
    os.close(read)
    try:
        return subprocess.run(
            [sys.executable, "-m", "advtrain", *arguments],
            cwd=cwd,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=write if stdout is None else stdout,
            stderr=write,
            timeout=300,
        ).returncode
    finally:
        os.close(write)


def state(folder):
    return json.loads((folder / "status.json").read_text())["state"]


@pytest.mark.parametrize("launcher", ["basic", "pool"])
def test_a_grid_goes_on_and_tells_of_failures_by_its_code(tmp_path, launcher):
    top = tmp_path / "grid"
    line = ("-m", *SHORT, "optimizer.lr=1e30,0.01", f"hydra/launcher={launcher}")
    assert unread(*line, f"hydra.sweep.dir={top}", cwd=tmp_path) == 1
    assert [state(top / name) for name in "01"] == ["failed", "done"]
    assert (top / "table.md").exists()


@pytest.mark.parametrize(("line", "code"), [(["--cfg", "job"], 0), (["seed=-1"], 2)])
def test_what_is_only_printed_is_done(tmp_path, line, code):
    assert unread(*line, cwd=tmp_path) == code


def test_a_line_that_nobody_reads_is_no_error(tmp_path):
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as stream:
        tell("one", stream)
        tell("two", stream)
    flush()

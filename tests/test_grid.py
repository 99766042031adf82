"""Grids: one table, seeds folded, and jobs that fail beside jobs that do not."""

import csv
import json
import os
import signal
import subprocess
import sys
import time

from running import TINY, TRAINING, command


def sweep(tmp_path, *arguments):
    return command("-m", *arguments, f"hydra.sweep.dir={tmp_path / 'sweep'}", cwd=tmp_path)


def test_a_grid_ends_in_one_table_with_seeds_folded(tmp_path):
    defenses = ("defense=pgd_at,trades", "seed=0,1")
    found = sweep(tmp_path, *TINY, *defenses)
    assert found.returncode == 0, found.stderr
    top = tmp_path / "sweep"
    for name in ("table.md", "table.tex", "table.csv", "report.html"):
        assert (top / name).stat().st_size > 0
    text = (top / "table.md").read_text()
    lines = [line for line in text.splitlines() if line.startswith("|")]
    rules = [place for place, line in enumerate(lines) if line.startswith("| ---")]
    assert rules == [1, 5]  # accuracies: a head, a rule, a line per defense; then certificates
    lines = lines[:4]
    assert "trades" in found.stdout and "pgd_at" in found.stdout
    with (top / "table.csv").open() as file:
        assert {row["seeds"] for row in csv.DictReader(file)} == {"2"}
    again = sweep(tmp_path, *TINY, *defenses)
    assert again.returncode == 0
    assert "epoch" not in again.stderr  # nothing was trained again


def test_a_failing_job_leaves_the_others_alone_and_is_in_the_table(tmp_path):
    found = sweep(tmp_path, *TINY, "optimizer.lr=1e30,0.01")
    assert found.returncode == 1
    states = [
        json.loads((tmp_path / "sweep" / job / "status.json").read_text()) for job in ("0", "1")
    ]
    assert [state["state"] for state in states] == ["failed", "done"]
    table = (tmp_path / "sweep" / "table.md").read_text()
    assert "not finite" in table or "nan" in table or "inf" in table
    assert "Traceback" not in found.stderr


def test_a_wrong_job_of_a_grid_is_refused_before_any_runs(tmp_path):
    found = sweep(tmp_path, *TRAINING, "threat.eps=1/10,8")
    assert found.returncode == 2 and "threat.eps=8" in found.stderr
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_grid_ends_with_its_code_and_a_table(tmp_path):
    top = tmp_path / "sweep"
    line = [sys.executable, "-m", "advtrain", "-m", *TRAINING, "epochs=4000", "seed=0,1"]
    with subprocess.Popen(
        [*line, f"hydra.sweep.dir={top}"],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            deadline = time.monotonic() + 300
            while not (top / "0" / "metrics.jsonl").exists() and time.monotonic() < deadline:
                time.sleep(0.05)
            process.send_signal(signal.SIGTERM)
            _, told = process.communicate(timeout=300)
        finally:
            process.kill()
    assert process.returncode == 143, told
    assert json.loads((top / "0" / "status.json").read_text())["state"] == "interrupted"
    assert not (top / "1" / "metrics.jsonl").exists()
    assert (top / "table.md").exists()

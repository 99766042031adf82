"""The pool: slots of a machine, jobs that go wrong beside jobs that do not, signals passed on."""

import json
import os
import signal
import threading
import time
from pathlib import Path

import pytest
import torch
from grids import grid
from omegaconf import OmegaConf
from running import DATA, TRAINING, command, run

from advtrain import status
from advtrain.grid import Locate
from advtrain.ledger import survey
from advtrain.main import _code_of_runs
from advtrain.messages import Grid, Task
from advtrain.pool import Pool, Rules, Slot
from advtrain.slots import environments, gpus
from advtrain.sweeping import jobs

TESTS = str(Path(__file__).parent)
RULES = Rules(timeout=None, grace=0.5, retries=0)


def pool(folder, slots=2, rules=RULES):
    config = OmegaConf.create({"hydra": {"sweep": {"dir": str(folder)}}})
    path = os.pathsep.join([TESTS, os.environ.get("PYTHONPATH", "")])
    there = [Slot({"PYTHONPATH": path}, "pool_worker") for _ in range(slots)]
    return Pool(Grid(None, config), there, rules)


def tasks(*whats):
    return [Task(number, (what,)) for number, what in enumerate(whats)]


def test_whatever_a_job_does_the_others_end_and_it_is_told_why(tmp_path, capsys):
    rules = Rules(timeout=2.0, grace=3.0, retries=0)
    whats = ("fine", "exit", "killed", "fail", "hang", "deaf", "fine")
    found = pool(tmp_path, 4, rules).run(tasks(*whats))
    assert [found[number].code for number in range(7)] == [0, 1, 1, 1, 1, 1, 0]
    known = [status.read(tmp_path / str(number)) for number in range(7)]
    assert [each["state"] for each in known] == ["done", *["failed"] * 5, "done"]
    for number, words in (
        (1, "its process ended with exit code 7"),
        (2, "ended by SIGKILL; perhaps memory ran out"),
        (4, "longer than hydra.launcher.timeout=2 seconds. What it had by then is saved."),
        (5, "longer than hydra.launcher.timeout=2 seconds. It did not answer SIGTERM."),
    ):
        assert words in known[number]["error"] and known[number]["exit_code"] == 1
        assert words in capsys.readouterr().err or number > 1  # all of it was read at the first


def is_at_work(process):
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_what_a_process_has_started_ends_with_it(tmp_path):
    rules = Rules(timeout=2.0, grace=0.5, retries=0)
    pool(tmp_path, 2, rules).run(tasks("deaf", "exit"))
    children = [int((tmp_path / number / "child").read_text()) for number in ("0", "1")]
    assert not any(map(is_at_work, children))


def test_a_job_whose_process_dies_before_it_begins_is_told_in_its_own_folder(tmp_path, capsys):
    """Its number in this launch is 0, its folder 5; folder 0 is that of a job that is done."""
    line = (*TRAINING, "seed=7", "hydra.mode=MULTIRUN", f"hydra.sweep.dir={tmp_path}")
    with grid(*line) as here:
        (job,) = jobs(here.config, here.context, here.arguments)
        status.write(tmp_path / "0", "done", identity="2-another")
        jobs_of_five = pool(tmp_path, 1)
        jobs_of_five.grid = Grid(here.loader, here.config)
        jobs_of_five.slots[0].environment |= {"DIES_EARLY": "1"}
        found = jobs_of_five.run([Task(0, (*job.overrides, "hydra.sweep.subdir='5'"))])
    assert found[0].code == 1
    assert status.read(tmp_path / "0") == {"identity": "2-another", "state": "done", "error": None}
    known = status.read(tmp_path / "5")
    assert known["state"] == "failed" and "exit code 7" in known["error"]
    assert "seed=7" in known["overrides"] and known["choices"]["defense"] == "pgd_at"
    assert survey(tmp_path)[job.identity].folder == tmp_path / "5"  # the same command goes on
    assert "job 5 failed: its process ended with exit code 7" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_fails_its_job_alone(tmp_path):
    """Neither one that cannot be made, nor one where Hydra cannot write."""
    top = tmp_path / "grid"
    (top / "1").mkdir(parents=True)
    for name in ("0", "1/.hydra"):
        (top / name).write_text("in the way")
    line = (*TRAINING, "job=train", "hydra/launcher=pool", "hydra.launcher.slots=2")
    found = command("-m", *line, "seed=0,1,2", f"hydra.sweep.dir={top}", cwd=tmp_path)
    assert found.returncode == 1 and "Traceback" not in found.stderr
    for name in ("0", "1/.hydra"):
        assert f": {top / name}: File exists." in found.stderr
    assert [status.read(top / each).get("state") for each in "012"] == [None, "failed", "done"]
    assert "identity" in status.read(top / "1")


def test_a_process_does_job_after_job_until_one_fails(tmp_path):
    found = pool(tmp_path, 1).run(tasks("fine", "fine", "fail", "fine"))
    assert [found[number].value for number in range(4)] == [4.0, 4.0, None, 4.0]
    first, second, third, fourth = (
        status.read(tmp_path / str(number))["process"] for number in range(4)
    )
    assert first == second == third != fourth


def test_a_job_that_fails_is_tried_again_so_often(tmp_path):
    rules = Rules(timeout=None, grace=0.5, retries=1)
    found = pool(tmp_path, 1, rules).run(tasks("twice", "fail"))
    assert [found[number].code for number in range(2)] == [0, 1]


def test_a_signal_reaches_the_jobs_and_no_further_one_begins(tmp_path, capsys):
    before = signal.getsignal(signal.SIGTERM)
    jobs = pool(tmp_path)

    def send():
        while not all((tmp_path / n / "tried").exists() for n in ("0", "1")):
            time.sleep(0.02)
        time.sleep(0.2)  # until both listen
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=send, daemon=True).start()
    with pytest.raises(SystemExit) as stopped:
        jobs.run(tasks("hang", "hang", "fine"))
    assert stopped.value.code == 143 and signal.getsignal(signal.SIGTERM) is before
    assert jobs.ended.keys() == {0, 1} and not (tmp_path / "2").exists()
    assert f"hydra.sweep.dir={tmp_path} goes on" in capsys.readouterr().err


def test_slots_share_what_is_there(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert len(environments("auto", 100)) == 8
    assert environments(4, 100) == [{"OMP_NUM_THREADS": "4", "MKL_NUM_THREADS": "4"}] * 4
    assert len(environments("auto", 3)) == 3  # no more than there are jobs
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,GPU-abc")
    visible = [each["CUDA_VISIBLE_DEVICES"] for each in environments(3, 100)]
    assert visible == ["2", "GPU-abc", "2"] and len(environments("auto", 100)) == 2
    for given in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        with monkeypatch.context() as patch:
            patch.setenv(given, "1")  # PyTorch reads both: a number beside it would count for more
            assert environments(1, 1) == [{"CUDA_VISIBLE_DEVICES": "2"}]
    assert gpus({"CUDA_VISIBLE_DEVICES": "0,-1,1"}) == ["0"]


TROUBLE = """
import os
from torch import nn

def fine(shape, classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(shape[0] * shape[1] * shape[2], classes))

def exits(shape, classes):
    os._exit(7)
"""


def test_a_job_of_the_pool_is_that_of_the_default_launcher(tmp_path, monkeypatch):
    (tmp_path / "trouble.py").write_text(TROUBLE)
    common = [each for each in DATA if not each.startswith("model")]
    common += ["logger=none", "device=cpu", "epochs=1", "batch_size=16", "attack.steps=2"]
    common += ["eval=quick", "eval.attacks.pgd.steps=2", "validate.attack.steps=2"]
    common += ["model=custom", "packages=[trouble]"]
    models = "model.factory=trouble.fine,trouble.exits"
    line = (
        *common,
        models,
        "hydra/launcher=pool",
        "hydra.launcher.slots=2",
        "hydra.sweep.dir=grid",
    )
    found = command("-m", *line, cwd=tmp_path)
    assert found.returncode == 1, found.stderr
    assert "exit code 7" in (tmp_path / "grid" / "table.md").read_text()
    assert "clean" in (tmp_path / "grid" / "0" / "output.log").read_text()
    monkeypatch.syspath_prepend(str(tmp_path))
    assert run(tmp_path / "alone", *common, "model.factory=trouble.fine")["state"] == "done"
    ours, theirs = (
        torch.load(folder / "checkpoints" / "last.pt", weights_only=True)["model"]
        for folder in (tmp_path / "grid" / "0", tmp_path / "alone")
    )
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    rows = [
        [{**row, "seconds": 0} for row in json.loads((folder / "results.json").read_text())["rows"]]
        for folder in (tmp_path / "grid" / "0", tmp_path / "alone")
    ]
    assert rows[0] == rows[1]


def test_a_job_that_could_not_even_leave_its_status_is_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(Locate, "sweep", tmp_path)
    monkeypatch.setattr(Locate, "codes", {})
    assert _code_of_runs() == 0
    status.write(tmp_path / "0", "done")
    Locate.codes[tmp_path / "1"] = 1
    assert _code_of_runs() == 1

"""job=plan: what a line would take, from steps that are measured, and nothing left behind."""

import json
import re
import time

import pytest
from grids import grid
from running import DATA, FITTING, TINY, configuration, run

from advtrain import footprint, main, runs, status
from advtrain.config import ConfigError
from advtrain.estimates import estimate, labels, size
from advtrain.forecast import Plan, forecast
from advtrain.grid import parse
from advtrain.programs import compiled
from advtrain.sweeping import jobs


def test_a_plan_counts_jobs_and_measures_each_configuration_once(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    line = ["-m", "job=plan", "eval=quick", "defense=standard,pgd_at", "seed=range(0,3)", *FITTING]
    assert estimate(parse(line)) == 0
    printed = capsys.readouterr()
    assert "measuring 2 of 2: defense=pgd_at" in printed.err
    rows = [text.split() for text in printed.out.splitlines() if text.startswith("defense=")]
    # 48 images in batches of 16, for 2 epochs
    assert [row[:3] for row in rows] == [
        ["defense=standard", "3", "6"],
        ["defense=pgd_at", "3", "6"],
    ]
    assert "6 jobs: about" in printed.out and "Not measured: starting processes" in printed.out
    assert list(tmp_path.iterdir()) == []


def test_jobs_that_are_finished_are_not_planned(tmp_path, capsys):
    line = ["eval=none", "seed=0,1", *FITTING, f"hydra.sweep.dir={tmp_path}"]
    with grid(*line) as here:
        name = jobs(here.config, here.context, here.arguments)[0].identity
    status.write(tmp_path / "0", "done", identity=name, config={"job": "train"})
    assert estimate(parse(["-m", *line, "job=plan"])) == 0
    printed = capsys.readouterr()
    assert "1 of 2 jobs are finished" in printed.err and "1 job: about" in printed.out
    assert estimate(parse(["-m", *line, "job=plan", "plan.job=train"])) == 0
    assert "2 jobs: about" in capsys.readouterr().out


def test_what_is_measured_is_what_a_run_does(tmp_path):
    found = forecast(configuration(*TINY), Plan("train_eval", steps=3, seconds=30.0), ())
    assert run(tmp_path, *TINY)["state"] == "done"
    checkpoints = (tmp_path / "checkpoints").glob("*.pt")
    assert found.disk == pytest.approx(sum(file.stat().st_size for file in checkpoints), rel=0.5)
    epochs = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert found.steps == len(epochs) * 3 == 6
    assert 0 < found.steps * found.per_step < found.training  # which also validates and saves
    assert found.evaluation > 0 and found.missing == []


def test_what_takes_too_long_is_said_to_be_not_measured():
    slow = ("eval.attacks.pgd_linf.steps=100000000", *FITTING, "attack.steps=2")
    found = forecast(configuration(*slow), Plan("train_eval", steps=1, seconds=0.3), ())
    assert "row pgd_linf: 8 images took over plan.seconds=0.3" in found.missing


@pytest.fixture
def slow_compiler(monkeypatch):
    """Networks are compiled by what takes 1000 s for a program by the clock, and runs it as it is.

    The list that it returns gets an entry for each.
    """
    made, clock = [], time.perf_counter

    def compiler(graph, inputs):
        made.append(graph)
        return graph.forward

    monkeypatch.setattr(runs, "compiled", lambda model, graphs: compiled(model, backend=compiler))
    monkeypatch.setattr(time, "perf_counter", lambda: clock() + 1000 * len(made))
    return made


COMPILED = (*TINY, "compile=true", "eval.batch_size=12", "eval.certify.batch_size=300")


@pytest.mark.parametrize("average", ["last", "ema"])
def test_making_programs_is_told_and_not_taken_for_the_work_that_they_do(average, slow_compiler):
    line = configuration(*COMPILED, "defense=multi_attack", f"average={average}")  # three in turn
    found = forecast(line, Plan("train_eval", steps=3, seconds=30.0), ())
    assert 0 < found.training < 500 and 0 < found.evaluation < 500
    *others, compiling = found.missing
    assert all("statistics" in each for each in others)
    assert re.fullmatch(r"compiling \(\d+ h \d+ min here\)", compiling)
    # a step of an attack, a loss; images with gradients and without, some and many; draws
    assert len(slow_compiler) >= 8


def test_an_attack_that_drops_images_finds_its_programs_made(slow_compiler):
    rows = ("eval=autoattack", "eval.size=12", "eval.batch_size=12", "device=cpu", "compile=true")
    line = configuration(*FITTING, *rows)
    found = forecast(line, Plan("eval", steps=1, seconds=30.0), ())
    assert 0 < found.evaluation < 500 and len(found.missing) == 1


def test_an_evaluation_is_planned_without_training():
    found = forecast(configuration(*TINY), Plan("eval", steps=1, seconds=30.0), ())
    assert found.training == found.disk == 0 and found.evaluation > 0


def test_a_configuration_that_cannot_begin_is_told_and_the_plan_fails(capsys):
    line = ["job=plan", *DATA, "dataset.train_size=5", "batch_size=100000", "eval=none"]
    line += ["device=cuda:99", "logger=none"]
    assert estimate(parse(line)) == 1
    assert "device=cuda:99" in capsys.readouterr().out
    with pytest.raises(ConfigError, match=r"epochs=0 is refused"):
        estimate(parse(["job=plan", "epochs=0"]))


def test_a_batch_size_for_which_there_is_no_memory_is_told_and_the_plan_fails(capsys, monkeypatch):
    monkeypatch.setattr(footprint, "free", lambda device: 0)
    assert estimate(parse(["job=plan", *FITTING, "eval=none", "batch_size=auto"])) == 1
    assert "2 images are too large" in capsys.readouterr().out


def test_a_plan_is_no_job_among_others(tmp_path):
    status = run(tmp_path, *TINY, "job=plan")
    assert status["exit_code"] == 2 and "of a whole line" in status["error"]


def test_a_plan_of_an_evaluation_takes_the_choices_of_its_checkpoint(tmp_path):
    (tmp_path / "status.json").write_text('{"choices": {"model": "linear"}, "config": {}}')
    line = ["job=plan", "plan.job=eval", f"checkpoint={tmp_path}"]
    assert main.of_checkpoint(line) == ["model=linear"]
    assert main.of_checkpoint(["job=plan", f"checkpoint={tmp_path}"]) == []


def test_lines_are_told_apart_by_what_differs():
    lines = [["epochs=1", "lr=1", "seed=0"], ["epochs=1", "lr=2", "seed=0"], ["epochs=1", "seed=3"]]
    assert labels(lines) == ["lr=1", "lr=2", "as given"]
    assert [size(n) for n in (2_300, 4.5e6, 7.25e9)] == ["2 kB", "4 MB", "7.2 GB"]

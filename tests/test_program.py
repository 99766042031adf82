"""The whole program on tiny runs of real digits: train, evaluate, stop, go on."""

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from running import FITTING, JUDGING, TINY, TRADES, TRAINING, command, interrupted, run
from sklearn.datasets import load_digits

from advtrain.certification.smoothing import Smoothed
from advtrain.config import ConfigError
from advtrain.lock import locked
from advtrain.precision import full_precision
from advtrain.runs import load_run


def results(directory):
    return json.loads((directory / "results.json").read_text())


def numbers(directory):
    """What must not depend on interruptions: every number but the times."""
    found = results(directory)
    for part in (*found["rows"], found["certified"]):
        part.pop("seconds")
    epochs = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    for epoch in epochs:
        epoch.pop("seconds"), epoch.pop("examples_per_second")
    return found["rows"], found["worst_case"], found["certified"], epochs


def weights(directory, which="last"):
    content = torch.load(directory / "checkpoints" / f"{which}.pt", weights_only=True)
    return content["model"]


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_a_run_leaves_everything_that_is_promised(tmp_path):
    status = run(tmp_path, *TINY)
    assert status["state"] == "done" and status["exit_code"] == 0
    for name in (
        *("results.json", "metrics.jsonl", "table.md", "table.tex", "table.csv", "report.html"),
        *("certify.tsv", "checkpoints/last.pt", "checkpoints/best.pt", "plots/accuracy.png"),
    ):
        assert (tmp_path / name).stat().st_size > 0, name
    found = results(tmp_path)
    assert [row["name"] for row in found["rows"]] == ["clean", "fgsm", "pgd_linf", "pgd_l2"]
    assert found["schema"] == 1 and found["dataset"]["n"] == 20 and found["checkpoint"] == "best"
    for row in found["rows"]:
        low, high = row["ci95"]
        assert 0 <= low <= row["accuracy"] <= high <= 1 and row["n"] == 20
    clean, _, linf, _ = found["rows"]
    assert (clean["forward_passes"], clean["backward_passes"]) == (20, 0)
    # two steps, the referee's own look; and two gradients
    assert (linf["forward_passes"], linf["backward_passes"]) == (60, 40)
    assert found["worst_case"]["linf"] <= linf["accuracy"] <= clean["accuracy"]
    assert (
        found["certified"]["examples"] == 20 and "0.25" in found["certified"]["accuracy_at_radius"]
    )
    epochs = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [epoch["epoch"] for epoch in epochs] == [1, 2]
    wanted = {"train_loss", "train_acc", "val_acc", "val_adv_acc", "lr", "seconds"}
    assert wanted | {"examples_per_second"} <= epochs[0].keys()


def test_the_checkpoint_is_plain_and_says_how_it_was_made(tmp_path):
    run(tmp_path, *TRAINING)
    content = torch.load(tmp_path / "checkpoints" / "best.pt", weights_only=True)
    assert content["config"]["dataset"]["train_size"] == 48
    model, config = load_run(tmp_path)
    assert config["model"]["_target_"] == "advtrain.models.linear.linear"
    assert equal(dict(model.state_dict()), content["model"])
    smoothed = Smoothed(model, num_classes=10, sigma=0.25)
    predictions, radii = smoothed.certify(torch.rand(2, 1, 8, 8), n0=10, n=100, alpha=0.01)
    assert predictions.shape == radii.shape == (2,)


def test_the_same_seed_gives_the_same_run_and_another_seed_another(tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        run(tmp_path / name, *TINY, f"seed={seed}")
    assert equal(weights(tmp_path / "a"), weights(tmp_path / "b"))
    assert numbers(tmp_path / "a") == numbers(tmp_path / "b")
    assert not equal(weights(tmp_path / "a"), weights(tmp_path / "c"))


def test_a_finished_run_is_not_done_again(tmp_path):
    run(tmp_path, *TINY)
    stamp = (tmp_path / "checkpoints" / "last.pt").stat().st_mtime_ns
    verdicts = (tmp_path / "verdicts.jsonl").read_text()
    assert run(tmp_path, *TINY)["state"] == "done"
    assert (tmp_path / "checkpoints" / "last.pt").stat().st_mtime_ns == stamp
    assert (tmp_path / "verdicts.jsonl").read_text() == verdicts


@pytest.mark.parametrize(
    "method",
    [
        ("defense=pgd_at", "attack.steps=2", "average=ema", "model=small_cnn"),
        ("defense=trades", "attack.steps=2", "average=swa", "average.start=0.3", "descent=awp"),
        ("defense=free", "dataset.replays=2", "average=ema", "average.start=0.5"),
        ("defense=mixed_at", "attack.steps=2", "precision=bf16", "optimizer=adam"),
    ],
    ids=lambda method: method[0],
)
def test_a_run_stopped_between_any_two_steps_goes_on_bit_for_bit(tmp_path, method):
    fitting = [each for each in FITTING if "model=small_cnn" not in method or "model" not in each]
    options = (*fitting, *JUDGING, *method)
    run(tmp_path / "whole", *options)
    for step in (1, 4, 5):
        directory = tmp_path / f"stopped{step}"
        interrupted(directory, step, *options)
        run(directory, *options)
        assert equal(weights(directory), weights(tmp_path / "whole"))
        assert equal(weights(directory, "best"), weights(tmp_path / "whole", "best"))
        assert numbers(directory) == numbers(tmp_path / "whole")


# Each takes from a quarter of a second to a whole one, on every start.
SPARED = ("torch._dynamo", "torchvision", "sklearn", "scipy.stats")
LISTING = """
import sys
from advtrain.main import main
try:
    main()
finally:
    print([name for name in {spared} if name in sys.modules], file=sys.stderr)
"""


def test_a_run_imports_no_more_than_it_needs(tmp_path):
    script = LISTING.format(spared=SPARED)
    given = [*TINY, f"hydra.run.dir={tmp_path / 'run'}"]
    done = subprocess.run(
        [sys.executable, "-c", script, *given], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[-1] == "[]"


def test_another_configuration_in_the_same_directory_is_refused(tmp_path, capsys):
    first = run(tmp_path, *TRAINING)
    refused = run(tmp_path, *TRAINING, "optimizer.lr=0.01")
    assert refused == first | {"exit_code": 2}  # what was done stays done
    assert "optimizer.lr=0.01" in capsys.readouterr().err
    assert run(tmp_path, *TRAINING, "optimizer.lr=0.01", "resume=false")["state"] == "done"


def test_two_processes_in_one_directory_are_refused(tmp_path, capsys):
    with locked(tmp_path / ".lock"):
        assert run(tmp_path, *TRAINING)["exit_code"] == 2
    assert "another process" in capsys.readouterr().err
    assert not (tmp_path / "status.json").exists()


def test_evaluation_takes_the_configuration_from_the_checkpoint(tmp_path):
    run(tmp_path / "run", *TRAINING, "threat.eps=0.07")
    status = run(
        tmp_path / "eval",
        *("job=eval", f"checkpoint={tmp_path / 'run'}", "eval=quick", "logger=none"),
        "eval.attacks.pgd.steps=2",
    )
    assert status["state"] == "done", status
    found = results(tmp_path / "eval")
    assert found["model"]["name"] == "linear" and found["dataset"]["n"] == 20
    assert found["threat"]["eps"] == 0.07 and found["rows"][1]["eps"] == 0.07
    assert found["checkpoint"] == str(tmp_path / "run")
    other = run(
        tmp_path / "other",
        *("job=eval", f"checkpoint={tmp_path / 'run'}", "eval=quick", "logger=none"),
        *("eval.attacks.pgd.steps=2", "threat.eps=0.02", "dataset.test_size=10"),
    )
    assert other["state"] == "done"
    assert results(tmp_path / "other")["threat"]["eps"] == 0.02
    assert results(tmp_path / "other")["dataset"]["n"] == 10


def test_the_command_evaluates_a_run_under_its_name_and_choices(tmp_path):
    run(tmp_path / "run", *TRAINING, "dataset.eps.linf=0.07")
    arguments = ("job=eval", f"checkpoint={tmp_path / 'run'}", "eval=quick", "logger=none")
    found = command(*arguments, "eval.attacks.pgd.steps=2", cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    (directory,) = tmp_path.glob("outputs/digits-linear-pgd_at/*")
    assert results(directory)["threat"]["eps"] == 0.07
    assert [row["name"] for row in results(directory)["rows"]] == ["clean", "fgsm", "pgd_linf"]
    smaller = command(*arguments, "dataset.eps.linf=0.01", "name=other", cwd=tmp_path)
    assert smaller.returncode == 0, smaller.stderr
    (directory,) = tmp_path.glob("outputs/other/*")
    assert results(directory)["threat"]["eps"] == 0.01
    grid = command("-m", *arguments, "eval.size=5,10", "hydra.sweep.dir=grid", cwd=tmp_path)
    assert grid.returncode == 0, grid.stderr
    assert [results(tmp_path / "grid" / job)["dataset"]["n"] for job in ("0", "1")] == [5, 10]


NESTED = {
    "_target_": "advtrain.models.custom.custom",
    "factory": "advtrain.models.custom.custom",
    "arguments": {
        "shape": [1, 8, 8],
        "classes": 10,
        "factory": "os.mkdir",
        "arguments": {"path": "executed"},
    },
}


@pytest.mark.parametrize(
    "node",
    [
        NESTED,
        {**NESTED, "factory": "advtrain.models.custom.import_module", "arguments": {"name": "os"}},
        {**NESTED, "factory": "os.mkdir", "arguments": {"path": "executed"}},
        {"_target_": "os.mkdir", "path": "executed"},
        {"_target_": "advtrain.models.custom.import_module", "name": "this"},
        {"_target_": "advtrain.runs.load_run"},
        {"_target_": "advtrain.models.linear.linear", "_partial_": True, "mean": "${oc.env:HOME}"},
    ],
)
def test_the_configuration_in_a_checkpoint_runs_no_code_of_others(tmp_path, monkeypatch, node):
    monkeypatch.chdir(tmp_path)
    run(tmp_path / "run", *TRAINING)
    path = tmp_path / "run" / "checkpoints" / "best.pt"
    content = torch.load(path, weights_only=True)
    content["config"]["model"] = node
    torch.save(content, tmp_path / "evil.pt")
    with pytest.raises(ConfigError):
        load_run(tmp_path / "evil.pt")
    status = run(tmp_path / "a", "job=eval", f"checkpoint={tmp_path / 'evil.pt'}", "logger=none")
    assert status["exit_code"] == 2, status
    assert not (tmp_path / "executed").exists()


def test_verdicts_of_another_network_are_not_taken_for_this_one(tmp_path):
    options = ("job=eval", "eval=quick", "logger=none", "eval.size=20", "eval.attacks.pgd.steps=1")
    torch.save(small_state(), tmp_path / "w.pt")
    chosen = (*options, f"checkpoint={tmp_path / 'w.pt'}", "model=small_cnn")
    run(tmp_path / "a", *chosen)
    run(tmp_path / "a", *chosen, "model.mean=[0.9]", "model.std=[0.2]")
    run(tmp_path / "b", *chosen, "model.mean=[0.9]", "model.std=[0.2]")
    assert (tmp_path / "a" / "verdicts.jsonl").read_text().count("\n") == 6
    clean = [results(tmp_path / name)["rows"][0]["accuracy"] for name in ("a", "b")]
    assert clean[0] == clean[1]


def small_state():
    from advtrain.models.small import small_cnn

    return small_cnn((1, 8, 8), 10, mean=[0.0], std=[1.0]).state_dict()


def test_proposals_that_do_not_count_are_warned_of(tmp_path):
    far = "{_target_: running.far, _partial_: true, threat: '${threat}'}"
    status = run(tmp_path, *TINY, f"+eval.attacks.far={far}", "packages=[running]")
    assert status["state"] == "done", status["error"]
    found = results(tmp_path)
    row = found["rows"][-1]
    assert row["outside"] == row["n"] and row["accuracy"] == found["rows"][0]["accuracy"]
    assert [(note["check"], note["row"]) for note in found["warnings"]] == [("outside", "far")]


def test_the_row_without_an_attack_cannot_be_replaced(tmp_path):
    node = "{_target_: advtrain.attacks.pgd.fgsm, _partial_: true, threat: '${threat}'}"
    status = run(tmp_path, *TINY, f"+eval.attacks.clean={node}")
    assert status["exit_code"] == 2 and "eval.attacks.clean" in status["error"]


def test_weights_that_are_not_finite_are_never_saved(tmp_path, monkeypatch):
    from advtrain import training

    real = training.train_step

    def poisoning(state, *args):
        logs = real(state, *args)
        if state.step == 6:  # the last step of the last epoch, with a finite loss
            next(state.model.parameters()).data[0] = math.nan
        return logs

    monkeypatch.setattr(training, "train_step", poisoning)
    status = run(tmp_path, *TRAINING)
    assert status["state"] == "failed" and "not finite after step 6" in status["error"]
    for which in ("last", "best"):
        assert all(torch.isfinite(each).all() for each in weights(tmp_path, which).values())


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        (("eval.certify.n=5", "eval.certify.alpha=0.001"), "n=5"),
        (("attack.step_size=0",), "step_size"),
        (("+schedule.momentum={_target_: advtrain.schedules.Constant, value: 1}",), "momentum"),
        (("device=1",), "device=1"),
    ],
)
def test_what_only_the_program_can_judge_is_refused_in_a_sentence(tmp_path, options, wanted):
    adam = ("optimizer=adam",) if "schedule" in options[0] else ()
    kept = [each for each in TINY if each.partition("=")[0] not in str(options)]
    status = run(tmp_path, *kept, *options, *adam)
    assert status["exit_code"] == 2 and wanted in status["error"], status
    assert not (tmp_path / "checkpoints" / "last.pt").exists()


def test_output_that_nobody_reads_does_not_fail_a_run(tmp_path):
    line = [sys.executable, "-m", "advtrain", *TRAINING, f"hydra.run.dir={tmp_path / 'run'}"]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(line, cwd=tmp_path, env=one_thread, **streams) as first:
        first.stdout.close()
        try:
            assert first.wait(timeout=300) == 0, first.stderr.read()
        finally:
            first.kill()


def test_someone_elses_state_dict_is_evaluated(tmp_path):
    run(tmp_path / "run", *TRAINING)
    inner = {f"module.{key}": value for key, value in weights(tmp_path / "run", "best").items()}
    torch.save({"state_dict": inner, "epoch": 3}, tmp_path / "theirs.pt")
    options = ("job=eval", "model=linear", "eval=quick", "logger=none", "eval.size=20")
    status = run(tmp_path / "a", *options, f"checkpoint={tmp_path / 'theirs.pt'}")
    assert status["state"] == "done", status
    again = run(
        tmp_path / "b",
        *options,
        f"checkpoint={tmp_path / 'run' / 'checkpoints' / 'best.pt'}",
        "dataset.test_size=null",
    )
    assert again["state"] == "done", again
    assert (
        results(tmp_path / "a")["rows"][0]["accuracy"]
        == results(tmp_path / "b")["rows"][0]["accuracy"]
    )


class Payload:
    def __reduce__(self):
        return (os.mkdir, ("executed",))


@pytest.mark.parametrize("kind", ["missing", "truncated", "pickle", "noise", "other model", "list"])
def test_a_checkpoint_that_cannot_be_used_is_one_sentence(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "given.pt"
    if kind == "truncated":
        torch.save({"model": {"w": torch.zeros(1000)}}, path)
        path.write_bytes(path.read_bytes()[:700])
    elif kind == "pickle":
        torch.save({"model": Payload()}, path)
    elif kind == "noise":
        path.write_bytes(b"\x00not a checkpoint" * 20)
    elif kind == "other model":
        torch.save({"conv.weight": torch.zeros(3, 3)}, path)
    elif kind == "list":
        torch.save([1, 2, 3], path)
    status = run(tmp_path / "run", "job=eval", f"checkpoint={path}", "logger=none", "model=linear")
    assert status["state"] == "invalid" and status["exit_code"] == 2
    assert str(path) in status["error"] and len(status["error"]) < 500
    assert not (tmp_path / "executed").exists()


def test_job_eval_without_a_checkpoint_says_what_it_needs(tmp_path):
    status = run(tmp_path, "job=eval", "logger=none")
    assert status["exit_code"] == 2 and "checkpoint=null" in status["error"]


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_checkpoint(
    tmp_path, monkeypatch
):
    from advtrain.defenses.pgd_at import PgdAt

    real = PgdAt.loss

    def broken(self, model, parcel):
        loss, logs = real(self, model, parcel)
        return (loss * math.nan, logs) if broken.calls >= 4 else (loss, logs)

    def counting(self, model, parcel):
        found = broken(self, model, parcel)
        broken.calls += 1
        return found

    broken.calls = 0
    monkeypatch.setattr(PgdAt, "loss", counting)
    status = run(tmp_path, *TINY)
    assert status["state"] == "failed" and status["exit_code"] == 1
    assert "step 5" in status["error"] and "nan" in status["error"]
    kept = torch.load(tmp_path / "checkpoints" / "last.pt", weights_only=True)
    assert kept["epoch"] == 1 and all(torch.isfinite(each).all() for each in kept["model"].values())


def test_the_device_that_is_not_here_is_named(tmp_path):
    status = run(tmp_path, *TINY, "device=cuda:97")
    assert status["exit_code"] == 2 and "device=cuda:97" in status["error"]


def test_bf16_trains_and_its_verdicts_are_those_of_full_precision(tmp_path):
    options = [*TINY, "precision=bf16", "model=small_cnn"]
    assert run(tmp_path / "a", *options)["state"] == "done"
    model, _ = load_run(tmp_path / "a")
    assert {tensor.dtype for tensor in model.parameters()} == {torch.float32}
    x = load_digits().images[:20, None] / 16
    with full_precision(model), torch.no_grad():
        logits = model(torch.tensor(x, dtype=torch.float32))
    again = run(
        tmp_path / "b", "job=eval", f"checkpoint={tmp_path / 'a'}", "eval=quick", "logger=none"
    )
    assert again["state"] == "done"
    rows = [results(tmp_path / name)["rows"][0]["accuracy"] for name in ("a", "b")]
    assert rows[0] == rows[1] and logits.dtype == torch.float32


def test_an_interrupted_evaluation_goes_on_where_it_stopped(tmp_path, monkeypatch):
    options = (*TINY, "eval.batch_size=5")
    run(tmp_path / "whole", *options)
    from advtrain import evaluation

    real, done = evaluation.judge, []

    def stopping(*args, **kwargs):
        done.append(args)
        if len(done) == 7:
            os.kill(os.getpid(), signal.SIGINT)
        return real(*args, **kwargs)

    monkeypatch.setattr(evaluation, "judge", stopping)
    with pytest.raises(SystemExit) as stopped:
        run(tmp_path / "cut", *options)
    assert stopped.value.code == 130
    lines = (tmp_path / "cut" / "verdicts.jsonl").read_text()
    assert lines.count("\n") == 7
    (tmp_path / "cut" / "verdicts.jsonl").write_text(lines + lines[:40])  # a torn last line
    done.clear()
    monkeypatch.setattr(evaluation, "judge", real)
    run(tmp_path / "cut", *options)
    assert (tmp_path / "cut" / "verdicts.jsonl").read_text().startswith(lines)
    assert numbers(tmp_path / "cut") == numbers(tmp_path / "whole")


def test_swa_and_ema_are_what_is_judged(tmp_path):
    for average in ("swa", "ema"):
        run(tmp_path / average, *TINY, f"average={average}", "model=small_cnn")
        content = torch.load(tmp_path / average / "checkpoints" / "last.pt", weights_only=True)
        state = content["training"]["state"]
        assert not equal(content["model"], state["model"])
        assert equal(content["model"], state["average"]["model"])


def test_files_of_a_run_are_where_hydra_is_told_to_put_them(tmp_path):
    found = command(*TRAINING, f"hydra.run.dir={tmp_path / 'here'}", cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    assert (tmp_path / "here" / ".hydra" / "overrides.yaml").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["here"]
    assert Path(found.stdout.strip().splitlines()[-1]).name == "report.html"


def test_a_compiled_run_agrees_with_a_plain_one(tmp_path):
    for name in ("plain", "compiled"):
        status = run(
            *(tmp_path / name, *TRAINING, "average=ema", *TRADES),
            *(f"compile={str(name == 'compiled').lower()}", "precision=bf16"),
        )
        assert status["state"] == "done", status["error"]
    plain, compiled = (weights(tmp_path / name) for name in ("plain", "compiled"))
    for key, value in plain.items():
        assert torch.allclose(value, compiled[key], atol=1e-4), key

"""Every YAML of the project is composed, checked and used: a new one is tested by existing."""

import itertools

import pytest
from running import DATA, configuration, run

from advtrain.config import conf_dir

GROUPS = sorted(path.name for path in conf_dir().iterdir() if path.is_dir())
OPTIONS = [
    (group, str(path.relative_to(conf_dir() / group).with_suffix("")))
    for group in GROUPS
    for path in sorted((conf_dir() / group).rglob("*.yaml"))
]
NEEDS = {
    ("model", "custom"): ["model.factory=advtrain.models.small.small_cnn"],
    ("eval", "transfer"): ["eval.attacks.transfer.source.checkpoint=another"],
}
QUICK = ("logger=none", "device=cpu", "epochs=1", "batch_size=24", "eval=none", *DATA)


def options(group):
    return [option for of, option in OPTIONS if of == group]


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_each_option_composes_and_passes_the_check(group, option):
    configuration(f"{group}={option}", *NEEDS.get((group, option), []))


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_each_option_begins_by_saying_what_it_is(group, option):
    lines = (conf_dir() / group / f"{option}.yaml").read_text().splitlines()
    first = lines[1] if lines[0] == "# @package _global_" else lines[0]
    assert first.startswith("# ") and len(first) > 15


@pytest.mark.parametrize(
    ("defense", "descent", "average"),
    list(itertools.product(options("defense"), options("descent"), options("average"))),
)
def test_each_defense_trains_under_each_descent_and_average(tmp_path, defense, descent, average):
    status = run(tmp_path, *QUICK, f"defense={defense}", f"descent={descent}", f"average={average}")
    assert status["state"] == "done", status["error"]


@pytest.mark.parametrize("attack", options("attack"))
def test_each_attack_can_be_trained_against(tmp_path, attack):
    assert run(tmp_path, *QUICK, f"attack={attack}")["state"] == "done"


@pytest.mark.parametrize("schedule", options("schedule"))
@pytest.mark.parametrize("threat", options("threat"))
def test_each_schedule_and_threat_runs(tmp_path, schedule, threat):
    assert run(tmp_path, *QUICK, f"schedule={schedule}", f"threat={threat}")["state"] == "done"


@pytest.mark.parametrize("optimizer", options("optimizer"))
def test_each_optimizer_runs(tmp_path, optimizer):
    assert run(tmp_path, *QUICK, f"optimizer={optimizer}")["state"] == "done"


@pytest.mark.parametrize("model", ["linear", "mnist_cnn", "small_cnn"])
def test_small_models_run_on_digits(tmp_path, model):
    assert run(tmp_path, *QUICK, f"model={model}")["state"] == "done"

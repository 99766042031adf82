"""Every YAML of the project is composed, checked and used: a new one is tested by existing."""

import itertools

import pytest
import torch
from running import DATA, TRAINING, configuration, interrupted, run

from advtrain import checkpoints
from advtrain.config import conf_dir
from advtrain.main import of_table

GROUPS = sorted(path.name for path in conf_dir().iterdir() if path.is_dir())
OPTIONS = [
    (group, str(path.relative_to(conf_dir() / group).with_suffix("")))
    for group in GROUPS
    for path in sorted((conf_dir() / group).rglob("*.yaml"))
]
NEEDS = {
    ("model", "custom"): ["model.factory=advtrain.models.small.small_cnn"],
    ("eval", "transfer"): ["eval.attacks.transfer.source.checkpoint=another"],
    ("eval", "stochastic_transfer"): ["eval.attacks.transfer.source.checkpoint=another"],
}
MODELS = {"linear_exact": "linear", "lwta": "lwta_cnn", "oat": "oat_small_cnn"}
"""Of methods that ask for one."""
QUICK = ("logger=none", "device=cpu", "epochs=1", "batch_size=24", "eval=none", *DATA)


def options(group):
    return [option for of, option in OPTIONS if of == group]


def of_model(model, overrides):
    """The overrides with another model."""
    return (*(each for each in overrides if not each.startswith("model=")), f"model={model}")


@pytest.mark.parametrize(
    ("group", "option"),
    [pair for pair in OPTIONS if pair[0] != "row"],  # with their tables: test_paper_tables
)
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
    chosen = f"defense={defense}", f"descent={descent}", f"average={average}"
    status = run(tmp_path, *of_model(MODELS.get(defense, "linear"), QUICK), *chosen)
    assert status["state"] == "done", status["error"]


@pytest.mark.parametrize("defense", options("defense"))
def test_training_by_each_defense_goes_on_bit_for_bit_where_it_was_stopped(tmp_path, defense):
    given = of_model(MODELS.get(defense, "small_cnn"), TRAINING)  # which has batch norm
    overrides = (*given, "scale.steps=2", "average=ema", f"defense={defense}")
    run(tmp_path / "whole", *overrides)
    interrupted(tmp_path / "part", 4, *overrides)
    assert run(tmp_path / "part", *overrides)["state"] == "done"
    for name in ("last", "best"):
        whole, part = (
            checkpoints.load(tmp_path / run / "checkpoints" / f"{name}.pt")["model"]
            for run in ("whole", "part")
        )
        assert all(torch.equal(value, part[key]) for key, value in whole.items())


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


@pytest.mark.parametrize(
    "model", ["linear", "mnist_cnn", "small_cnn", "lwta_cnn", "lwta_mnist_cnn"]
)
def test_small_models_run_on_digits(tmp_path, model):
    assert run(tmp_path, *QUICK, f"model={model}")["state"] == "done"


@pytest.mark.parametrize(
    ("dataset", "optimizer", "rate", "epochs", "batch_size", "peak"),
    [
        ("mnist", "adam", 5e-3, 10, 100, 0.4),
        ("cifar10", "sgd", 0.2, 15, 128, 0.5),
    ],
)
def test_fast_training_brings_the_published_setting_of_a_data_set(
    dataset, optimizer, rate, epochs, batch_size, peak
):
    found = configuration("defense=fast", f"dataset={dataset}")
    assert found["optimizer"]["_target_"].endswith(f".{optimizer}")
    assert found["optimizer"]["lr"] == rate and found["schedule"]["lr"]["peak"] == peak
    assert (found["epochs"], found["batch_size"]) == (epochs, batch_size)
    assert ("momentum" in found["schedule"]) == (optimizer == "sgd")
    other = ("optimizer=adamw", "schedule=constant", "epochs=3")
    given = configuration("defense=fast", f"dataset={dataset}", *other)
    assert given["optimizer"]["_target_"].endswith(".adamw") and given["epochs"] == 3


def test_pretrained_networks_bring_the_constants_of_their_pixels():
    given = ("model=resnet50", "dataset=cifar10")
    found = configuration(*given, "model.pretrained=imagenet")["model"]
    assert found["mean"] == [0.485, 0.456, 0.406] and found["std"] == [0.229, 0.224, 0.225]
    assert configuration(*given)["model"]["mean"] == [0.4914, 0.4822, 0.4465]


def test_a_row_of_a_table_is_chosen_by_its_name():
    assert of_table(["experiment=linear_mnist01", "row=robust"])[1] == "row=linear_mnist01/robust"
    grid = ["-m", "row=standard,robust", "experiment=linear_mnist01", "seed=0,1"]
    assert of_table(grid)[1] == "row=linear_mnist01/standard,linear_mnist01/robust"
    for other in (["row=robust"], ["experiment=a", "row=a/b"], ["experiment=null", "row=b"]):
        assert of_table(other) == other

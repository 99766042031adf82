"""What an evaluation takes over from a checkpoint of model=custom, or of a damaged one."""

import json
from pathlib import Path

import pytest
import torch
from running import TRAINING, command, run
from torch import nn

from advtrain.adopt import recorded
from advtrain.config import ConfigError

EVALUATE = ("job=eval", "eval=quick", "eval.attacks.pgd.steps=2", "logger=none", "device=cpu")
CUSTOM = {"choices": {"model": "custom"}, "config": {"model": {"factory": "theirs.nets.net"}}}


def net() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))


@pytest.fixture
def custom(tmp_path: Path) -> str:
    (tmp_path / "status.json").write_text(json.dumps(CUSTOM))
    return str(tmp_path)


@pytest.mark.parametrize("given", [[], ["packages=[others]"], ["model=custom"]])
def test_a_recorded_factory_asks_for_its_package(custom: str, given: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"theirs\.nets\.net; give packages=\[theirs\]"):
        recorded(custom, given)


def test_a_recorded_factory_is_proposed_where_its_package_is_named(custom: str) -> None:
    found = recorded(custom, ["packages=[others,theirs]"])
    assert found == ["model=custom", "model.factory=theirs.nets.net"]


@pytest.mark.parametrize("given", ["model.factory=mine.net", "model=small_cnn"])
def test_a_recorded_factory_gives_way_to_the_command_line(custom: str, given: str) -> None:
    assert "model.factory=theirs.nets.net" not in recorded(custom, [given])


def test_the_command_evaluates_a_run_of_someone_elses_network(tmp_path: Path) -> None:
    fitting = [each for each in TRAINING if not each.startswith("model=")]
    run(tmp_path / "run", *fitting, "model=custom", "model.factory=test_adopt.net")
    arguments = (*EVALUATE, f"checkpoint={tmp_path / 'run'}")
    env = {"PYTHONPATH": str(Path(__file__).parent)}
    refused = command(*arguments, cwd=tmp_path, env=env)
    assert refused.returncode == 2 and "packages=[test_adopt]" in refused.stderr
    found = command(*arguments, "packages=[test_adopt]", cwd=tmp_path, env=env)
    assert found.returncode == 0, found.stderr
    assert list(tmp_path.glob("outputs/digits-custom-pgd_at/*/results.json"))


@pytest.mark.parametrize(
    ("dataset", "wanted"),
    [
        ("x", "dataset='x' is no node"),
        ({"_target_": "advtrain.data.sets.digits"}, "epochs: Interpolation key"),
    ],
)
def test_a_stored_configuration_that_fits_nothing_is_told_with_its_file(
    tmp_path: Path, dataset: object, wanted: str
) -> None:
    run(tmp_path / "run", *TRAINING)
    content = torch.load(tmp_path / "run" / "checkpoints" / "best.pt", weights_only=True)
    content["config"]["dataset"] = dataset
    torch.save(content, tmp_path / "odd.pt")
    status = run(tmp_path / "a", *EVALUATE, f"checkpoint={tmp_path / 'odd.pt'}")
    assert status["exit_code"] == 2
    assert "odd.pt" in status["error"] and wanted in status["error"], status["error"]

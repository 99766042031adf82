"""Networks of other runs and of other people, and how many examples are certified."""

import json
from pathlib import Path

import pytest
import torch
from running import DATA, JUDGING, TRAINING, run
from torch import nn

from advtrain.config import ConfigError
from advtrain.models.linear import linear
from advtrain.runs import load_run

JUDGE = ("job=eval", "logger=none", "device=cpu", *DATA)
PLAIN = "{_target_: advtrain.models.custom.custom, _partial_: true, factory: test_runs.net, "
SOURCE = "eval.attacks.transfer.source"


def net() -> nn.Module:
    """Someone's network, which always says 3, and so leaves an attack without a gradient."""
    layer = nn.Linear(64, 10)
    nn.init.zeros_(layer.weight)
    layer.bias.data = torch.arange(10) * -1.0
    return nn.Sequential(nn.Flatten(), layer)


@pytest.fixture
def judged(tmp_path: Path) -> str:
    model = linear((1, 8, 8), 10, mean=None, std=None)
    torch.save(model.state_dict(), tmp_path / "judged.pt")
    torch.save(net().state_dict(), tmp_path / "theirs.pt")
    return f"checkpoint={tmp_path / 'judged.pt'}"


def theirs(directory: Path) -> dict:
    chosen = [each for each in TRAINING if not each.startswith("model=")]
    factory = ("model=custom", "model.factory=test_runs.net")
    return run(directory, *chosen, *factory)


def test_a_run_of_someone_elses_network_is_a_source_if_its_package_is_named(
    tmp_path: Path, judged: str
) -> None:
    assert theirs(tmp_path / "run")["state"] == "done"
    options = (*JUDGE, judged, "eval=transfer", f"{SOURCE}.checkpoint={tmp_path / 'run'}")
    refused = run(tmp_path / "a", *options)
    assert refused["exit_code"] == 2 and "best.pt: model.factory=test_runs.net" in refused["error"]
    status = run(tmp_path / "a", *options, "packages=[test_runs]")
    assert status["state"] == "done", status["error"]


def test_a_state_dict_is_a_source_with_a_network_to_put_it_in(tmp_path: Path, judged: str) -> None:
    options = (*JUDGE, judged, "eval=transfer", f"{SOURCE}.checkpoint={tmp_path / 'theirs.pt'}")
    refused = run(tmp_path / "a", *options)
    assert refused["exit_code"] == 2 and "by a key `model` beside" in refused["error"]
    node = f"{SOURCE}.model={PLAIN}arguments: {{}}}}"
    refused = run(tmp_path / "a", *options, node)
    assert refused["exit_code"] == 2 and f"{SOURCE}.model.factory=" in refused["error"]
    status = run(tmp_path / "a", *options, node, "packages=[test_runs]")
    assert status["state"] == "done", status["error"]
    rows = {row["name"]: row for row in json.loads(results(tmp_path / "a"))["rows"]}
    assert rows["transfer"]["accuracy"] == rows["clean"]["accuracy"] >= rows["pgd_linf"]["accuracy"]


def test_the_network_judged_can_lend_its_description_to_the_source(
    tmp_path: Path, judged: str
) -> None:
    given = f"{SOURCE}.{judged}"
    status = run(tmp_path / "a", *JUDGE, judged, "eval=transfer", given, SOURCE + ".model=${model}")
    assert status["state"] == "done", status["error"]


def test_load_run_calls_others_code_only_where_told(tmp_path: Path) -> None:
    theirs(tmp_path)
    with pytest.raises(ConfigError, match=r"best\.pt: model\.factory=test_runs\.net is refused"):
        load_run(tmp_path)
    model, _ = load_run(tmp_path, packages=["test_runs"])
    assert isinstance(model, nn.Sequential) and not model.training


@pytest.mark.parametrize(
    ("sizes", "examples"),
    [(("eval.size=3",), 3), (("eval.size=7", "eval.certify.size=4"), 4)],
)
def test_the_smaller_of_two_sizes_bounds_the_certificate(
    tmp_path: Path, judged: str, sizes: tuple[str, ...], examples: int
) -> None:
    status = run(tmp_path / "a", *JUDGE, *JUDGING, judged, *sizes)
    assert status["state"] == "done", status["error"]
    found = json.loads(results(tmp_path / "a"))
    assert found["certified"]["examples"] == examples
    assert found["dataset"]["n"] == int(sizes[0].partition("=")[2])


def results(directory: Path) -> str:
    return (directory / "results.json").read_text()

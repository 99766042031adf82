"""Networks of other runs and of other people, how many examples are certified, and in what."""

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from running import DATA, FITTING, JUDGING, TINY, TRAINING, configuration, run
from torch import nn

from advtrain import runs
from advtrain.config import ConfigError
from advtrain.models.linear import linear
from advtrain.runs import bfloat16, load_run, require_able, setting

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


@pytest.fixture
def two_cards(monkeypatch: Any) -> None:
    """Of these the second alone has units for bfloat16; the first is the current one."""
    current = [0]

    @contextmanager
    def device(chosen: torch.device) -> Iterator[None]:
        before = current[0]
        current[0] = current[0] if chosen.index is None else chosen.index
        yield
        current[0] = before

    supported = lambda including_emulation: current[0] == 1  # noqa: E731
    monkeypatch.setattr(torch.cuda, "device", device)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"card {device.index or 0}")


@pytest.mark.usefixtures("two_cards")
def test_of_several_cards_the_one_that_computes_is_asked_for_bfloat16() -> None:
    found = [bfloat16(torch.device(name)) for name in ("cuda:1", "cuda:0", "cuda")]
    assert found == [True, False, False]
    require_able(torch.device("cuda:1"), "bf16", False)
    with pytest.raises(ConfigError, match="precision=bf16: card 0 has no units"):
        require_able(torch.device("cuda:0"), "bf16", False)


LOW = "eval.certify.precision=bf16"


@pytest.mark.usefixtures("two_cards")
def test_certificates_in_bfloat16_are_refused_before_a_training_on_a_card_without_units(
    tmp_path: Path, capfd: Any
) -> None:
    status = run(tmp_path / "a", *TINY, LOW, "device=cuda:0")
    assert status["exit_code"] == 2 and not (tmp_path / "a" / "checkpoints").exists()
    assert status["error"] == (
        "eval.certify.precision=bf16: card 0 has no units for bfloat16. Use "
        "eval.certify.precision=fp32."
    )
    assert "Traceback" not in capfd.readouterr().err


def test_certificates_in_bfloat16_are_told_to_be_slow_on_a_processor_without_units(
    tmp_path: Path, monkeypatch: Any, caplog: Any
) -> None:
    monkeypatch.setattr(runs, "bfloat16", lambda device: False)
    with caplog.at_level(logging.WARNING, "advtrain"):
        for certified in (LOW, "eval.certify=null", "eval=none"):
            setting(configuration(*FITTING, certified), tmp_path, ())
        setting(configuration(*TINY, LOW, "job=train"), tmp_path, ())  # certifies nothing
    (told,) = [record.getMessage() for record in caplog.records]
    assert told.startswith("eval.certify.precision=bf16: this processor has no units")

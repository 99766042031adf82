"""Names in other people's files: the wide ResNets of TRADES and LWTA, torchvision's ResNets."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torchvision
from running import run
from torch import Tensor, nn

from advtrain.checkpoints import CheckpointError
from advtrain.models import layouts
from advtrain.models.lwta_networks import lwta_wide_resnet
from advtrain.models.network import Network
from advtrain.models.resnet import resnet18
from advtrain.models.wide_resnet import wide_resnet
from advtrain.runs import start_weights

SHAPE, RAW = (3, 32, 32), {"mean": None, "std": None}


def lwta(seed: int = 0) -> Network:
    torch.manual_seed(seed)
    draws = {"competitors": 2, "train_temperature": 0.67, "test_temperature": 0.01}
    return lwta_wide_resnet(SHAPE, 10, depth=16, width=1, **draws, **RAW)


def plain(seed: int = 0) -> Network:
    torch.manual_seed(seed)
    return wide_resnet(SHAPE, 10, depth=16, width=1, dropout=0.0, initialisation="he", **RAW)


def theirs(network: nn.Module, *, temperatures: bool) -> dict[str, Tensor]:
    """The state dict of `network` in the layout of the public files, with what those add.

    Written from the list of entries of Adversarial-LWTA-AutoAttack's ckpt.pt: names, not values.
    """
    state = {}
    for name, value in network.state_dict().items():
        stage, dot, rest = name.removeprefix("body.").partition(".")
        if stage.startswith("block"):
            rest = "layer." + rest.replace("shortcut", "convShortcut")
        state["fc." + rest if stage == "head" else stage + dot + rest] = value
    unused = {key.replace("block1", "sub_block1", 1): v + 1 for key, v in state.items() if
              key.startswith("block1")}  # fmt: skip
    blocks = {key.rpartition(".")[0].rpartition(".")[0] for key in state if "conv1" in key} - {""}
    if temperatures:
        names = [f"{block}.lwta{i}.temp" for block in (*blocks, "sub_block1.layer.0")
                 for i in (1, 2)]  # fmt: skip
        unused |= {name: torch.tensor(0.3) for name in (*names, "lwta.temp")}
    return state | unused


@pytest.mark.parametrize(
    ("factory", "temperatures"), [(lwta, True), (plain, False)], ids=["LWTA", "TRADES"]
)
def test_the_public_wide_resnets_load_and_what_was_left_out_is_said(
    factory: Callable[[int], Network], temperatures: bool, tmp_path: Path
) -> None:
    source, model = factory(0), factory(1)
    file = tmp_path / "ckpt.pt"
    content = theirs(source, temperatures=temperatures)
    assert (
        "block1.layer.0.conv1.weight" in content and "block2.layer.0.convShortcut.weight" in content
    )
    wrapped = {f"module.{name}": value for name, value in content.items()}
    state = content if temperatures else wrapped
    torch.save({"model_state_dict": state, "optimizer_state_dict": {}, "epoch": 100}, file)
    said = start_weights(model, str(file))
    assert "tensors of blocks that no image passes" in said
    assert ("learned temperatures" in said) == temperatures
    expected = source.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())


def test_our_own_names_stay_and_other_entries_are_still_refused(tmp_path: Path) -> None:
    model = plain()
    own = model.state_dict()
    assert layouts.translated(model, own).keys() == own.keys()
    assert layouts.remark(own, own) == ""
    content = theirs(model, temperatures=False) | {"extra.weight": torch.zeros(1)}
    torch.save(content, tmp_path / "more.pt")
    with pytest.raises(CheckpointError, match=r"it has in addition body\.extra\.weight"):
        start_weights(plain(1), str(tmp_path / "more.pt"))
    del content["extra.weight"], content["bn1.weight"]
    torch.save(content, tmp_path / "less.pt")
    with pytest.raises(CheckpointError, match=r"it lacks body\.bn1\.weight"):
        start_weights(plain(1), str(tmp_path / "less.pt"))


def test_constants_of_normalisation_are_not_invented(tmp_path: Path) -> None:
    torch.save(theirs(plain(), temperatures=False), tmp_path / "raw.pt")
    options = {"depth": 16, "width": 1, "dropout": 0.0, "initialisation": "he"}
    normalising = wide_resnet(SHAPE, 10, **options, mean=[0.5] * 3, std=[0.2] * 3)
    with pytest.raises(CheckpointError, match=r"it lacks normalise\.mean"):
        start_weights(normalising, str(tmp_path / "raw.pt"))


def test_the_head_may_be_left_fresh(tmp_path: Path) -> None:
    torch.save(theirs(lwta(), temperatures=True), tmp_path / "w.pt")
    model = lwta(1)
    head = model.head.weight.clone()
    start_weights(model, str(tmp_path / "w.pt"), fresh=["head"])
    assert torch.equal(model.head.weight, head)
    assert torch.equal(model.body.conv1.weight, lwta().body.conv1.weight)


def test_torchvisions_names_are_known_too(tmp_path: Path) -> None:
    torch.manual_seed(0)
    state = torchvision.models.resnet18(weights=None).state_dict()
    torch.save(state, tmp_path / "r.pth")
    model = resnet18(SHAPE, 1000, stem="imagenet", **RAW)
    assert start_weights(model, str(tmp_path / "r.pth")).endswith("r.pth")
    assert torch.equal(model.body.layer2[0].conv1.weight, state["layer2.0.conv1.weight"])


def test_files_that_fit_no_better_by_other_names_keep_theirs() -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    state = {"1.weight": torch.zeros(2, 2)}
    assert layouts.translated(model, state) == state


def test_an_evaluation_says_what_it_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:

    draws = {"competitors": 2, "train_temperature": 0.67, "test_temperature": 0.01}
    small = lwta_wide_resnet((1, 8, 8), 10, depth=10, width=1, **draws, **RAW)
    torch.save({"state_dict": theirs(small, temperatures=True)}, tmp_path / "w.pt")
    judged = (
        "job=eval",
        "logger=none",
        "device=cpu",
        "eval=quick",
        "eval.size=4",
        "eval.attacks={}",
    )
    options = ("model=lwta_wrn_34_1", "model.depth=10", "dataset.test_size=20")
    status = run(
        tmp_path / "run", *judged, "eval.attacks={}", *options, f"checkpoint={tmp_path / 'w.pt'}"
    )
    assert status["state"] == "done", status["error"]
    assert "learned temperatures" in caplog.text

"""State dicts in the layouts that people publish."""

from pathlib import Path

import pytest
import torch
from torch import nn

from advtrain import checkpoints
from advtrain.checkpoints import CheckpointError

FILE = Path("theirs.pt")


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))


def equal(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(value, b.state_dict()[key]) for key, value in a.state_dict().items())


def test_files_from_before_batch_norm_counted_batches_are_read() -> None:
    theirs, ours = network(), network()
    state = {key: value for key, value in theirs.state_dict().items() if "batches" not in key}
    checkpoints.restore(ours, state, FILE)
    assert equal(theirs, ours)


def test_any_other_buffer_that_is_missing_is_named() -> None:
    state = network().state_dict()
    del state["1.running_var"], state["1.num_batches_tracked"]
    with pytest.raises(CheckpointError, match=r"it lacks 1\.running_var\. Choose"):
        checkpoints.restore(network(), state, FILE)


@pytest.mark.parametrize("entry", checkpoints.WEIGHTS)
def test_the_state_dict_is_found_beside_what_else_people_save(tmp_path: Path, entry: str) -> None:
    theirs, ours = network(), network()
    state = {f"module.{key}": value for key, value in theirs.state_dict().items()}
    torch.save({entry: state, "acc": 93.1, "epoch": 12}, tmp_path / "w.pt")
    checkpoints.load_weights(ours, tmp_path / "w.pt")
    assert equal(theirs, ours)

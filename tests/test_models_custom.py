"""model=custom: anyone's module, and what is said when it cannot be had."""

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from advtrain.models.custom import custom

THEIRS = """
from torch import nn

NUMBER = 3

def net(width=4):
    return nn.Sequential(nn.Flatten(), nn.Linear(12, width), nn.ReLU(), nn.Linear(width, 5))

def told(shape, num_classes, *, bias):
    return nn.Sequential(nn.Flatten(), nn.Linear(shape[0] * shape[1] * shape[2], num_classes, bias))

def wrong():
    return "net"

def broken():
    raise KeyError("their own")
"""


@pytest.fixture
def theirs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "theirs_for_a_test.py").write_text(THEIRS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])
    monkeypatch.delitem(sys.modules, "theirs_for_a_test", raising=False)
    return "theirs_for_a_test"


def test_a_module_of_the_working_directory_is_built_with_its_arguments(theirs: str) -> None:
    model = custom((3, 2, 2), 5, factory=f"{theirs}.net", arguments={"width": 9})
    assert isinstance(model, nn.Sequential) and model[1].out_features == 9
    assert model(torch.rand(2, 3, 2, 2)).shape == (2, 5)


def test_a_factory_that_asks_is_told_the_shape_and_the_classes(theirs: str) -> None:
    model = custom((3, 2, 2), 5, factory=f"{theirs}.told", arguments={"bias": False})
    assert model[1].weight.shape == (5, 12) and model[1].bias is None
    model = custom(
        (3, 2, 2), 5, factory=f"{theirs}.told", arguments={"bias": True, "num_classes": 7}
    )
    assert model[1].weight.shape == (7, 12)


def test_a_factory_of_this_project_is_no_exception() -> None:
    model = custom(
        (1, 8, 8), 10, factory="advtrain.models.small.small_cnn",
        arguments={"mean": None, "std": None},
    )  # fmt: skip
    assert model(torch.rand(2, 1, 8, 8)).shape == (2, 10)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("{}.absent", {}, "cannot be imported: .*absent"),
        ("no_such_package.net", {}, "cannot be imported: No module named 'no_such_package'"),
        ("net", {}, "write it as package.module.function"),
        ("{}.NUMBER", {}, "is of type int, which cannot be called"),
        ("{}.wrong", {}, "returned a str; it must return a torch.nn.Module"),
        ("{}.net", {"depth": 3}, "got an unexpected keyword argument 'depth'.*model.arguments"),
        ("{}.told", {}, "missing a required.*'bias'"),
    ],
)
def test_what_cannot_be_built_is_explained_in_one_line(
    theirs: str, name: str, arguments: dict[str, int], message: str
) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        custom((3, 2, 2), 5, factory=name.format(theirs), arguments=arguments)
    assert "\n" not in str(caught.value) and "model.factory" in str(caught.value)


def test_errors_of_the_factory_itself_pass_through(theirs: str) -> None:
    with pytest.raises(KeyError, match="their own"):
        custom((3, 2, 2), 5, factory=f"{theirs}.broken", arguments={})

"""Shared fixtures: a trained network on the digits, and a witness that attacks leave no trace."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from zlib import crc32

import pytest
import torch
from torch import Tensor, nn


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


def pytest_configure() -> None:
    """One thread: the tensors are small, and threads on busy cores wait for each other. float32 is
    float32 on a GPU, too, as in every run.
    """
    torch.set_num_threads(1)
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Draws of a test are its own, whichever ran before it in this process.

    A seed that no code sets, so that `untouched` sees one that does.
    """
    torch.manual_seed(crc32(item.nodeid.encode()))


class Digits(NamedTuple):
    """A small convolutional network, and 400 digits (400, 1, 8, 8) that it has not seen."""

    model: nn.Module
    x: Tensor
    y: Tensor


@pytest.fixture(scope="session")
def digits() -> Digits:
    """Trained without attacks for about a second; the same weights each time."""
    from sklearn.datasets import load_digits

    data = load_digits()
    x = torch.tensor(data.images / 16.0, dtype=torch.float32).unsqueeze(1)
    y = torch.tensor(data.target, dtype=torch.int64)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        order = torch.randperm(len(x))
        test, train = order[:400], order[400:]
        model = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(8, 16, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(256, 10),
        )
        optimizer = torch.optim.Adam(model.parameters(), lr=4e-3)
        for _ in range(6):
            for batch in train[torch.randperm(len(train))].split(64):
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
                optimizer.step()
    optimizer.zero_grad()
    return Digits(model.eval(), x[test], y[test])


@pytest.fixture
def untouched() -> Iterator[Callable[[nn.Module], nn.Module]]:
    """`untouched(model)` returns `model`, and asserts after the test that it is as it was.

    Weights, buffers, gradients, modes, `requires_grad`; and nobody reseeded the global generator.
    """
    seen: list[tuple[nn.Module, dict[str, Any], int]] = []

    def watch(model: nn.Module) -> nn.Module:
        seen.append((model, _state(model), torch.initial_seed()))
        return model

    yield watch
    for model, before, seed in seen:
        assert torch.initial_seed() == seed, "the global generator was reseeded"
        after = _state(model)
        assert before.keys() == after.keys()
        for name, value in before.items():
            same = torch.equal(value, after[name]) if isinstance(value, Tensor) else None
            assert value == after[name] if same is None else same, f"{name} has changed"


def _state(model: nn.Module) -> dict[str, Any]:
    state: dict[str, Any] = {}
    for name, module in model.named_modules():
        state[f"mode of {name}"] = module.training
    for name, parameter in model.named_parameters():
        state[f"weights {name}"] = parameter.detach().clone()
        state[f"requires_grad of {name}"] = parameter.requires_grad
        state[f"gradient of {name}"] = (
            None if parameter.grad is None else parameter.grad.detach().clone()
        )
    for name, buffer in model.named_buffers():
        state[f"buffer {name}"] = buffer.clone()
        state[f"place of buffer {name}"] = id(buffer)
    return state


@pytest.fixture
def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs end without tables, page and figures, which take longer than small ones themselves."""
    monkeypatch.setattr("advtrain.program.write_run", lambda directory, *, state: None)

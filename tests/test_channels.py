"""Channels last: the same network, sooner; and optimizers that read memory as it lies."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from advtrain import channels, optimizers
from advtrain.channels import channels_last, lying_well
from advtrain.models.resnet import cifar_resnet
from advtrain.models.small import mnist_cnn, small_cnn
from advtrain.precision import low_precision

RAW: dict[str, Any] = {"mean": None, "std": None}
SHAPE = (3, 8, 8)


def plain() -> nn.Module:
    torch.manual_seed(0)
    return small_cnn(SHAPE, 10, **RAW)


def optimizer(model: nn.Module, name: str = "sgd") -> torch.optim.Optimizer:
    more = {"momentum": 0.9, "nesterov": True} if name == "sgd" else {"betas": [0.9, 0.99]}
    decay = {"weight_decay": 1e-3, "no_decay_on_norm": False}
    return getattr(optimizers, name)(model.parameters(), lr=1e-2, **decay, **more)


def last(model: nn.Module) -> bool:
    kernel = next(each for each in model.parameters() if each.ndim == 4)
    return kernel.is_contiguous(memory_format=torch.channels_last) and not kernel.is_contiguous()


def train(model: nn.Module, steps: torch.optim.Optimizer, batches: int, first: int = 0) -> None:
    for index in range(first, first + batches):
        draws = torch.Generator().manual_seed(index)
        x, y = torch.rand(16, *SHAPE, generator=draws), torch.arange(16) % 10
        steps.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        steps.step()


def close(a: nn.Module, b: nn.Module) -> None:
    for mine, theirs in zip(a.state_dict().values(), b.state_dict().values(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-5)


def test_networks_of_convolutions_turn_and_those_of_linear_layers_stay() -> None:
    assert last(channels_last(plain(), SHAPE))
    assert last(channels_last(cifar_resnet((3, 32, 32), 10, depth=8, **RAW), (3, 32, 32)))
    assert not last(channels_last(mnist_cnn((1, 28, 28), 10, **RAW), (1, 28, 28)))
    assert channels_last(nn.Linear(3, 2), (3, 1, 1)).weight.is_contiguous()


def test_code_that_asks_maps_to_lie_otherwise_stays_as_it_is() -> None:
    class Views(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 16, 3), nn.Linear(96, 2)

        def forward(self, x: Tensor) -> Tensor:
            maps = self.conv(x)
            return self.head(maps.view(len(x), 96, 6).mean(2))

    model = Views()
    assert channels_last(model, SHAPE) is model
    assert model.conv.weight.is_contiguous()


def test_it_asks_nothing_of_the_network_itself_and_uses_up_no_draws(untouched: Any) -> None:
    model = nn.Sequential(plain(), nn.Dropout())
    before = torch.get_rng_state()
    channels_last(untouched(model), SHAPE)
    assert torch.equal(before, torch.get_rng_state()) and last(model)


@pytest.mark.parametrize("low", [False, True])
def test_logits_and_gradients_are_the_same_up_to_rounding(low: bool) -> None:
    exact = low_precision(plain()) if low else plain()
    model = channels_last(copy.deepcopy(exact), SHAPE)
    found = []
    for network in (exact, model):
        x = torch.rand(8, *SHAPE, generator=torch.Generator().manual_seed(1)).requires_grad_()
        logits = network(x)
        (gradient,) = torch.autograd.grad(logits.square().sum(), x)
        found.append((logits.detach(), gradient))
    for a, b in zip(*found, strict=True):
        assert (a - b).norm() <= (0.03 if low else 1e-5) * a.norm()


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_training_is_the_same_in_either_order(name: str) -> None:
    exact = plain()
    model = channels_last(copy.deepcopy(exact), SHAPE)
    train(exact, optimizer(exact, name), 4)
    train(model, optimizer(model, name), 4)
    close(model, exact)
    assert last(model)


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_moments_of_a_checkpoint_in_the_other_order_fit(name: str) -> None:
    exact = plain()
    steps = optimizer(exact, name)
    train(exact, steps, 3)
    model = channels_last(plain(), SHAPE)
    model.load_state_dict(exact.state_dict())
    others = optimizer(model, name)
    others.load_state_dict(copy.deepcopy(steps.state_dict()))
    train(exact, steps, 3, first=3)
    train(model, others, 3, first=3)
    assert last(model)
    close(model, exact)


def test_a_gradient_in_another_order_than_its_weights_is_laid_out_anew() -> None:
    weights = torch.randn(4, 3, 3, 3)
    each = nn.Parameter(weights.clone(memory_format=torch.channels_last))
    each.grad = torch.randn(4, 3, 3, 3)
    expected = weights - 1e-2 * each.grad
    model = nn.ParameterList([each])
    steps = optimizers.sgd(
        model.parameters(),
        lr=1e-2,
        momentum=0.0,
        weight_decay=0.0,
        nesterov=False,
        no_decay_on_norm=False,
    )
    steps.step()
    torch.testing.assert_close(each.detach(), expected)


def test_kernels_lie_as_before_after_a_while_channels_last() -> None:
    model = plain()
    before = [(each, each.data_ptr(), each.detach().clone()) for each in model.parameters()]
    with pytest.raises(KeyError), lying_well(model, SHAPE) as inside:
        assert inside is model and last(model)
        raise KeyError
    assert not last(model)
    for each, place, values in before:
        assert each.data_ptr() == place and torch.equal(each, values)


def test_kernels_that_lie_so_already_are_not_asked_about_again(monkeypatch: Any) -> None:
    model = channels_last(plain(), SHAPE)
    monkeypatch.setattr(channels, "_bears", None)
    assert channels_last(model, SHAPE) is model and last(model)


@pytest.mark.gpu
def test_on_a_gpu_only_low_precision_turns() -> None:
    assert not last(channels_last(plain().cuda(), SHAPE))
    assert last(channels_last(low_precision(plain()).cuda(), SHAPE))

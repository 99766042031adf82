import pytest
import torch
from torch import nn

from advtrain.modes import crafting, frozen_statistics


def network() -> nn.Module:
    """With a frozen layer, a batch norm kept in evaluation mode, and gradients lying about."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.BatchNorm1d(5), nn.Linear(5, 3)
    )
    model[0].requires_grad_(False)
    model[4].weight.grad = torch.ones(3, 5)
    model[3].eval()
    return model


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_crafting_sets_the_mode_and_freezes_then_restores_each_part(mode, untouched) -> None:
    model = untouched(network())
    with crafting(model, mode):
        assert all(module.training is (mode == "train") for module in model.modules())
        assert not any(parameter.requires_grad for parameter in model.parameters())


def test_crafting_restores_after_an_exception(untouched) -> None:
    model = untouched(network())
    with pytest.raises(ZeroDivisionError), crafting(model, "eval"):
        _ = 1 / 0


def test_crafting_in_train_mode_lets_statistics_move() -> None:
    model = network()
    before = model[1].running_mean.clone()
    with crafting(model, "train"):
        model(torch.rand(8, 6))
    assert not torch.equal(model[1].running_mean, before)


def test_crafting_refuses_other_modes() -> None:
    with pytest.raises(ValueError, match="craft_mode is 'test'; allowed are eval and train"):
        crafting(network(), "test").__enter__()


def test_frozen_statistics_normalise_with_the_batch_and_stay(untouched) -> None:
    model, x = untouched(network()), torch.rand(8, 6)
    with frozen_statistics(model):
        inside = model(x)
        assert not torch.equal(inside, model.eval()(x))
        model.train()
        model[3].eval()
        assert torch.equal(inside, model(x))


def test_frozen_statistics_hold_still_any_buffer_of_any_module(untouched) -> None:
    class Counter(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            return x

    spectral = nn.utils.parametrizations.spectral_norm(nn.Linear(6, 5))
    norm = nn.InstanceNorm1d(5, track_running_stats=True)
    shared = Counter()
    model = untouched(nn.Sequential(shared, spectral, shared, norm).train())
    with pytest.raises(ZeroDivisionError), frozen_statistics(model):
        model(torch.rand(8, 6).unsqueeze(1).expand(8, 5, 6))
        _ = 1 / 0


def test_a_graph_made_under_frozen_statistics_may_be_differentiated_outside() -> None:
    model, x = network(), torch.rand(8, 6)
    with frozen_statistics(model):
        loss = model(x).square().sum()
    model(x)
    loss.backward()

"""Rates per part of a network; fused steps and decay are in test_schedules."""

import pytest
import torch
from torch import nn

from advtrain import optimizers
from advtrain.averages import Last
from advtrain.defenses.standard import Standard
from advtrain.descents.plain import Plain
from advtrain.schedules import Constant, Staircase
from advtrain.training import Method, TrainState, epochs
from advtrain.types import Moment

SETTINGS = {
    "sgd": {"momentum": 0.9, "nesterov": True},
    "adam": {"betas": [0.9, 0.99]},
    "adamw": {"betas": [0.9, 0.99]},
}
REFERENCE = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}


def network() -> nn.Module:
    torch.manual_seed(0)
    body = nn.Sequential(nn.Linear(5, 4), nn.LayerNorm(4), nn.Linear(4, 4))
    return nn.Sequential(body, nn.Tanh(), nn.Linear(4, 3))


def make(name, model, *, lr=0.1, decay=1e-2, spared=False, rates=None):
    more = {"weight_decay": decay, "no_decay_on_norm": spared, "rates": rates}
    return getattr(optimizers, name)(model.named_parameters(), lr=lr, **more, **SETTINGS[name])


@pytest.mark.parametrize("name", REFERENCE)
def test_steps_are_pytorchs_and_need_no_compiler(name):
    ours, theirs = network(), network()
    kind = REFERENCE[name]
    settings = dict(SETTINGS[name], lr=0.1, weight_decay=1e-2)
    pair = make(name, ours), kind(theirs.parameters(), fused=True, **settings)
    for batch, _ in Batches().epoch(0):
        for model, optimizer in zip((ours, theirs), pair, strict=True):
            optimizer.zero_grad()
            model(batch).square().mean().backward()
            optimizer.step()
    assert all(map(torch.equal, ours.parameters(), theirs.parameters()))
    again = make(name, ours)
    again.load_state_dict(pair[0].state_dict())
    assert again.state_dict()["state"].keys() == pair[0].state_dict()["state"].keys()
    assert isinstance(again, kind) and type(again).__name__ == kind.__name__


class Batches:
    def __len__(self):
        return 4

    def epoch(self, index, skip=0):
        draws = torch.Generator().manual_seed(index)
        whole = [(torch.randn(6, 5, generator=draws), torch.arange(6) % 3) for _ in range(4)]
        return iter(whole[skip:])


def fit(model, optimizer, rates, total=2):
    state = TrainState(model, optimizer, Last(model, 8), Standard())
    method = Method(Plain(None), {}, rates, seed=0)
    quiet = {"stop": lambda: None, "watch": lambda logs, examples: None, "check_every": 1}
    return list(epochs(state, Batches(), method, total=total, **quiet))


def test_the_longest_name_that_fits_sets_the_factor():
    optimizer = make("sgd", network(), spared=True, rates={"0": 0.5, "0.2": 0.25, "2": 10})
    found = {(g["weight_decay"], g["factor"]): len(g["params"]) for g in optimizer.param_groups}
    assert found == {
        **{(1e-2, 0.5): 1, (0.0, 0.5): 3, (1e-2, 0.25): 1, (0.0, 0.25): 1},
        **{(1e-2, 10): 1, (0.0, 10): 1},
    }
    assert all(g["lr"] == pytest.approx(0.1 * g["factor"]) for g in optimizer.param_groups)


@pytest.mark.parametrize("name", REFERENCE)
def test_rates_follow_the_schedule_as_two_groups_of_pytorch_would(name):
    """Eight steps with a drop to a tenth in the middle; the largest difference seen is 9e-8."""
    ours, theirs = network(), network()
    lr = 0.1 if name == "sgd" else 1e-2
    drop = Staircase(base=lr, factor=0.1, drops=[0.5], unit="progress")
    reports = fit(ours, make(name, ours, lr=lr, rates={"2": 10}), {"lr": drop})
    assert [report["lr"] for report in reports] == pytest.approx([lr, lr / 10])
    more = {**SETTINGS[name], "weight_decay": 1e-2, "foreach": False}
    groups = [{"params": theirs[0].parameters()}, {"params": theirs[2].parameters()}]
    plain = REFERENCE[name](groups, lr=lr, **more)
    for step in range(8):
        x, y = list(Batches().epoch(step // 4))[step % 4]
        for group, factor in zip(plain.param_groups, (1, 10), strict=True):
            group["lr"] = factor * drop(Moment(step, step / 4, step / 8))
        plain.zero_grad()
        nn.functional.cross_entropy(theirs(x), y).backward()
        plain.step()
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, other, atol=1e-6, rtol=1e-5)


def test_without_rates_the_groups_are_those_of_decay_alone():
    for spared, expected in ((False, [8]), (True, [3, 5])):
        optimizer = make("sgd", network(), spared=spared)
        assert [len(group["params"]) for group in optimizer.param_groups] == expected
        assert {group["factor"] for group in optimizer.param_groups} == {1.0}


def test_a_schedule_reaches_optimizers_that_know_no_factors():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 1.0)
    (report, _) = fit(model, optimizer, {"lr": Constant(0.25)})
    assert report["lr"] == 0.25 == optimizer.param_groups[0]["lr"]


def test_the_state_of_an_optimizer_with_rates_can_be_loaded():
    model, other = network(), network()
    first = make("adamw", model, rates={"2": 10})
    fit(model, first, {"lr": Constant(0.01)})
    second = make("adamw", other, rates={"2": 10})
    second.load_state_dict(first.state_dict())
    assert [group["factor"] for group in second.param_groups] == [1.0, 10]


@pytest.mark.parametrize("name", REFERENCE)
def test_options_are_those_of_the_configuration_and_moments_and_rates_those_saved(name):
    model, optimizer = network(), make(name, network(), rates={"2": 10})
    saved = make(name, model, rates={"2": 10})
    fit(model, saved, {"lr": Constant(0.01)})
    theirs = saved.state_dict()
    for group in theirs["param_groups"]:
        group.update(maximize=True, weight_decay=0.7, betas=(0.0, 0.0), nesterov=False, evil=1)
    before = [{**group} for group in optimizer.param_groups]
    optimizer.load_state_dict(theirs)
    for group, own, given in zip(
        optimizer.param_groups, before, saved.state_dict()["param_groups"], strict=True
    ):
        assert {**group, "lr": 0} == {**own, "lr": 0} and group["lr"] == given["lr"] != own["lr"]
    for mine, other in zip(optimizer.state.values(), saved.state.values(), strict=True):
        assert mine.keys() == other.keys() != set()
        assert all(torch.equal(mine[key], other[key]) for key in mine)


def test_rates_of_parts_that_are_not_there_are_refused():
    with pytest.raises(ValueError, match=r"^rates: this network has no weights called 3\. They"):
        make("sgd", network(), rates={"3": 10})
    with pytest.raises(ValueError, match="rates goes by names"):
        optimizers.sgd(
            network().parameters(),
            **{"lr": 0.1, "weight_decay": 0, "no_decay_on_norm": False, "rates": {"2": 10}},
            **SETTINGS["sgd"],
        )

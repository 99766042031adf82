"""Parts of a network that training leaves alone: weights, statistics, for how long, for whom."""

import os
import signal
from functools import partial

import pytest
import torch
from running import TRAINING, run
from torch import nn

from advtrain import checkpoints
from advtrain.attacks.pgd import fgsm
from advtrain.averages import Ema, Last, Swa
from advtrain.defenses.free import Free
from advtrain.defenses.pgd_at import PgdAt
from advtrain.descents.awp import Awp
from advtrain.descents.plain import Plain
from advtrain.freezing import Freezing
from advtrain.modes import crafting
from advtrain.optimizers import sgd
from advtrain.runs import load_run
from advtrain.threat import Linf
from advtrain.training import Method, TrainState, epochs

SMALL = (*(each for each in TRAINING if each != "model=linear"), "model=small_cnn")
STEPS = 3
ATTACK = partial(fgsm, threat=Linf(0.1))
METHODS = {
    "crafting in evaluation mode": lambda: PgdAt(ATTACK, "eval", warmup=0.0),
    "crafting in training mode": lambda: PgdAt(ATTACK, "train", warmup=0.0),
    "free": lambda: Free(Linf(0.1), 0.1),
}


def network() -> nn.Module:
    """Two convolutions with batch norm and a head; statistics that no batch here has."""
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3)),
        *(nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)),
    )
    for layer in (model[1], model[4]):
        layer.running_mean.fill_(0.3)
        layer.running_var.fill_(2.0)
    return model


class Images:
    """Three batches of 8, the same in every epoch."""

    def __len__(self):
        return STEPS

    def epoch(self, index, skip=0):
        draws = torch.Generator().manual_seed(7)
        whole = [
            (torch.rand(8, 1, 8, 8, generator=draws), torch.arange(8) % 3) for _ in range(STEPS)
        ]
        return iter(whole[skip:])


def fit(model, names, limit, total, *, defense=None, descent=None, average=Last, watch=None):
    """Train for `total` epochs; `watch(state)` after each."""
    freezing = Freezing(model, names, limit)
    freezing.at(0)
    optimizer = sgd(
        model.named_parameters(),
        **{"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-2},
        **{"nesterov": False, "no_decay_on_norm": False},
    )
    defense = defense or METHODS["crafting in evaluation mode"]()
    state = TrainState(model, optimizer, average(model, total * STEPS), defense)
    method = Method(descent or Plain(None), {}, {}, seed=0, freezing=freezing)
    quiet = {"stop": lambda: None, "watch": lambda logs, examples: None, "check_every": 1}
    for _ in epochs(state, Images(), method, total=total, **quiet):
        if watch is not None:
            watch(state)
    return state


def copied(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def changed(model, before):
    now = model.state_dict()
    return {name for name in before if not torch.equal(before[name], now[name])}


@pytest.mark.parametrize("name", METHODS)
def test_weights_and_statistics_of_frozen_parts_stay_and_the_others_move(name):
    model = network()
    before = copied(model)
    fit(model, ["0", "1"], None, 2, defense=METHODS[name]())
    moved = changed(model, before)
    assert moved == {each for each in before if each.split(".")[0] not in ("0", "1")}


def test_frozen_norms_normalise_with_their_statistics_in_every_mode():
    model = network()
    Freezing(model, ["1"], None).at(0)
    x = torch.rand(8, 4, 6, 6)
    expected = model[1].eval()(x)
    model.train()
    assert torch.equal(model[1](x), expected) and model[4].training
    with crafting(model, "train"):
        assert torch.equal(model[1](x), expected) and model[4].training
    assert not model[1].training and not model[1].weight.requires_grad


def test_weight_perturbation_leaves_frozen_weights_alone():
    model, seen = network(), []
    before = copied(model)
    model[0].register_forward_pre_hook(lambda layer, _: seen.append(layer.weight.detach().clone()))
    fit(model, ["0"], None, 1, descent=Awp(0.1, 0.0, Plain(None)))
    assert all(torch.equal(each, before["0.weight"]) for each in seen)
    assert "0.weight" not in changed(model, before) and "3.weight" in changed(model, before)


@pytest.mark.parametrize(
    "average",
    [
        partial(Swa, start=0.0, every=1),
        partial(Ema, decay=0.5, start=0.0, ramp=False, buffers="averaged"),
    ],
)
def test_averages_keep_frozen_statistics_where_they_estimate_others_anew(average):
    model, before = network(), copied(network())
    state = fit(model, ["0", "1"], None, 2, average=average)
    state.average.prepare(Images().epoch(0))
    mean = state.average.model
    for name in before:
        if name.split(".")[0] in ("0", "1"):
            torch.testing.assert_close(mean.state_dict()[name], before[name])
    assert not torch.equal(mean[4].running_mean, before["4.running_mean"])
    assert not mean[1].training


def test_a_copy_made_while_parts_were_held_estimates_them_once_they_are_free():
    model = network()
    state = fit(model, ["1"], 1, 2, average=partial(Swa, start=0.5, every=1))
    state.average.prepare(Images().epoch(0))
    fresh = network()
    fresh.load_state_dict(state.average.model.state_dict())
    expected = torch.cat([fresh[0](x) for x, _ in Images().epoch(0)]).mean((0, 2, 3))
    torch.testing.assert_close(state.average.model[1].running_mean, expected, atol=1e-5, rtol=1e-5)


def test_frozen_for_one_epoch_means_that_epoch_and_no_more():
    model, seen = network(), []
    before = copied(model)
    fit(model, ["0", "1", "3", "4"], 1, 2, watch=lambda state: seen.append(changed(model, before)))
    assert seen[0] == {"7.weight", "7.bias"}
    assert seen[1] == before.keys()


def test_the_first_step_of_a_part_set_free_is_that_of_a_plain_optimizer():
    """Momentum begins for such a part when it begins to move: as PyTorch's loop over tensors."""
    fused, looped = network(), network()
    fit(fused, ["0", "1"], 1, 3)
    freezing = Freezing(looped, ["0", "1"], 1)
    settings = {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-2}
    optimizer = torch.optim.SGD(looped.parameters(), **settings, foreach=False)
    state = TrainState(looped, optimizer, Last(looped, 9), METHODS["crafting in evaluation mode"]())
    method = Method(Plain(None), {}, {}, seed=0, freezing=freezing)
    quiet = {"stop": lambda: None, "watch": lambda logs, examples: None, "check_every": 1}
    list(epochs(state, Images(), method, total=3, **quiet))
    for mine, theirs in zip(fused.parameters(), looped.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-4)


def test_no_gradient_is_computed_for_what_is_frozen():
    model = network()
    fit(model, ["0", "1", "3", "4"], None, 1)
    assert [p.grad is None for p in model.parameters()] == [True] * 8 + [False] * 2


@pytest.mark.parametrize(
    ("names", "limit", "message"),
    [
        (["conv"], None, r"^freeze: this network has no weights called conv\. They are in 0, "),
        (["2"], None, "no weights called 2"),
        ([str(i) for i in (0, 1, 3, 4, 7)], None, "leaves no weights to train"),
        ([], 2, "freeze_epochs is 2, and freeze names nothing"),
    ],
)
def test_freezing_that_cannot_be_meant_is_refused(names, limit, message):
    with pytest.raises(ValueError, match=message):
        Freezing(network(), names, limit)


def test_the_nearest_name_is_told(tmp_path):
    status = run(tmp_path, *SMALL, "freeze=[heads]")
    assert status["exit_code"] == 2 and "Did you mean head?" in status["error"]


def test_names_are_of_parts_and_not_of_their_first_letters():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer1, self.layer10 = nn.Linear(2, 2), nn.Linear(2, 2)

    model = Net()
    Freezing(model, ["layer1"], None).at(0)
    assert [p.requires_grad for p in model.parameters()] == [False, False, True, True]


def test_a_run_with_frozen_parts_goes_on_bit_for_bit(tmp_path, monkeypatch):
    """Stopped in the epoch in which the part is held, and in the one after it."""
    from advtrain import training

    options = (*SMALL, "freeze=[body]", "freeze_epochs=1", "optimizer.rates={head: 2}")
    assert run(tmp_path / "whole", *options)["state"] == "done"
    whole = checkpoints.load(tmp_path / "whole" / "checkpoints" / "last.pt")["model"]
    for step in (1, 4):
        directory, real = tmp_path / f"stopped{step}", training.train_step

        def stopping(state, *args, real=real, step=step):
            logs = real(state, *args)
            if state.step == step:
                os.kill(os.getpid(), signal.SIGTERM)
            return logs

        monkeypatch.setattr(training, "train_step", stopping)
        with pytest.raises(SystemExit):
            run(directory, *options)
        monkeypatch.setattr(training, "train_step", real)
        assert run(directory, *options)["state"] == "done"
        again = checkpoints.load(directory / "checkpoints" / "last.pt")["model"]
        assert all(torch.equal(whole[name], again[name]) for name in whole)


def test_a_run_freezes_what_it_was_told_and_its_network_is_an_ordinary_one(tmp_path):
    assert run(tmp_path / "a", *SMALL, "freeze=[body]", "average=ema")["state"] == "done"
    model, config = load_run(tmp_path / "a", which="last")
    assert config["freeze"] == ["body"]
    assert all(p.requires_grad for p in model.parameters()) and "train" not in vars(model.body)
    moments = [value for name, value in model.state_dict().items() if "running_mean" in name]
    assert moments and not any(value.any() for value in moments)  # as initialised

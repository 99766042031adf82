from math import cos, pi

import pytest
import torch
from running import configuration
from torch import nn

from advtrain import optimizers
from advtrain.config import ConfigError
from advtrain.schedules import Constant, Cosine, Epochwise, Piecewise, Staircase, cyclic
from advtrain.types import Moment

EPOCHS = 100
UP_40 = ([0, 40, 80, 86, 86, 91, 91], [0, 0.1, 0.02, 0.02, 0.002, 0.002, 0.0002])
UP_20 = ([0, 20, 35, 41, 41, 46, 46], [0, 0.1, 0.025, 0.025, 0.0025, 0.0025, 0.00025])

END_OF_EPOCHS = {  # schedule: rate at the end of epochs counted from 0, from the released scripts
    "nuat": (*UP_40, {0: 0.0025, 39: 0.1, 60: 0.058, 79: 0.02, 85: 0.002, 90: 2e-4, 99: 2e-4}),
    "nuat momentum": (
        [0, 40, 80],
        [0.9, 0.8, 0.88],
        {0: 0.8975, 39: 0.8, 60: 0.842, 79: 0.88, 85: 0.88, 90: 0.88, 99: 0.88},
    ),
    "nuat-wa": ([0, 25, 100], [0, 0.1, 0], {0: 0.004, 24: 0.1, 50: 0.065333, 99: 0}),
    "nuat-wa momentum": ([0, 25, 100], [0.9, 0.8, 0.9], {0: 0.896, 24: 0.8, 50: 0.8347, 99: 0.9}),
    "nuat2": (*UP_20, {0: 0.005, 19: 0.1, 34: 0.025, 40: 0.0025, 45: 0.00025}),
    "nuat2 momentum": ([0, 20, 35], [0.9, 0.8, 0.875], {0: 0.895, 19: 0.8, 34: 0.875, 45: 0.875}),
    "nuat2-wa": ([0, 20, 80], [0, 0.1, 0], {0: 0.005, 19: 0.1, 20: 0.098333, 79: 0}),
    "nuat2-wa momentum": ([0, 20, 80], [0.9, 0.8, 0.9], {0: 0.895, 19: 0.8, 20: 0.8017, 79: 0.9}),
    "fast": ([0, 7.5, 15], [0, 0.2, 0], {0: 0.026667, 6: 0.186667, 7: 0.186667, 14: 0}),
    "fast momentum": ([0, 7.5, 15], [0.9, 0.8, 0.9], {0: 0.8867, 6: 0.8067, 7: 0.8067, 14: 0.9}),
}


def at(epoch: float = 0.0, progress: float = 0.0, step: int = 0) -> Moment:
    return Moment(step, epoch, progress)


@pytest.mark.parametrize("name", END_OF_EPOCHS)
def test_piecewise_gives_the_rates_of_the_released_scripts(name):
    points, values, expected = END_OF_EPOCHS[name]
    schedule = Piecewise(points, values, "epoch")
    for epoch, rate in expected.items():
        assert schedule(at(epoch=epoch + 1.0)) == pytest.approx(rate, abs=6e-7 + 5e-5 * rate)


def test_piecewise_is_flat_outside_its_points_and_jumps_where_two_are_equal():
    schedule = Piecewise([10, 20, 20, 30], [1.0, 2.0, 5.0, 6.0], "step")
    rates = [schedule(at(step=step)) for step in (0, 10, 15, 19, 20, 25, 30, 99)]
    assert rates == [1, 1, 1.5, 1.9, 5, 5.5, 6, 6]


@pytest.mark.parametrize(("points", "values"), [([], []), ([0, 1], [1.0]), ([1, 0], [1.0, 2.0])])
def test_piecewise_refuses_what_is_no_function(points, values):
    with pytest.raises(ValueError, match="Piecewise"):
        Piecewise(points, values, "epoch")


def test_cyclic_is_the_triangle_of_fast_adversarial_training_at_every_step():
    triangle = cyclic(base=0.2, peak=0.5, start=0.0, end=0.0)
    assert [triangle(at(progress=p)) for p in (0, 0.25, 0.5, 0.75)] == [0, 0.1, 0.2, 0.1]


def test_cyclic_agrees_with_torch_at_every_step():
    """PyTorch's CyclicLR over 60 steps with its peak at 24: within 1e-12, momentum included."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], 0.1, momentum=0.9)
    theirs = torch.optim.lr_scheduler.CyclicLR(optimizer, 0.0, 0.2, 24, 36)
    rate = cyclic(base=0.2, peak=0.4, start=0.0, end=0.0)
    momentum = cyclic(base=0.8, peak=0.4, start=0.9, end=0.9)
    for step in range(60):
        group = optimizer.param_groups[0]
        assert rate(at(progress=step / 60)) == pytest.approx(group["lr"], abs=1e-12)
        assert momentum(at(progress=step / 60)) == pytest.approx(group["momentum"], abs=1e-12)
        optimizer.step()
        theirs.step()


@pytest.mark.parametrize("unit", ["epoch", "progress"])
def test_staircase_falls_exactly_at_its_drops(unit):
    scale = 200 if unit == "epoch" else 1
    schedule = Staircase(0.1, 0.1, [0.5 * scale, 0.75 * scale], unit)
    steps = [0, 78_199, 78_200, 117_299, 117_300, 156_399]  # of 200 epochs of 782
    rates = [schedule(at(step / 782, step / 156_400, step)) for step in steps]
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.001])


def test_staircase_refuses_drops_out_of_order():
    with pytest.raises(ValueError, match="rising"):
        Staircase(0.1, 0.1, [0.75, 0.5], "progress")


def test_cosine_warms_up_and_ends_where_it_should():
    schedule = Cosine(base=0.4, warmup=0.025, end=0.1)
    assert schedule(at(progress=0.0)) == 0
    assert schedule(at(progress=0.0125)) == pytest.approx(0.2)
    assert schedule(at(progress=0.025)) == pytest.approx(0.4)
    assert schedule(at(progress=0.025 + 0.975 / 2)) == pytest.approx(0.25)
    assert schedule(at(progress=1 - 1e-9)) == pytest.approx(0.1)


def test_cosine_without_warm_up_starts_at_its_base():
    schedule = Cosine(base=0.1, warmup=0.0, end=0.0)
    assert schedule(at()) == 0.1
    assert schedule(at(progress=0.3)) == pytest.approx(0.05 * (1 + cos(0.3 * pi)))


def test_constant_is_constant():
    assert Constant(0.3)(at(epoch=7.5, progress=0.9)) == 0.3


def test_no_decay_on_norm_spares_tensors_of_one_dimension():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(2, 2))
    settings = dict(lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=False)
    for spared, expected in ((True, [(5e-4, 2), (0, 4)]), (False, [(5e-4, 6)])):
        optimizer = optimizers.sgd(model.parameters(), no_decay_on_norm=spared, **settings)
        groups = [(g["weight_decay"], len(g["params"])) for g in optimizer.param_groups]
        assert groups == expected


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_fused_optimizers_equal_the_plain_ones(name):
    """Ten steps, rate set anew at each; the largest difference seen is 6e-8."""
    torch.manual_seed(0)
    ours, theirs = nn.Linear(5, 3), nn.Linear(5, 3)
    theirs.load_state_dict(ours.state_dict())
    betas = dict(betas=[0.9, 0.99])
    more = dict(momentum=0.9, nesterov=True) if name == "sgd" else betas
    make = getattr(optimizers, name)
    fast = make(ours.parameters(), lr=0.1, weight_decay=1e-2, no_decay_on_norm=False, **more)
    reference = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[name]
    slow = reference(theirs.parameters(), lr=0.1, weight_decay=1e-2, foreach=False, **more)
    for step in range(10):
        x = torch.randn(4, 5)
        for model, optimizer in ((ours, fast), (theirs, slow)):
            optimizer.param_groups[0]["lr"] = 0.1 / (step + 1)
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
    torch.testing.assert_close(ours.weight, theirs.weight, atol=1e-6, rtol=0)


def test_a_schedule_of_something_that_the_optimizer_lacks_is_refused():
    parameters = [nn.Parameter(torch.zeros(2))]
    adam = optimizers.adam(
        parameters, lr=0.1, betas=(0.9, 0.999), weight_decay=0.0, no_decay_on_norm=False
    )
    optimizers.require_rates(adam, {"lr": Constant(0.1)})
    with pytest.raises(ValueError, match=r"schedule\.momentum drives nothing: Adam"):
        optimizers.require_rates(adam, {"lr": Constant(0.1), "momentum": Constant(0.9)})


def test_epochwise_holds_what_the_epoch_began_with():
    ramp = Epochwise(Piecewise((0.0, 0.9, 1.0), (0.0, 4.5, 4.5), "progress"))
    steps, total = 7, 100
    for epoch in (0, 1, 39, 90, 99):
        seen = set()
        for batch in range(steps):
            step = epoch * steps + batch
            now = Moment(step, step / steps, step / (steps * total), batch=batch)
            seen.add(round(ramp(now), 12))
        assert seen == {round(0.05 * min(epoch, 90), 12)}


def test_epochwise_gives_the_inner_schedule_one_consistent_moment():
    seen = []
    Epochwise(lambda now: seen.append(now) or 0.0)(Moment(23, 2.3, 0.23, batch=3))
    (start,) = seen
    assert (start.step, start.epoch) == (20, 2) and start.progress == pytest.approx(0.2)


@pytest.mark.parametrize(("epochs", "drop"), [(55, 0.6), (80, 0.5), (100, 0.29), (30, 0.7)])
def test_a_jump_at_the_beginning_of_an_epoch_holds_through_all_of_it(epochs, drop):
    schedule = Epochwise(Staircase(1.0, 0.1, [drop], "progress"))
    for steps in (7, 391, 766):
        seen = {
            schedule(
                Moment(step, step / steps, step / (epochs * steps), batch=step - steps * epoch)
            )
            for epoch in (round(drop * epochs),)
            for step in range(epoch * steps, (epoch + 1) * steps)
        }
        assert seen == {0.1}


def test_rates_and_weights_below_zero_are_refused():
    with pytest.raises(ConfigError, match=r"schedule\.lr\.base"):
        configuration("schedule.lr.base=-0.1")
    with pytest.raises(ConfigError, match=r"defense\.weight"):
        configuration("defense=gat", "defense.weight.base=-10")

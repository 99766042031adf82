"""Training that goes wrong: what is seen, what is said, and how a run survives it."""

import json

import pytest
import torch
from running import TRAINING, run
from torch import nn

from advtrain import checkpoints
from advtrain.averages import Ema
from advtrain.defenses.standard import Standard
from advtrain.history import History
from advtrain.rescue import Rescue
from advtrain.training import TrainingFailed, TrainState
from advtrain.watchdog import Watchdog

WARN = Watchdog("warn", drop=0.2, attempts=2, patience=None)
STOP = Watchdog("stop", drop=0.2, attempts=2, patience=None)
BACK = Watchdog("back", drop=0.2, attempts=2, patience=None)


def reports(*pairs):
    """Epochs with these clean and adversarial accuracies."""
    return [
        {"epoch": index + 1.0, "val_acc": clean, "val_adv_acc": robust}
        for index, (clean, robust) in enumerate(pairs)
    ]


def test_collapse_is_a_fall_of_robustness_while_clean_accuracy_stays():
    message = WARN.alarm(reports((0.7, 0.4), (0.8, 0.5), (0.85, 0.02)), 1000)
    assert message is not None
    assert "collapsed in epoch 3" in message and "50.0 % in epoch 2 and 2.0 % now" in message


def test_where_clean_accuracy_falls_too_it_is_divergence():
    message = WARN.alarm(reports((0.8, 0.5), (0.1, 0.1)), 1000)
    assert message is not None and "diverged in epoch 2" in message


@pytest.mark.parametrize(
    ("pairs", "images"),
    [
        ([(0.8, 0.5)], 1000),
        ([(0.8, 0.5), (0.85, 0.31)], 1000),  # robust overfitting: 10 points over a training
        ([(0.8, 0.5), (0.8, 0.2)], 20),  # 30 points of 20 images are six of them
        ([(0.8, 0.1), (0.8, 0.5)], 1000),
        ([(0.8, 0.5), (0.8, 0.0)], 0),
    ],
    ids=["one epoch", "a small fall", "few images", "a rise", "no image"],
)
def test_no_alarm_without_reason(pairs, images):
    assert WARN.alarm(reports(*pairs), images) is None


def test_epochs_that_were_not_judged_are_passed_over():
    seen = reports((0.8, 0.5), (0.8, 0.5), (0.8, 0.01))
    del seen[1]["val_adv_acc"], seen[1]["val_acc"]
    assert "epoch 3" in (WARN.alarm(seen, 1000) or "")
    assert WARN.alarm(seen[:2], 1000) is None


def test_a_slow_fall_is_seen_too():
    seen = reports((0.8, 0.5), (0.8, 0.4), (0.8, 0.35), (0.8, 0.28))
    assert WARN.alarm(seen[:3], 1000) is None
    assert WARN.alarm(seen, 1000) is not None


def state():
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    average = Ema(model, 10, decay=0.9, start=0, ramp=False, buffers="averaged")
    return TrainState(model, optimizer, average, Standard())


def update(of):
    of.model.train()
    of.optimizer.zero_grad()
    of.model(torch.randn(8, 4)).square().sum().backward()
    of.optimizer.step()
    of.average.update(of.model)
    of.step += 1


def tensors(of):
    return [*of.model.state_dict().values(), *of.average.model.state_dict().values()]


def rescue_after(watchdog, *pairs):
    """A rescue that has looked at all epochs but the last, each of one update."""
    here = Rescue(watchdog, state(), History())
    for report in reports(*pairs)[:-1]:
        update(here.state)
        here.history.reports.append(report)
        assert here.look(1000) == ""
    update(here.state)
    here.history.reports.append(reports(*pairs)[-1])
    return here


FALL = ((0.8, 0.4), (0.8, 0.5), (0.8, 0.0))


def test_warning_is_said_once_and_changes_nothing():
    here = rescue_after(WARN, *FALL)
    before = [value.clone() for value in tensors(here.state)]
    assert "collapsed in epoch 3" in here.look(1000)
    here.history.reports += reports(*FALL, (0.8, 0.0))[-1:]
    assert here.look(1000) == "" and len(here.history.alarms) == 1
    assert all(map(torch.equal, tensors(here.state), before)) and not here.history.ended


def test_a_stopped_training_says_why():
    here = rescue_after(STOP, *FALL)
    assert "Training ends here" in here.look(1000)
    assert "collapsed in epoch 3" in here.history.ended


def test_going_back_restores_all_but_the_clock_and_only_so_often():
    here = Rescue(BACK, state(), History())
    update(here.state)
    here.history.reports += reports((0.8, 0.5))
    here.look(1000)
    good = [value.clone() for value in tensors(here.state)]
    momentum = here.state.optimizer.state_dict()["state"][0]["momentum_buffer"].clone()
    for attempt in (1, 2):
        update(here.state)
        here.history.reports += reports((0.8, 0.5), (0.8, 0.0))[-1:]
        assert "Going back" in here.look(1000)
        assert all(map(torch.equal, tensors(here.state), good))
        buffers = here.state.optimizer.state_dict()["state"][0]["momentum_buffer"]
        assert torch.equal(buffers, momentum)
        assert here.state.step == 1 + attempt and here.history.returns == attempt
    update(here.state)
    here.history.reports += reports((0.8, 0.5), (0.8, 0.0))[-1:]
    assert "Training ends here" in here.look(1000)
    assert not all(map(torch.equal, tensors(here.state), good))


def test_losses_that_are_not_finite_are_survived_where_asked():
    error = TrainingFailed("the loss is nan at step 3.")
    with pytest.raises(TrainingFailed):
        rescue_after(WARN, *FALL).from_failure(error)
    with pytest.raises(TrainingFailed):  # there is nothing to keep yet
        Rescue(STOP, state(), History()).from_failure(error)
    for watchdog, ended in ((STOP, True), (BACK, False)):
        here = rescue_after(watchdog, *FALL)
        for parameter in here.state.model.parameters():
            parameter.data.fill_(torch.nan)
        assert "nan at step 3" in here.from_failure(error)
        assert all(torch.isfinite(value).all() for value in tensors(here.state))
        assert bool(here.history.ended) == ended


def test_what_training_can_return_to_is_saved_within_an_epoch(tmp_path):
    here = rescue_after(BACK, *FALL)
    checkpoints.save(tmp_path / "last.pt", here.state_dict())
    other = Rescue(BACK, state(), History())
    other.load_state_dict(checkpoints.load(tmp_path / "last.pt"))
    for each in (here, other):
        each.look(1000)
    assert all(map(torch.equal, tensors(here.state), tensors(other.state)))
    assert other.history == here.history and other.state.step == 3


def test_patience_ends_training():
    here = Rescue(Watchdog("warn", drop=0.2, attempts=1, patience=2), state(), History())
    for report in reports((0.8, 0.5), (0.8, 0.45), (0.8, 0.45)):
        here.history.reports.append(report)
        here.history.improves(report, "val_adv_acc")
        said = here.look(1000)
    assert "no better epoch in the last 2" in said and here.history.ended


def explode(model, x, y, *, threat, after, **_):
    """An attack that returns images of NaN once it has been called `after` times."""
    explode.calls += 1
    return x if explode.calls <= after else x * torch.nan


@pytest.mark.parametrize("action", ["warn", "stop", "back"])
def test_a_run_whose_loss_is_nan_ends_as_configured(tmp_path, action):
    explode.calls = 0
    status = run(
        tmp_path,
        *TRAINING,
        "epochs=4",
        f"watchdog.action={action}",
        "packages=[test_watchdog]",
        "defense.attack={_target_: test_watchdog.explode, _partial_: true, "
        "threat: ${threat}, after: 7}",
    )
    if action == "warn":
        assert status["state"] == "failed" and "loss is nan" in status["error"]
        return
    assert status["state"] == "done", status["error"]
    last = checkpoints.load(tmp_path / "checkpoints" / "last.pt")
    assert all(torch.isfinite(value).all() for value in last["model"].values())
    history = last["training"]["history"]
    assert history["ended"] and history["returns"] == (3 if action == "back" else 0)
    before = (tmp_path / "metrics.jsonl").read_text()
    again = run(
        tmp_path,
        *TRAINING,
        "epochs=4",
        *[f"watchdog.action={action}"],
        *[
            "packages=[test_watchdog]",
            "defense.attack={_target_: test_watchdog.explode, _partial_: true, "
            "threat: ${threat}, after: 7}",
        ],
    )
    assert again["state"] == "done" and (tmp_path / "metrics.jsonl").read_text() == before
    assert len([json.loads(line) for line in before.splitlines()]) == 2


def test_watching_without_validation_images_is_refused(tmp_path):
    status = run(tmp_path, *TRAINING, "dataset.validation=0", "watchdog.action=stop")
    assert status["exit_code"] == 2
    assert "watchdog.action=stop" in status["error"] and "dataset.validation" in status["error"]

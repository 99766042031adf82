"""Training that goes wrong: what is seen, what is said, and how a run survives it."""

import json

import pytest
import torch
from running import TRAINING, run
from torch import nn

from advtrain import checkpoints
from advtrain.averages import Ema
from advtrain.defenses.base import Defense
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


def alarm(seen, images=1000):
    return WARN.alarm(seen, images, "val_adv_acc")


def test_collapse_is_a_fall_of_robustness_while_clean_accuracy_stays():
    message = alarm(reports((0.7, 0.4), (0.8, 0.5), (0.85, 0.02)))
    assert message is not None
    assert "collapsed in epoch 3" in message and "50.0 % in epoch 2 and 2.0 % now" in message


def test_where_clean_accuracy_falls_too_it_is_divergence():
    message = alarm(reports((0.8, 0.5), (0.1, 0.1)))
    assert message is not None and "diverged in epoch 2" in message


def test_clean_accuracy_that_is_lost_is_divergence_though_there_was_no_robustness_to_lose():
    message = alarm(reports((0.9, 0.02), (0.96, 0.003), (0.1, 0.1)))
    assert message is not None
    assert "diverged in epoch 3" in message and "clean accuracy 96.0 % and 10.0 %" in message
    assert alarm(reports((0.9, 0.02), (0.96, 0.003), (0.46, 0.02))) is None  # half, by chance


@pytest.mark.parametrize(
    ("pairs", "images"),
    [
        ([(0.8, 0.5)], 1000),
        ([(0.8, 0.5), (0.85, 0.31)], 1000),  # robust overfitting: 10 points over a training
        ([(0.8, 0.5), (0.8, 0.2)], 20),  # 30 points of 20 images are six of them
        ([(0.8, 0.1), (0.8, 0.5)], 1000),
        ([(0.8, 0.5), (0.8, 0.0)], 0),
        ([(0.1, 0.1), (0.83, 0.01)], 1000),
        ([(0.1, 0.1), (0.7, 0.02), (0.83, 0.01)], 1000),
    ],
    ids=["one epoch", "a small fall", "few images", "a rise", "no image", "learning", "learnt"],
)
def test_no_alarm_without_reason(pairs, images):
    assert alarm(reports(*pairs), images) is None


def test_epochs_that_were_not_judged_are_passed_over():
    seen = reports((0.8, 0.5), (0.8, 0.5), (0.8, 0.01))
    del seen[1]["val_adv_acc"], seen[1]["val_acc"]
    assert "epoch 3" in (alarm(seen) or "")
    assert alarm(seen[:2]) is None


def test_a_slow_fall_is_seen_too():
    seen = reports((0.8, 0.5), (0.8, 0.4), (0.8, 0.35), (0.8, 0.28))
    assert alarm(seen[:3]) is None
    assert alarm(seen) is not None


def test_a_collapse_from_little_is_seen_too():
    assert alarm(reports((0.4, 0.18), (0.4, 0.02))) is not None
    assert alarm(reports((0.4, 0.18), (0.4, 0.12))) is None


def test_where_a_method_does_not_aim_at_it_robustness_may_fall():
    seen = reports((0.8, 0.4), (0.9, 0.0))
    assert WARN.alarm(seen, 1000, "val_acc") is None
    message = WARN.alarm(reports((0.9, 0.0), (0.1, 0.1)), 1000, "val_acc")
    assert message is not None and "diverged in epoch 2" in message and "adv" not in message


def state():
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    average = Ema(model, 10, decay=0.9, start=0, ramp=False, buffers="averaged")
    return TrainState(model, optimizer, average, Defense())


def update(of):
    of.model.train()
    of.optimizer.zero_grad()
    of.model(torch.randn(8, 4)).square().sum().backward()
    of.optimizer.step()
    of.average.update(of.model)
    of.step += 1


def tensors(of):
    return [*of.model.state_dict().values(), *of.average.model.state_dict().values()]


def look(here, report):
    """What is said after an epoch of one update."""
    update(here.state)
    here.history.reports.append(report)
    here.history.improves(report, "val_adv_acc")
    return here.look(1000)


def rescue_after(watchdog, *pairs):
    """A rescue that has looked at epochs of which nothing is to be said."""
    here = Rescue(watchdog, state(), History())
    assert [look(here, report) for report in reports(*pairs)] == [""] * len(pairs)
    return here


GOOD, FALLEN = ((0.8, 0.4), (0.8, 0.5)), reports(*[(0.8, 0.5)] * 2, *[(0.8, 0.0)] * 9)[2:]


def test_warning_is_said_once_and_changes_nothing():
    here = rescue_after(WARN, *GOOD)
    assert "collapsed in epoch 3" in look(here, FALLEN[0])
    before = [value.clone() for value in tensors(here.state)]
    here.history.reports.append({"epoch": 4.0})  # not judged
    assert here.look(1000) == ""
    here.history.reports.append(FALLEN[2])
    assert here.look(1000) == "" and len(here.history.alarms) == 1
    assert all(map(torch.equal, tensors(here.state), before)) and not here.history.ended


def test_a_stopped_training_says_why():
    here = rescue_after(STOP, *GOOD)
    assert "Training ends here" in look(here, FALLEN[0])
    assert "collapsed in epoch 3" in here.history.ended


def test_what_training_goes_back_to_is_the_best_epoch_not_the_last_one_let_pass():
    here = rescue_after(BACK, *GOOD)
    good = [value.clone() for value in tensors(here.state)]
    assert look(here, reports((0, 0), (0, 0), (0.8, 0.35))[-1]) == ""  # an average falls slowly
    here.history.reports.append({"epoch": 4.0})  # not judged
    update(here.state)
    assert here.look(1000) == ""
    assert "Going back" in look(here, FALLEN[2])
    assert all(map(torch.equal, tensors(here.state), good))


def test_going_back_restores_all_but_the_clock_and_only_so_often():
    here = rescue_after(BACK, *GOOD)
    good = [value.clone() for value in tensors(here.state)]
    momentum = here.state.optimizer.state_dict()["state"][0]["momentum_buffer"].clone()
    for attempt in (1, 2):
        assert "Going back" in look(here, FALLEN[0])
        assert all(map(torch.equal, tensors(here.state), good))
        buffers = here.state.optimizer.state_dict()["state"][0]["momentum_buffer"]
        assert torch.equal(buffers, momentum)
        assert here.state.step == 2 + attempt and here.history.returns == attempt
    assert "Training ends here" in look(here, FALLEN[0])
    assert not all(map(torch.equal, tensors(here.state), good))


def test_losses_that_are_not_finite_are_survived_where_asked():
    error = TrainingFailed("the loss is nan at step 3.")
    with pytest.raises(TrainingFailed):
        rescue_after(WARN, *GOOD).from_failure(error, over=False)
    with pytest.raises(TrainingFailed):  # there is nothing to keep yet
        Rescue(STOP, state(), History()).from_failure(error, over=False)
    with pytest.raises(TrainingFailed):  # nor a step left to do better
        Rescue(BACK, state(), History()).from_failure(error, over=True)
    for watchdog, over, ended in ((STOP, False, True), (BACK, False, False), (BACK, True, True)):
        here = rescue_after(watchdog, *GOOD)
        for parameter in here.state.model.parameters():
            parameter.data.fill_(torch.nan)
        assert "nan at step 3" in here.from_failure(error, over=over)
        assert all(torch.isfinite(value).all() for value in tensors(here.state))
        assert bool(here.history.ended) == ended


def test_what_training_can_return_to_is_saved_within_an_epoch(tmp_path):
    here = rescue_after(BACK, *GOOD)
    update(here.state)
    checkpoints.save(tmp_path / "last.pt", here.state_dict())
    other = Rescue(BACK, state(), History())
    other.load_state_dict(checkpoints.load(tmp_path / "last.pt"))
    for each in (here, other):
        each.history.reports.append(FALLEN[0])
        each.history.improves(FALLEN[0], "val_adv_acc")
        assert "Going back" in each.look(1000)
    assert all(map(torch.equal, tensors(here.state), tensors(other.state)))
    assert other.history == here.history and other.state.step == 3


@pytest.mark.parametrize("robust", [0.45, 0.0], ids=["no gain", "collapse, said once"])
def test_patience_ends_training(robust):
    here = Rescue(Watchdog("warn", drop=0.2, attempts=1, patience=2), state(), History())
    for report in reports((0.8, 0.5), (0.8, robust), (0.8, robust)):
        said = look(here, report)
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

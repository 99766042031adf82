"""The program's evaluations: every row, killed and resumed, and what is said of odd networks."""

import json
import os
import signal
from html import escape

import pytest
import torch
from running import DATA, TRAINING, run
from torch import Tensor, nn

from advtrain import evaluation
from advtrain.grid import composed
from advtrain.main import of_checkpoint

SMALL = (
    *("logger=none", "device=cpu", "scale.steps=3", "scale.queries=20"),
    *("scale.draws=100", "scale.certified=5"),
)
EVERY = ["clean", "fgsm", "pgd_linf", "pgd_l2", "mim", "cw", "gama", "autoattack"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    directory = tmp_path_factory.mktemp("trained")
    assert run(directory, *TRAINING)["state"] == "done"
    return directory


def judged(directory, trained, *overrides):
    given = ("job=eval", f"checkpoint={trained}", *SMALL, *overrides)
    assert run(directory, *given)["state"] == "done"
    return json.loads((directory / "results.json").read_text())


def verdicts(found):
    """What does not depend on the clock."""
    kept = [
        {k: v for k, v in row.items() if k not in ("seconds", "stages")} for row in found["rows"]
    ]
    return kept, found["worst_case"], found["warnings"]


@pytest.mark.parametrize("threat", ["linf", "l2"])
def test_the_full_evaluation_has_every_row(tmp_path, trained, threat):
    found = judged(tmp_path, trained, "eval=full", f"threat={threat}")
    assert [row["name"] for row in found["rows"]] == EVERY
    combined = found["rows"][-1]
    stages = combined["stages"]
    assert [stage["name"] for stage in stages] == ["apgd_ce", "apgd_t", "fab_t", "square"]
    assert combined["version"] == "standard" and combined["norm"] == threat
    accuracies = [found["rows"][0]["accuracy"], *(stage["accuracy"] for stage in stages)]
    assert accuracies == sorted(accuracies, reverse=True)
    assert accuracies[-1] == combined["accuracy"]
    for before, after in zip(accuracies, stages, strict=False):
        assert after["n"] == round(before * combined["n"])
    assert found["worst_case"][threat] <= min(
        row["accuracy"] for row in found["rows"] if row["norm"] == threat
    )
    assert all(len(row["robust"]) == row["n"] for row in found["rows"])


def test_an_evaluation_cut_off_anywhere_ends_in_the_same_table(tmp_path, trained, monkeypatch):
    options = ("eval=full", "eval.batch_size=7")
    whole = judged(tmp_path / "whole", trained, *options)
    real, calls = evaluation.judge, []

    def stopping(*args, **keywords):
        calls.append(keywords["key"])
        if len(calls) % 6 == 0:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(*args, **keywords)

    monkeypatch.setattr(evaluation, "judge", stopping)
    codes = []
    while codes[-1:] != [0]:
        try:
            given = ("job=eval", f"checkpoint={trained}", *SMALL, *options)
            codes.append(run(tmp_path / "cut", *given)["exit_code"])
        except SystemExit as stopped:
            codes.append(stopped.code)
    assert codes.count(143) >= 3
    found = json.loads((tmp_path / "cut" / "results.json").read_text())
    assert verdicts(found) == verdicts(whole)
    batches = len((tmp_path / "whole" / "verdicts.jsonl").read_text().splitlines())
    assert len(calls) == batches  # none was judged twice


def test_transfer_takes_the_network_of_another_run(tmp_path, trained):
    found = judged(
        tmp_path, trained, "eval=transfer", f"eval.attacks.transfer.source.checkpoint={trained}"
    )
    rows = {row["name"]: row for row in found["rows"]}
    # the same network: the same attack from another start
    assert abs(rows["transfer"]["accuracy"] - rows["pgd_linf"]["accuracy"]) <= 0.2
    assert rows["transfer"]["norm"] == "linf"


def test_a_missing_source_is_told_before_anything_runs(tmp_path, trained):
    status = run(tmp_path, "job=eval", f"checkpoint={trained}", "eval=transfer", *SMALL)
    assert status["exit_code"] == 2 and "source.checkpoint is not given" in status["error"]


class Body(nn.Module):
    """A linear network on digits of 8x8; subclasses spoil it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.flatten(1))


class NotANumber(Body):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * torch.nan


class Detached(Body):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).detach()


class TooFew(Body):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)[:, :3]


class Probabilities(Body):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).softmax(1)


class Noisy(Body):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + 0.3 * torch.randn_like(x))


def foreign(directory, network, *overrides):
    """An evaluation of someone's state dict for the class `network` of this file."""
    torch.save({"state_dict": Body().state_dict()}, directory / "w.pt")
    return run(
        directory / "out",
        *("job=eval", "model=custom", f"model.factory=test_full_evaluation.{network}"),
        *(f"checkpoint={directory / 'w.pt'}", *SMALL, *DATA[1:2], *overrides),
    )


@pytest.mark.parametrize(
    ("network", "said"),
    [("NotANumber", "not finite"), ("TooFew", "classes"), ("Detached", "no gradient")],
)
def test_a_network_that_cannot_be_judged_is_refused_in_a_sentence(tmp_path, network, said):
    status = foreign(tmp_path, network, "eval=autoattack")
    assert status["exit_code"] == 1 and said in status["error"], status["error"]
    assert "Traceback" not in status["error"]


@pytest.mark.parametrize(
    ("network", "check"), [("Probabilities", "probabilities"), ("Noisy", "stochastic")]
)
def test_a_network_that_misleads_is_named_at_once(tmp_path, caplog, network, check):
    assert foreign(tmp_path, network, "eval=quick")["state"] == "done"
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    assert check in [warning["check"] for warning in found["warnings"]]
    assert any(check in record.getMessage() for record in caplog.records)
    told = [each for each in found["warnings"] if each["row"] == "model"]
    (message,) = (each["message"] for each in told if each["check"] == check)
    assert escape(message) in (tmp_path / "out" / "report.html").read_text()


def test_what_a_certificate_of_a_random_network_is_of_is_said_beside_it(tmp_path, caplog):
    rows = [f"~eval.attacks.{name}" for name in ("fgsm", "pgd_linf", "pgd_l2")]
    assert foreign(tmp_path, "Noisy", "eval=standard", *rows)["state"] == "done"
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    (message,) = (each["message"] for each in found["warnings"] if each["row"] == "certified")
    assert "averages over those too" in message
    assert any(message in record.getMessage() for record in caplog.records)
    assert escape(message) in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.parametrize(
    ("said", "name"),
    [([], "digits-custom-w"), (["defense=trades"], "digits-custom-trades"), (["name=me"], "me")],
)
def test_the_name_of_someone_elses_network_claims_no_method(tmp_path, said, name):
    given = ["job=eval", "model=custom", f"checkpoint={tmp_path / 'w.pt'}", *said]
    with composed([*of_checkpoint(given), *given]) as config:
        assert config.name == name


def test_square_alone_judges_a_network_without_gradients(tmp_path):
    square = "{_target_: advtrain.attacks.square.square, _partial_: true, threat: '${threat}'"
    status = foreign(
        tmp_path,
        "Detached",
        *("eval=quick", "~eval.attacks.fgsm", "~eval.attacks.pgd"),
        f"+eval.attacks.square={square}, queries: 50}}",
    )
    assert status["state"] == "done", status["error"]

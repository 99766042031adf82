"""What an evaluation refuses, what it takes over from before, and what a failure leaves."""

import json
from importlib import metadata

import pytest
import torch
from running import DATA, run
from torch import Tensor, nn

from advtrain import run_evaluation

FGSM = "{_target_: advtrain.attacks.pgd.fgsm, _partial_: true, threat: '${threat}'}"
LATE = "{_target_: test_run_evaluation.refusing, _partial_: true, threat: '${threat}'}"


class Body(nn.Module):
    """A linear network on digits of 8x8; `change` is what becomes of its images."""

    change = staticmethod(lambda x: x)

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.change(x).flatten(1))


class OneWay(torch.autograd.Function):
    """The identity, whose author wrote no backward pass."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return x.clone()


def doubled(x: Tensor) -> Tensor:
    if x.requires_grad:
        x.mul_(2)
    return x


def keyless(x: Tensor) -> Tensor:
    return {"a": x}["b"]


def of_twenty(x: Tensor) -> Tensor:
    if len(x) == 7:
        raise RuntimeError("batches of 7 are not for me\nand a second line")
    return x


def refusing(model, x, y, *, threat):
    raise ValueError("this attack refuses everything.")


def evaluation(directory, *overrides):
    torch.save({"state_dict": Body().state_dict()}, directory / "w.pt")
    return run(
        directory / "out",
        *("job=eval", "model=custom", "model.factory=test_run_evaluation.Body", "eval=quick"),
        *(f"checkpoint={directory / 'w.pt'}", "logger=none", "device=cpu", "scale.steps=3"),
        *(*DATA[1:2], *overrides),
    )


class Dead(Body):
    """One answer to everything: the common end of training at a radius that is too large."""

    def forward(self, x: Tensor) -> Tensor:
        return 0 * self.layer(x.flatten(1)) + torch.arange(10.0)


def test_a_network_that_learned_nothing_is_told_so_and_no_attack_is_blamed(tmp_path):
    assert evaluation(tmp_path, "model.factory=test_run_evaluation.Dead")["exit_code"] == 0
    (told,) = json.loads((tmp_path / "out" / "results.json").read_text())["warnings"]
    assert told["check"] == "chance" and told["message"].startswith("The network answers class 9")


def lines(directory):
    return (directory / "out" / "verdicts.jsonl").read_text().splitlines()


def rows(directory):
    return json.loads((directory / "out" / "results.json").read_text())["rows"]


@pytest.mark.parametrize(
    "change",
    [lambda x: 1 - x, lambda x: (16 * x).round() / 16 + (x - x.detach())],
    ids=["another", "the same on images"],
)
def test_verdicts_are_not_those_of_another_forward_pass(tmp_path, monkeypatch, change):
    assert evaluation(tmp_path)["state"] == "done"
    first = lines(tmp_path)
    assert evaluation(tmp_path)["state"] == "done" and lines(tmp_path) == first
    monkeypatch.setattr(Body, "change", staticmethod(change))
    assert evaluation(tmp_path)["state"] == "done"
    assert len(lines(tmp_path)) == 2 * len(first) == 6


def test_verdicts_are_kept_where_logits_differ_by_rounding(tmp_path, monkeypatch):
    evaluation(tmp_path)
    first = lines(tmp_path)
    monkeypatch.setattr(Body, "change", staticmethod(lambda x: x * (1 + 1e-6)))
    evaluation(tmp_path)
    assert lines(tmp_path) == first


def test_without_resume_nothing_is_taken_over(tmp_path):
    evaluation(tmp_path)
    (tmp_path / "out" / "verdicts.jsonl").write_text("garbage\n")
    assert evaluation(tmp_path, "resume=false")["state"] == "done"
    assert len(lines(tmp_path)) == 3


def test_two_rows_of_one_name_are_refused(tmp_path):
    status = evaluation(tmp_path, f"+eval.attacks.pgd_linf={FGSM}")
    assert status["exit_code"] == 2 and "eval.attacks.pgd is refused" in status["error"]
    assert evaluation(tmp_path, f"+eval.attacks.pgd_l2={FGSM}")["state"] == "done"


def test_a_damaged_line_of_the_log_is_told_and_left_out(tmp_path, caplog):
    evaluation(tmp_path)
    path = tmp_path / "out" / "verdicts.jsonl"
    whole = path.read_text()
    path.write_text("garbage\n" + whole)
    assert evaluation(tmp_path)["exit_code"] == 0
    assert caplog.text.count("line 1, is no verdict") == 1
    assert path.read_text() == whole


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda x: x[..., :7], "without gradients on images of shape (20, 1, 8, 8): RuntimeError"),
        (keyless, "without gradients on images of shape (20, 1, 8, 8): KeyError: 'b'"),
        (doubled, "with gradients on images of shape (20, 1, 8, 8): RuntimeError"),
        (OneWay.apply, "in a backward pass on images of shape (20, 1, 8, 8): NotImpl"),
        (lambda x: x.detach().requires_grad_(), "in a backward pass on images of shape"),
    ],
    ids=["shape", "key", "in place", "no backward", "not used"],
)
def test_an_error_of_the_model_is_told_in_a_sentence(tmp_path, monkeypatch, capsys, change, said):
    monkeypatch.setattr(Body, "change", staticmethod(change))
    status = evaluation(tmp_path)
    assert status["exit_code"] == 1 and said in status["error"], status["error"]
    assert "Traceback" not in capsys.readouterr().err


def test_an_error_of_the_model_in_a_row_names_the_row(tmp_path, monkeypatch):
    monkeypatch.setattr(Body, "change", staticmethod(of_twenty))
    assert evaluation(tmp_path, "eval.batch_size=7")["error"] == (
        "row clean: the model fails in a forward pass without gradients on images of shape "
        "(7, 1, 8, 8): RuntimeError: batches of 7 are not for me"
    )


def test_a_row_that_fails_leaves_tables_of_those_before_it(tmp_path, capsys):
    status = evaluation(tmp_path, f"+eval.attacks.late={LATE}")
    assert status["exit_code"] == 1 and status["error"].startswith("row late: this attack refuses")
    assert [row["name"] for row in rows(tmp_path)] == ["clean", "fgsm", "pgd_linf"]
    table = (tmp_path / "out" / "table.md").read_text()
    assert "pgd" in table.lower() and (tmp_path / "out" / "report.html").exists()
    assert "Traceback" not in capsys.readouterr().err


def test_sources_that_are_not_installed_are_judged_as_well(monkeypatch):
    assert run_evaluation.own_version() == metadata.version("advtrain")

    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(run_evaluation, "version", missing)
    assert run_evaluation.own_version() == "not installed"

"""`batch_size=auto` and `eval.batch_size=auto`: what stops a run with a number stops these, and no
more; and a run that goes on keeps its number.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from running import run
from torch import Tensor, nn

from advtrain import footprint, run_evaluation
from advtrain.evaluation import evaluate

pytestmark = pytest.mark.usefixtures("no_report")

SMALL = (
    *("logger=none", "device=cpu", "epochs=1", "validate.attack.steps=1", "attack.steps=1"),
    *("dataset.train_size=48", "dataset.test_size=20", "dataset.validation=20"),
)
TRAINED = (*SMALL, "eval=none", "batch_size=auto")
OF_PIXELS = ("model=custom", "model.factory=test_fitting.made", "scale=smoke", "epochs=1")


class Pixel(nn.Module):
    """Ends in batch norm on maps of a single pixel, which training refuses for one image."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Sequential(
            nn.Conv2d(1, 8, 8), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8, 10)
        )

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.layer(x)
        return logits


class Refusing(Pixel):
    """Takes no images in training mode."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            raise ValueError("these maps are not for me")
        return super().forward(x)


class Failing(Pixel):
    """Takes no batch that it is not trained on."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training and len(x) not in (16, 20):  # what is asked before any row
            raise RuntimeError("this was not foreseen")
        return super().forward(x)


def made(shape: Any, classes: int) -> nn.Module:
    return Pixel()


def refusing(shape: Any, classes: int) -> nn.Module:
    return Refusing()


def failing(shape: Any, classes: int) -> nn.Module:
    return Failing()


def test_batch_norm_on_single_pixels_is_fitted_by_more_than_one_image(tmp_path: Path) -> None:
    found = run(tmp_path, *TRAINED, *OF_PIXELS)
    assert found["exit_code"] == 0, found.get("error")


def test_what_training_refuses_is_a_sentence(tmp_path: Path, capfd: Any) -> None:
    of = ("model=custom", "model.factory=test_fitting.refusing", "scale=smoke")
    given = run(tmp_path / "given", *TRAINED[:-1], "batch_size=4", *of)
    fitted = run(tmp_path / "fitted", *TRAINED, *of)
    assert fitted["exit_code"] == given["exit_code"] == 2
    assert fitted["error"] == given["error"] and "Traceback" not in capfd.readouterr().err


JUDGED = (*SMALL, "batch_size=16", "eval.batch_size=auto", "eval=quick", "eval.attacks.pgd.steps=1")


def test_a_majority_which_has_no_gradient_is_fitted_by_the_mean_over_its_draws(
    tmp_path: Path,
) -> None:
    views = ("eval.views.mean._target_=advtrain.models.views.majority", "eval.views.mean.draws=5")
    rows = [f"~eval.attacks.{name}" for name in ("square", "trained_at", "noise_free", "naive")]
    judged = ("eval=stochastic", *views, *rows, "eval.attacks.eot.attack.steps=1")
    found = run(tmp_path, *JUDGED[:-2], *judged, "eval.naive=null", "model=lwta_cnn")
    assert found["exit_code"] == 0, found.get("error")


@pytest.mark.parametrize(
    "of",
    [
        ("model=oat_small_cnn", "defense=oat"),
        ("model=custom", "model.factory=test_fitting.failing", "scale=smoke"),
    ],
    ids=["a lambda is missing", "the network fails"],
)
def test_a_network_that_cannot_be_judged_is_told_as_by_a_number(
    of: tuple[str, ...], tmp_path: Path, capfd: Any
) -> None:
    fitted = run(tmp_path, *JUDGED, *of)
    given = run(tmp_path, *JUDGED, *of, "eval.batch_size=10")
    assert fitted["exit_code"] == given["exit_code"] == 1
    why = given["error"].partition("Error: ")[2]
    assert fitted["error"].endswith(why) and fitted["error"].startswith("the model fails in a")
    assert "Traceback" not in capfd.readouterr().err


def test_an_evaluation_that_goes_on_keeps_its_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of = (*JUDGED, "model=linear")
    verdicts = tmp_path / "verdicts.jsonl"

    def number() -> int:
        found = json.loads((tmp_path / "results.json").read_text())
        return int(found["config"]["eval"]["batch_size"])

    def stopping(subject: Any, examples: Any, row: Any, *arguments: Any, **more: Any) -> Any:
        outcome = evaluate(subject, examples, row, *arguments, **more)
        if row.attack is not None:
            raise MemoryError
        return outcome

    with monkeypatch.context() as patch:  # a kill in the second row
        patch.setattr(run_evaluation, "evaluate", stopping)
        assert run(tmp_path, *of)["exit_code"] == 1
    begun = verdicts.read_text().splitlines()
    monkeypatch.setattr(footprint, "free", lambda device: 100_000)
    assert run(tmp_path, *of)["exit_code"] == 0
    lines = verdicts.read_text().splitlines()
    assert number() == 1024 and len(lines) == 3 and lines[: len(begun)] == begun
    assert run(tmp_path, *of, "seed=1", "job=eval", f"checkpoint={tmp_path}")["exit_code"] == 0
    assert number() == 1024
    assert run(tmp_path, *of, "resume=false")["exit_code"] == 0
    assert number() < 1024


def test_what_compiled_graphs_take_is_theirs_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def tried(trial: Any, sizes: Any, device: Any, room: float) -> int:
        seen.append(room)
        return 1

    monkeypatch.setattr(footprint, "_tried", tried)
    monkeypatch.setattr(footprint, "free", lambda device: 1000)
    monkeypatch.setattr(footprint, "release", lambda device: None)
    for twice in (False, True):
        footprint.largest(print, 8, torch.device("cuda"), key="batch_size", twice=twice)
    assert seen == [800, 400]


def test_another_network_in_the_same_directory_has_a_number_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged = ("job=eval", "eval=quick", "eval.batch_size=auto", *SMALL[:2], SMALL[-2])
    for seed in "01":
        trained = (*SMALL, "model=linear", "eval=none", "batch_size=16", f"seed={seed}")
        assert run(tmp_path / seed, *trained)["exit_code"] == 0
        assert run(tmp_path / "out", *judged, f"checkpoint={tmp_path / seed}")["exit_code"] == 0
        found = json.loads((tmp_path / "out" / "results.json").read_text())
        assert (found["config"]["eval"]["batch_size"] == 1024) == (seed == "0")
        monkeypatch.setattr(footprint, "free", lambda device: 100_000)


def test_a_first_checkpoint_that_is_damaged_begins_anew(tmp_path: Path) -> None:
    for auto in ("batch_size=16", "batch_size=auto"):
        out = tmp_path / auto
        assert run(out, *TRAINED[:-1], "model=linear", auto)["exit_code"] == 0
        last = out / "checkpoints" / "last.pt"
        last.write_bytes(last.read_bytes()[:1000])
        again = run(out, *TRAINED[:-1], "model=linear", auto)
        assert again["exit_code"] == 0, again.get("error")

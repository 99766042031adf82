"""`batch_size=auto` and `eval.batch_size=auto`: what stops a run with a number stops these, and no
more; and a run that goes on keeps its number.
"""

from pathlib import Path
from typing import Any

import pytest
from running import run
from torch import Tensor, nn

from advtrain import program

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


def made(shape: Any, classes: int) -> nn.Module:
    return Pixel()


def refusing(shape: Any, classes: int) -> nn.Module:
    return Refusing()


@pytest.fixture(autouse=True)
def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(program, "write_run", lambda directory, *, state: None)


def test_batch_norm_on_single_pixels_is_fitted_by_more_than_one_image(tmp_path: Path) -> None:
    found = run(tmp_path, *TRAINED, *OF_PIXELS)
    assert found["exit_code"] == 0, found.get("error")


def test_what_training_refuses_is_a_sentence(tmp_path: Path, capfd: Any) -> None:
    of = ("model=custom", "model.factory=test_fitting.refusing", "scale=smoke")
    given = run(tmp_path / "given", *TRAINED[:-1], "batch_size=4", *of)
    fitted = run(tmp_path / "fitted", *TRAINED, *of)
    assert fitted["exit_code"] == given["exit_code"] == 2
    assert fitted["error"] == given["error"] and "Traceback" not in capfd.readouterr().err

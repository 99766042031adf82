"""Runs of the whole program in this process, small enough for tests."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from advtrain import training
from advtrain.config import check, plain
from advtrain.grid import choices, composed, ours
from advtrain.job import run_job
from advtrain.main import packages

DATA = ("dataset.train_size=48", "dataset.test_size=20", "dataset.validation=20", "model=linear")
FITTING = (
    "logger=none",
    "device=cpu",
    "epochs=2",
    "batch_size=16",
    "validate.attack.steps=2",
    *DATA,
)
JUDGING = (
    *("eval.attacks.pgd_linf.steps=2", "eval.attacks.pgd_l2.steps=2"),
    *("eval.certify.n=30", "eval.certify.n0=5", "eval.certify.alpha=0.01"),
)
TRAINING = (*FITTING, "attack.steps=2", "eval=none")
TINY = (*FITTING, "attack.steps=2", *JUDGING)
TRADES = ("defense=trades", "defense.start.std=0.1")
"""From so far off the image that the first gradients of the divergence are not all rounding."""


def run(directory: Path, *overrides: str) -> dict[str, Any]:
    """One job as `advtrain` would do it, in `directory`; its status, with this job's exit code."""
    with composed(overrides) as config:
        facts = {"choices": choices(config), "overrides": list(overrides), "family": None}
        allowed = packages(config, list(overrides))
        directory.mkdir(parents=True, exist_ok=True)
        code = run_job(ours(config), directory, facts, allowed)
    file = directory / "status.json"
    return (json.loads(file.read_text()) if file.exists() else {}) | {"exit_code": code}


def interrupted(directory: Path, step: int, *overrides: str) -> None:
    """`run`, ended by SIGTERM once that many steps of training are done."""
    real = training.train_step

    def stopping(state: training.TrainState, *arguments: Any) -> Any:
        logs = real(state, *arguments)
        if state.step == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return logs

    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as stopped:
        patch.setattr(training, "train_step", stopping)
        run(directory, *overrides)
    assert stopped.value.code == 143
    assert json.loads((directory / "status.json").read_text())["state"] == "interrupted"


def configuration(*overrides: str) -> dict[str, Any]:
    """The plain configuration of these overrides, checked."""
    with composed(overrides) as config:
        found = plain(ours(config))
        check(found, allowed=packages(config, list(overrides)))
    return found


def far(model: Any, x: Any, y: Any, *, threat: Any) -> Any:
    """An attack that does not keep to its set."""
    return 1 - x


def command(
    *arguments: str, cwd: Path, env: dict[str, str] | None = None, **more: Any
) -> subprocess.CompletedProcess[str]:
    """`python -m advtrain` in a process of its own, one thread."""
    return python("-m", "advtrain", *arguments, cwd=cwd, env=env, **more)


def python(
    *arguments: str, cwd: Path, env: dict[str, str] | None = None, **more: Any
) -> subprocess.CompletedProcess[str]:
    """Python with these arguments in a process of its own, one thread."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1", **(env or {})},
        capture_output=True,
        text=True,
        timeout=300,
        **more,
    )

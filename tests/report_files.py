"""Run directories and logs for the tests of the reporting, written without running anything."""

import json

import pytest

from advtrain.files import write_bytes
from advtrain.reporting import claim_plots, plots


@pytest.fixture
def unrendered(monkeypatch):
    """Figures are made up to their last line and not rendered, which is what takes long."""

    def save(drawing, path):
        write_bytes(path, b"")
        return path

    for module in (plots, claim_plots):
        monkeypatch.setattr(module, "save", save)


def row(name, accuracy, view="identity", n=100, **more):
    interval = [max(0.0, accuracy - 0.1), min(1.0, accuracy + 0.1)]
    return {"name": name, "view": view, "accuracy": accuracy, "n": n, "ci95": interval} | more


def results(defense="pgd_at", seed=0, rows=None, **more):
    default = [row("clean", 0.9), row("pgd_linf", 0.5, norm="linf", eps=8 / 255, steps=20)]
    return {
        "schema": 1,
        "name": f"run-{defense}",
        "dataset": {"name": "digits", "split": "test", "n": 100},
        "model": {"name": "small_cnn", "parameters": 1000},
        "defense": defense,
        "threat": {"norm": "linf", "eps": 8 / 255},
        "seed": seed,
        "checkpoint": "best",
        "rows": default if rows is None else rows,
        "worst_case": {"linf": 0.5},
        "certified": None,
        "warnings": [],
        "environment": {"advtrain": "0.1.0", "device": "cpu"},
        "seconds": 12.0,
        "choices": {"defense": defense, "model": "small_cnn", "dataset": "digits"},
        "config": {"seed": seed, "defense": {"_target_": defense}, "threat": {"eps": 8 / 255}},
    } | more


def put(directory, content=None, status=None):
    directory.mkdir(parents=True, exist_ok=True)
    if content is not None:
        text = content if isinstance(content, str) else json.dumps(content)
        (directory / "results.json").write_text(text)
    if status is not None:
        (directory / "status.json").write_text(json.dumps(status))
    return directory


def certified(**more):
    """The entry `certified` as earlier versions wrote it, or with `more` keys."""
    return {
        "sigma": 0.5,
        "n0": 100,
        "n": 1000,
        "alpha": 0.001,
        "examples": 200,
        "accuracy": 0.8,
        "acr": 0.4,
        "accuracy_at_radius": {"0.25": 0.6, "0.50": 0.4},
        "abstain": 0.1,
    } | more


def cohen_log(path, radii, *, time="15.4", header="idx\tlabel\tpredict\tradius\tcorrect\ttime"):
    """A log as the authors write them: of each example a radius, "wrong" or "abstain"; steps of 20.

    Radii are written with three significant digits.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [header]
    for place, radius in enumerate(radii):
        if radius == "abstain":
            answer = "-1\t0.0\t0"
        elif radius == "wrong":
            answer = "5\t0.8\t0"
        else:
            answer = f"3\t{radius:.3}\t1"
        lines.append(f"{20 * place}\t3\t{answer}\t{time}")
    path.write_text("\n".join(lines) + "\n")
    return path

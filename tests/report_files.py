"""Run directories for the tests of the reporting, written without running anything."""

import json


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

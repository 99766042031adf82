"""The certificates in results.json: of smoothing, of linear models, and the study of PREDICT."""

import math
from collections.abc import Mapping
from typing import Any

from advtrain.reporting import values
from advtrain.reporting.records import Answers, Broken, Certified, Exact, Soundness, Study

MAX_ENTRIES = 2_000
CATEGORIES = (
    *("correct_accurate", "correct_inaccurate", "incorrect_accurate", "incorrect_inaccurate"),
    "abstain",
)


def certified(value: Any) -> Certified | None:
    """The entry `certified`; what earlier versions do not tell is l2, gaussian, fp32, identity."""
    if not isinstance(value, Mapping):
        return None
    alpha, examples = values.number(value.get("alpha")), values.integer(value.get("examples"))
    asked = [values.number(radius) for radius in values.items(value.get("radii"))[:MAX_ENTRIES]]
    return Certified(
        accuracy=values.fraction(value.get("accuracy")),
        acr=values.number(value.get("acr")),
        at_radius=_by_radius(value.get("accuracy_at_radius")),
        sigma=values.number(value.get("sigma")),
        n0=values.integer(value.get("n0")),
        n=values.integer(value.get("n")),
        alpha=alpha if alpha is not None and 0 < alpha < 1 else None,
        examples=examples if examples is not None and examples > 0 else None,
        abstain=values.number(value.get("abstain")),
        norm=values.text(value.get("norm")) or "l2",
        noise=values.text(value.get("noise")) or "gaussian",
        precision=values.text(value.get("precision")) or "fp32",
        view=values.text(value.get("view")) or "identity",
        asked=tuple(sorted({radius for radius in asked if radius is not None})),
        draws=values.number(value.get("draws")),
        high=_by_radius(value.get("high_probability")),
        soundness=_soundness(value.get("soundness")),
    )


def study(value: Any) -> Study | None:
    """The entry `predict_study`; rows that lack a category are left out."""
    if not isinstance(value, Mapping):
        return None
    rows = []
    for entry in values.items(value.get("rows"))[:MAX_ENTRIES]:
        row = values.mapping(entry)
        n, shares = values.integer(row.get("n")), values.fractions(row)
        if n is not None and all(name in shares for name in CATEGORIES):
            told = {name: shares[name] for name in CATEGORIES}
            rows.append(Answers(n, **told, seconds=values.number(row.get("seconds"))))
    if not rows:
        return None
    return Study(
        sigma=values.number(value.get("sigma")),
        alpha=values.number(value.get("alpha")),
        gold_draws=values.integer(value.get("gold_draws")),
        examples=values.integer(value.get("examples")),
        rows=tuple(rows),
        view=values.text(value.get("view")) or "identity",
    )


def exact(value: Any) -> tuple[Exact, ...]:
    """The entry `exact`: one for each norm that has radii."""
    found = []
    for norm, entry in values.mapping(value).items():
        told = values.mapping(entry)
        radii = _by_radius(told.get("accuracy_at_radius"))
        if radii:
            accuracy, acr = values.fraction(told.get("accuracy")), values.number(told.get("acr"))
            found.append(Exact(values.text(norm), radii, accuracy, acr))
    return tuple(found)


def _soundness(value: Any) -> Soundness | None:
    """An entry of `broken` counts even if nothing in it is understood."""
    if not isinstance(value, Mapping):
        return None
    told = value.get("broken")
    listed = told if isinstance(told, list) else [told] if told else []
    broken = []
    for entry in map(values.mapping, listed[:MAX_ENTRIES]):
        broken.append(
            Broken(
                index=values.integer(entry.get("idx")),
                label=values.integer(entry.get("label")),
                predict=values.integer(entry.get("predict")),
                radius=values.number(entry.get("radius")),
                distance=values.number(entry.get("distance")),
                answer=values.integer(entry.get("answer")),
                p_value=values.number(entry.get("p_value")),
            )
        )
    attack, examples = values.text(value.get("attack")), values.integer(value.get("examples"))
    return Soundness(attack or "an attack", examples, tuple(broken))


def _by_radius(value: Any) -> dict[float, float]:
    """Accuracies by radius, sorted; keys that are no radius are left out."""
    radii: dict[float, float] = {}
    for key, accuracy in values.fractions(value).items():
        try:
            radii[float(key)] = accuracy
        except ValueError:
            continue
    return {r: radii[r] for r in sorted(radii) if math.isfinite(r) and r >= 0}

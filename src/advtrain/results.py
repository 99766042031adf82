"""results.json: the numbers of an evaluation, derived from verdicts alone."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from math import isfinite
from typing import Any

from advtrain.evaluation import Outcome
from advtrain.records import Verdicts, interval

SCHEMA = 1
NORMS = ("linf", "l2")
SETTINGS = ("steps", "restarts", "version", "queries")
"""Of an attack's configuration, what a row of results.json repeats."""


def fingerprint(*parts: Any) -> str:
    """A short name for a piece of configuration: equal for equal content, whatever its order."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def row_record(outcome: Outcome) -> dict[str, Any]:
    """One entry of `rows`: the accuracy over all `n` examples with its exact 95 % interval.

    `accuracy` counts the examples that are right without and with the attack. The field
    `accuracy_at_proposals` also counts those that the attack happened to make right; papers that
    attack every image print that one. `robust` says of each example whether it stands. A
    combination has `stages`: the accuracy after each of its attacks.
    """
    row, n = outcome.row, len(outcome.standing)
    found = [each for stage in outcome.stages for each in stage.verdicts]
    hits = sum(outcome.standing)
    raw = hits if row.members else sum(each.adversarial.count("1") for each in found)
    threat = row.threat
    return {
        "name": row.name,
        "view": "identity",
        "norm": threat.norm if threat else None,
        "eps": threat.eps if threat else None,
        **{key: row.settings.get(key) for key in SETTINGS},
        "accuracy": hits / n,
        "accuracy_at_proposals": raw / n,
        "n": n,
        "ci95": list(interval(hits, n)),
        **_totals(found),
        **({"stages": _stages(outcome)} if row.members else {}),
        "key": row.key,
        "robust": "".join("1" if stands else "0" for stands in outcome.standing),
    }


def _stages(outcome: Outcome) -> list[dict[str, Any]]:
    """The attacks of a combination: on how many examples each ran, and how many stood after it."""
    n, fallen, stages = len(outcome.standing), 0, []
    attacked = sum(len(each.at) for each in outcome.stages[0].verdicts)
    for stage in outcome.stages:
        fallen += sum(each.robust.count("0") for each in stage.verdicts)
        stages.append(
            {
                "name": stage.name,
                "accuracy": (attacked - fallen) / n,
                "n": sum(len(each.at) for each in stage.verdicts),
                **_totals(stage.verdicts),
            }
        )
    return stages


def _totals(found: Sequence[Verdicts]) -> dict[str, Any]:
    return {
        "outside": sum(each.outside for each in found),
        "non_finite": sum(each.non_finite for each in found),
        "forward_passes": sum(each.forward_passes for each in found),
        "backward_passes": sum(each.backward_passes for each in found),
        "seconds": round(sum(each.seconds for each in found), 3),
    }


def worst_case(outcomes: Iterable[Outcome]) -> dict[str, float | None]:
    """Per norm, the share of examples that stand against every row of that norm together."""
    standing: dict[str, list[bool]] = {}
    for outcome in outcomes:
        threat = outcome.row.threat
        if threat is not None:
            before = standing.get(threat.norm, [True] * len(outcome.standing))
            both = zip(before, outcome.standing, strict=True)
            standing[threat.norm] = [a and b for a, b in both]
    found: dict[str, float | None] = dict.fromkeys(NORMS)
    return found | {norm: sum(bits) / len(bits) for norm, bits in standing.items()}


def printable(value: Any) -> Any:
    """`value` with numbers that JSON has no word for (inf, nan) as text."""
    if isinstance(value, Mapping):
        return {key: printable(member) for key, member in value.items()}
    if isinstance(value, list):
        return [printable(member) for member in value]
    return str(value) if isinstance(value, float) and not isfinite(value) else value


def document(
    facts: Mapping[str, Any], rows: Sequence[dict[str, Any]], **measured: Any
) -> dict[str, Any]:
    """The whole of results.json; `facts` describe the run, `measured` what it found."""
    return {"schema": SCHEMA, **facts, "rows": list(rows), **measured}

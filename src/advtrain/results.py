"""results.json: the numbers of an evaluation, derived from verdicts alone."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from math import isfinite
from typing import Any

from advtrain.evaluation import Row
from advtrain.records import Verdicts, interval

SCHEMA = 1
NORMS = ("linf", "l2")


def fingerprint(*parts: Any) -> str:
    """A short name for a piece of configuration: equal for equal content, whatever its order."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def row_record(row: Row, verdicts: Sequence[Verdicts]) -> dict[str, Any]:
    """One entry of `rows`: the accuracy over all `n` examples with its exact 95 % interval.

    `accuracy` counts the examples that are right without and with the attack. The field
    `accuracy_at_proposals` also counts those that the attack happened to make right; papers that
    attack every image print that one.
    """
    n = sum(each.examples for each in verdicts)
    hits = sum(each.robust.count("1") for each in verdicts)
    raw = sum(each.adversarial.count("1") for each in verdicts)
    settings = row.settings
    threat = row.threat
    return {
        "name": row.name,
        "view": "identity",
        "norm": threat.norm if threat else None,
        "eps": threat.eps if threat else None,
        "steps": settings.get("steps"),
        "restarts": settings.get("restarts"),
        "accuracy": hits / n,
        "accuracy_at_proposals": raw / n,
        "n": n,
        "ci95": list(interval(hits, n)),
        "outside": sum(each.outside for each in verdicts),
        "non_finite": sum(each.non_finite for each in verdicts),
        "forward_passes": sum(each.forward_passes for each in verdicts),
        "backward_passes": sum(each.backward_passes for each in verdicts),
        "seconds": round(sum(each.seconds for each in verdicts), 3),
    }


def worst_case(rows: Iterable[tuple[Row, Sequence[Verdicts]]]) -> dict[str, float | None]:
    """Per norm, the share of examples that stand against every row of that norm together."""
    standing: dict[str, list[bool]] = {}
    for row, verdicts in rows:
        if row.threat is not None:
            bits = [bit == "1" for each in verdicts for bit in each.robust]
            before = standing.get(row.threat.norm, [True] * len(bits))
            standing[row.threat.norm] = [a and b for a, b in zip(before, bits, strict=True)]
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


def warnings(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """What the rows themselves say against their numbers."""
    found = []
    for row in rows:
        said = {
            "outside": "proposals lie outside the set or the box, or are not finite; they count as "
            "no success, so this accuracy is too high for the attack",
            "non_finite": "proposals get logits that are not finite, which fool nobody here",
        }
        for check, message in said.items():
            if row[check]:
                text = f"{row[check]} of {row['n']} {message}."
                found.append({"check": check, "row": row["name"], "message": text})
    return found

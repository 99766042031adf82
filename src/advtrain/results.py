"""results.json: the numbers of an evaluation, derived from verdicts alone."""

import inspect
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import partial
from math import isfinite
from statistics import fmean, stdev
from typing import Any

from torch import nn

from advtrain.digests import digest
from advtrain.evaluation import Outcome
from advtrain.fingerprints import fingerprint
from advtrain.records import Verdicts, interval
from advtrain.types import Threat

SCHEMA = 1
MAX_CLASSES = 20  # of a confusion matrix
NORMS = ("linf", "l2")
SETTINGS = (
    *("steps", "restarts", "version", "queries"),
    *("step_size", "keep", "loss", "objective", "start", "sigma"),
)
"""Of an attack's configuration, what a row of results.json repeats."""
WRAPPERS = ("through", "Through")  # attacks that are another one, of another view of the network
STRENGTH = ("threat", "steps", "step_size", "restarts", "queries")
"""What may differ between two attacks of one method."""


def attack_name(attack: Any) -> str | None:
    """The function or class that a callable comes down to: `pgd` of a partial of `pgd.pgd`."""
    while isinstance(attack, partial):
        attack = attack.func
    if attack is None:
        return None
    return str(getattr(attack, "__name__", type(attack).__name__))


def unwrapped(attack: Any) -> tuple[Any, list[Any]]:
    """The attack inside of all `through`, and the views that it crafts through, outermost first."""
    views = []
    while attack_name(attack) in WRAPPERS:
        given = arguments(attack)
        views.append(given["view"])
        attack = given["attack"]
    return attack, views


def arguments(attack: Any) -> dict[str, Any]:
    """All keyword arguments of a callable but its generator, defaults included."""
    if isinstance(attack, partial):
        return {**arguments(attack.func), **attack.keywords}
    if inspect.isfunction(attack):
        known = inspect.signature(attack).parameters.values()
        keywords = [each for each in known if each.kind is each.KEYWORD_ONLY]
        told = [each for each in keywords if each.default is not each.empty]
        return {each.name: each.default for each in told if each.name != "generator"}
    if is_dataclass(attack) and not isinstance(attack, type):
        return {field.name: getattr(attack, field.name) for field in fields(attack)}
    return {}


def spelled(value: Any, without: Sequence[str] = ()) -> str:
    """Configuration as text, equal for equal content: `pgd(keep=last, steps=20, ...)`.

    A function is told with its defaults, a network by its weights, a number to six digits; the
    arguments `without` are left out at every depth.
    """
    if value is None or isinstance(value, str | int):
        return str(value)
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, nn.Module):
        return f"{type(value).__name__}({digest(value)})"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{k}: {spelled(v, without)}' for k, v in value.items())}}}"
    if isinstance(value, Sequence):
        return f"[{', '.join(spelled(each, without) for each in value)}]"
    given = sorted((k, v) for k, v in arguments(value).items() if k not in without)
    told = [spelled(each, without) for each in getattr(value, "args", ())]
    told += [f"{key}={spelled(each, without)}" for key, each in given]
    return f"{_place(value)}({', '.join(told)})" if told else _place(value)


def _place(value: Any) -> str:
    """The name of a callable, and its module where that is not ours."""
    while isinstance(value, partial):
        value = value.func
    module = str(getattr(value, "__module__", ""))
    ours = not module or module.partition(".")[0] == "advtrain"
    return f"{'' if ours else f'{module}.'}{attack_name(value)}"


def row_record(outcome: Outcome) -> dict[str, Any]:
    """One entry of `rows`: the accuracy over all `n` examples with its exact 95 % interval.

    `attack` is the function or class behind the row, whatever the row is called, and `through` the
    view that it crafts through, where that is another than the row's; `configuration` names all
    of its arguments, and `method` all but those of STRENGTH: of two rows with the same name there,
    in any two runs, attack and arguments are the same.

    `accuracy` counts the examples that are right without and with the attack. The field
    `accuracy_at_proposals` also counts those that the attack happened to make right; papers that
    attack every image print that one. `robust` says of each example whether it stands. A
    combination has `stages`: the accuracy after each of its attacks. `draws`, of a stochastic
    network: see `spread`. `confusion`: see there.
    """
    row, n = outcome.row, len(outcome.standing)
    found = [each for stage in outcome.stages for each in stage.verdicts]
    hits = sum(outcome.standing)
    raw = hits if row.members else sum(each.adversarial.count("1") for each in found)
    threat = row.threat
    return {
        "name": row.name,
        "view": row.view,
        "norm": norm_of(threat) if threat else None,
        "eps": threat.eps if threat else None,
        **_configuration(row.attack, row.settings),
        "accuracy": hits / n,
        "accuracy_at_proposals": raw / n,
        "n": n,
        "ci95": list(interval(hits, n)),
        **spread(outcome),
        **_totals(found),
        **({"stages": _stages(outcome)} if row.members else {}),
        "key": row.key,
        "robust": "".join("1" if stands else "0" for stands in outcome.standing),
        **confusion(found),
    }


def spread(outcome: Outcome) -> dict[str, Any]:
    """`draws`: what single draws of a stochastic network say of the same proposals, or nothing.

    n of them, fresh ones; mean and sample standard deviation of their accuracies; and `all`, the
    share of examples on which all of them are right, which is what choosing the worst of n looks
    leaves. The attack alone counts, but in a combination, which leaves out examples that are wrong
    without an attack: these count as wrong.
    """
    each = looks(outcome)
    if not each or not each[0]:
        return {}
    shares = [fmean(look) for look in zip(*each, strict=True)]
    sd = stdev(shares) if len(shares) > 1 else None
    told = {"n": len(shares), "mean": fmean(shares), "sd": sd}
    return {"draws": {**told, "all": fmean(map(all, each))}}


def looks(outcome: Outcome) -> list[tuple[bool, ...]]:
    """Of each example, whether the last proposal for it is right, single draw by single draw.

    In a combination that is a proposal of the attack to which it fell. Empty tuples where a batch
    has no draws, as lines of old.
    """
    found = [each for stage in outcome.stages for each in stage.verdicts]
    count = min((len(each.draws) for each in found), default=0)
    last = dict.fromkeys(range(len(outcome.standing)), (False,) * count)
    for each in found:
        for place, *bits in zip(each.at, *each.draws[:count], strict=True):
            last[place] = tuple(bit == "1" for bit in bits)
    return list(last.values())


def confusion(found: Sequence[Verdicts]) -> dict[str, Any]:
    """`confusion`: how many examples of each class (rows) got each answer (columns), or nothing.

    Of each example the answer at the last proposal that was made for it, in a combination that of
    the attack to which it fell. One that no class was named for is left out. Nothing where lines
    tell no classes, or there are more than MAX_CLASSES.
    """
    answers: dict[int, tuple[int, int]] = {}
    for each in found:
        if len(each.answers) != len(each.at) or len(each.labels) != len(each.at):
            return {}
        answers |= dict(zip(each.at, zip(each.labels, each.answers, strict=True), strict=True))
    size = 1 + max((max(pair) for pair in answers.values()), default=-1)
    if not 0 < size <= MAX_CLASSES:
        return {}
    counts = Counter(answers.values())
    table = [[counts[label, answer] for answer in range(size)] for label in range(size)]
    return {"confusion": table}


def norm_of(threat: Threat) -> str:
    """`linf`, or `linf unclipped` where pixels may leave the box: such a row is compared with none
    that clips.
    """
    return threat.norm if isfinite(threat.low) else f"{threat.norm} unclipped"


def _configuration(attack: Any, settings: Mapping[str, Any]) -> dict[str, Any]:
    inner, views = unwrapped(attack)
    given = arguments(inner) if views else {**arguments(attack), **settings}
    return {
        "attack": attack_name(inner),
        **({"through": " of ".join(map(spelled, views))} if views else {}),
        **{key: _plain(given.get(key)) for key in SETTINGS},
        "configuration": fingerprint(spelled(attack)),
        "method": fingerprint(spelled(attack, STRENGTH)),
    }


def _plain(value: Any) -> Any:
    return value if value is None or isinstance(value, str | int | float) else spelled(value)


def _stages(outcome: Outcome) -> list[dict[str, Any]]:
    """The attacks of a combination: on how many examples each ran, and how many stood after it."""
    n, fallen, stages = len(outcome.standing), 0, []
    attacked = sum(len(each.at) for each in outcome.stages[0].verdicts)
    for stage in outcome.stages:
        fallen += sum(each.robust.count("0") for each in stage.verdicts)
        attack, _ = unwrapped(outcome.row.members[stage.name])
        given = arguments(attack)
        stages.append(
            {
                "name": stage.name,
                "attack": attack_name(attack),
                "steps": _plain(given.get("steps")),
                "loss": _plain(given.get("loss")),
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
    """Per norm, the share of examples that stand against every row of that norm together.

    Rows that do not clip images to the box stay out of it.
    """
    standing: dict[str, list[bool]] = {}
    for outcome in outcomes:
        threat = outcome.row.threat
        if threat is not None and isfinite(threat.low):
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

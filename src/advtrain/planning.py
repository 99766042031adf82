"""What an evaluation is about to do: under which views, which rows, and what each hangs on."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from advtrain.averaged import passes, single
from advtrain.config import ConfigError
from advtrain.digests import digest
from advtrain.evaluation import Row, row_name, rows
from advtrain.fingerprints import fingerprint
from advtrain.models.views import Unfit
from advtrain.plans import Evaluation
from advtrain.results import arguments, attack_name, spelled, unwrapped
from advtrain.runs import Setting
from advtrain.types import Attack, Combination, View

Warnings = list[dict[str, str]]


@dataclass(frozen=True)
class Scene:
    """A view of the network and the rows that are judged under it, `clean` first."""

    view: str
    judged: nn.Module
    rows: tuple[Row, ...]


def named(views: Mapping[str, View]) -> dict[str, View]:
    """The views by the names that rows tell: `draws=20` of a mean, `votes=20` of a majority.

    Any other is told by its key. So the name of a number of draws is never that of another.
    """
    words = {"mean_of": "draws", "majority": "votes"}
    found = {}
    for key, view in views.items():
        word = words.get(attack_name(view) or "")
        found[f"{word}={arguments(view)['draws']}" if word else key] = view
    return found


def viewed(model: nn.Module, views: Mapping[str, View]) -> dict[str, nn.Module]:
    """The network under each view. ValueError: one of them does not fit it."""
    return {name: view(model) for name, view in views.items()}


def fitted(
    plan: Evaluation, seen: Mapping[str, nn.Module], stochastic: bool
) -> tuple[Evaluation, dict[str, nn.Module], Warnings]:
    """What of `plan` makes sense for this network, and a sentence about each thing left out.

    The mean over draws of a network that draws nothing is that network: it is asked once. Attacks
    through a view that the network has not are left out.
    """
    told: Warnings = []
    views = dict(seen)
    if not stochastic:
        views = {}
        for name, judged in seen.items():
            plain = single(judged) is not judged
            views.setdefault("identity" if plain else name, single(judged))
        told += _fixed(plan, [name for name in seen if name not in views])
        if plan.naive is not None:
            first = next(iter(views))
            views = {first: views[first]}
            plan = replace(plan, attacks={plan.naive: plan.attacks[plan.naive]})
    attacks = dict(plan.attacks)
    for name, attack in plan.attacks.items():
        try:
            for judged in views.values():
                _look(judged, attack)
        except Unfit as error:
            told.append(
                {"check": "left_out", "row": name, "message": f"This row did not run: {error}"}
            )
            del attacks[name]
    naive = plan.naive if plan.naive in attacks else None
    return replace(plan, attacks=attacks, naive=naive), views, told


def _fixed(plan: Evaluation, merged: list[str]) -> Warnings:
    """Of a network that draws nothing: what need not be run for that reason."""
    spared = [name for name in plan.attacks if plan.naive not in (None, name)]
    if not merged and not spared:
        return []
    what = [f"view {', '.join(merged)} is a single pass"] if merged else []
    what += [f"rows {', '.join(spared)} are left out; run eval=full instead"] if spared else []
    message = f"The network answers the same every time: {', and '.join(what)}."
    return [{"check": "not_stochastic", "row": "model", "message": message}]


def _look(judged: nn.Module, attack: Attack | Combination) -> None:
    """Unfit: a view that `attack` crafts through does not fit."""
    _, views = unwrapped(attack)
    for view in views:
        judged = view(single(judged))


def scenes(
    plan: Evaluation, views: Mapping[str, nn.Module], setting: Setting, seen: str, looks: int
) -> list[Scene]:
    """The rows under each view; `looks`: single draws that are asked about each besides.

    `seen`: the fingerprint of the network, with what it answers, and of the examples.
    """
    classes, found = len(setting.data.classes), []
    for name, judged in views.items():
        keys = row_keys(setting, seen, plan, name, looks)
        planned = rows(plan.attacks, keys, classes, name, passes(judged))
        found.append(Scene(name, judged, tuple(planned)))
    return found


def row_keys(
    setting: Setting, seen: str, plan: Evaluation, view: str, looks: int
) -> dict[str, str]:
    """The fingerprint of each row: all that its verdicts depend on.

    Networks that an attack brings count by their weights.
    """
    config = setting.config
    seen_through = plan.views.get(view)
    common: tuple[Any, ...] = (seen, config["seed"], config["precision"], plan.at_once)
    if attack_name(seen_through) not in (None, "identity"):
        common += (f"view {spelled(seen_through)}",)
    if looks:
        common += (f"looks {looks}",)
    nodes = config["eval"]["attacks"]
    return {"clean": fingerprint(*common)} | {
        name: fingerprint(*common, name, nodes[name], *_sources(attack))
        for name, attack in plan.attacks.items()
    }


def _sources(attack: Any) -> list[str]:
    settings = getattr(attack, "keywords", {}).values()
    own = [digest(value) for value in settings if isinstance(value, nn.Module)]
    inner, views = unwrapped(attack)
    return own + (_sources(inner) if views else [])


def refuse_names(attacks: Mapping[str, Attack | Combination]) -> None:
    """Raise ConfigError where two rows of an evaluation would have one name."""
    if "clean" in attacks:
        raise ConfigError("eval.attacks.clean is refused: that name is the row without an attack.")
    named = Counter(row_name(name, attack) for name, attack in attacks.items())
    for name, attack in attacks.items():
        shown = row_name(name, attack)
        if name != shown and named[shown] > 1:
            raise ConfigError(
                f"eval.attacks.{name} is refused: its row is named {shown} for its threat, as that "
                f"of eval.attacks.{shown} is. Give one of them another name, or leave it out."
            )

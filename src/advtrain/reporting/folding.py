"""Runs to configurations: what differs in the seed alone is one row, named by what differs."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from advtrain import inert
from advtrain.ranges import number
from advtrain.reporting.records import Run
from advtrain.reporting.values import shown
from advtrain.reporting.wording import fraction

IGNORED = {*inert.KEYS, "hydra", "directory", "output", "out"}
TABLES = ("experiment", "row")
"""Choices that a paper's figures belong to: rows of a table stay apart, though they train alike."""
CHOICES = ("row", "defense", "model", "dataset", "descent", "average", "penalty", "experiment")
DEFAULTS = {"descent": "plain", "average": "last", "penalty": "none"}


def fold(runs: Sequence[Run]) -> list[list[Run]]:
    """Groups of runs with the same configuration up to the seed, in the order of appearance.

    Runs that did not finish stand alone, so that each is told with its reason. Of two runs with
    the same seed too, the later one counts: a repetition is no further sample.
    """
    groups: dict[tuple[Any, ...], dict[Any, Run]] = {}
    for run in runs:
        alone = () if run.state == "done" and run.rows else (str(run.directory),)
        seeds = groups.setdefault((_identity(run), alone), {})
        seeds[run.seed if run.seed is not None else str(run.directory)] = run
    return [list(seeds.values()) for seeds in groups.values()]


def labels(groups: Sequence[Sequence[Run]]) -> list[str]:
    """One name per group, out of what differs between the groups; all names are distinct."""
    if len({_identity(group[0]) for group in groups}) == 1:
        return _distinct([_whole(group[0]) for group in groups], groups)
    parts = [_parts(group[0]) for group in groups]
    keys = list(dict.fromkeys(key for part in parts for key in part))
    keys.sort(key=lambda key: CHOICES.index(key) if key in CHOICES else len(CHOICES))
    flat = [_flat(inert.without(group[0].config)) for group in groups]
    values = {
        key: [part.get(key, known.get(key, "")) for part, known in zip(parts, flat, strict=True)]
        for key in keys
    }
    meant = {key: [_meant(value) for value in values[key]] for key in keys}
    told = [key for key in keys if len(set(meant[key])) > 1]
    if "row" in told:
        told = [key for key in told if key == "row" or not _follows(meant[key], meant["row"])]
    values["row"] = _of_one_table(values.get("row", []))
    names = []
    for i, group in enumerate(groups):
        mine = {key: values[key][i] for key in told if values[key][i]}
        short = {key: value for key, value in mine.items() if DEFAULTS.get(key) != value}
        names.append(
            " · ".join(_told(k, v) for k, v in (short or mine).items()) or _whole(group[0])
        )
    return _distinct(names, groups)


def _distinct(names: list[str], groups: Sequence[Sequence[Run]]) -> list[str]:
    """Add to equal names what tells their configurations apart, or else the run's folder."""
    for name in {name for name in names if names.count(name) > 1}:
        same = [i for i, other in enumerate(names) if other == name]
        flat = {i: _flat(inert.without(groups[i][0].config)) for i in same}
        keys = dict.fromkeys(key for known in flat.values() for key in known)
        apart = [key for key in keys if len({_meant(flat[i].get(key)) for i in same}) > 1]
        apart = sorted((k for k in apart if "_target_" not in k), key=lambda k: k.count("."))[:3]
        for i in same:
            more = [_told(key, flat[i].get(key, "")) for key in apart]
            seed = groups[i][0].seed
            single = len(groups[i]) == 1 and (not apart or groups[i][0].state != "done")
            more += [f"seed={seed}"] if single and seed is not None else []
            names[i] = " · ".join([name, *more])
    for i, name in enumerate(names):
        if names.count(name) > 1:
            names[i] = f"{name} ({shown(groups[i][0].directory.name)})"
    return [name if names.count(name) == 1 else f"{name} #{i}" for i, name in enumerate(names)]


def _identity(run: Run) -> tuple[Any, ...]:
    known = _flat(inert.without(run.config)) if run.config else _parts(run)
    known |= {key: run.choices[key] for key in TABLES if key in run.choices}
    ends: tuple[Any, ...] = tuple(sorted((key, _meant(value)) for key, value in known.items()))
    ends = ends or (run.dataset, run.model, run.defense, run.norm, run.eps, run.checkpoint)
    return (*ends, run.examples)  # a folder of images may hold others by now


def _whole(run: Run) -> str:
    words = [run.choices.get("row", ""), run.defense, run.model, run.dataset]
    return " · ".join(word for word in words if word) or run.name


def _parts(run: Run) -> dict[str, str]:
    """What was chosen: groups by name, then single keys of the command line."""
    places = {f"dataset.{key}" for key in inert.places(run.config.get("dataset"))}
    parts = {"defense": run.defense, "model": run.model, "dataset": run.dataset}
    parts |= {k: v for k, v in run.choices.items() if not k.startswith("hydra")}
    if run.eps is not None and not run.config:
        parts["threat.eps"] = fraction(run.eps)
    for word in run.overrides:
        key, equals, value = word.lstrip("+~").partition("=")
        if equals and key not in parts and key not in places:
            parts[key] = value
    if isinstance(run.config.get("row"), str):
        parts["row"] = run.config["row"]
    return {key: value for key, value in parts.items() if value and _counts(key)}


def _of_one_table(rows: list[str]) -> list[str]:
    """Rows without the name of their table, where that is one."""
    tables = {row.rpartition("/")[0] for row in rows}
    return [row.rpartition("/")[2] for row in rows] if len(tables) == 1 else rows


def _told(key: str, value: str) -> str:
    return value if key in CHOICES else f"{key}={value}"


def _follows(values: Iterable[Any], leader: Iterable[Any]) -> bool:
    """Whether `leader` decides `values`."""
    seen: dict[Any, Any] = {}
    return all(seen.setdefault(a, b) == b for a, b in zip(leader, values, strict=True))


def _meant(value: str | None) -> Any:
    """What a value stands for: equal for 6 and 6.0, and for 2/5 and 0.4."""
    stands_for = number(value)
    return value if stands_for is None or stands_for != stands_for else stands_for


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, value in config.items():
        path = f"{prefix}{key}"
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{path}.")
        elif _counts(path):
            flat[path] = str(value)
    return flat


def _counts(key: str) -> bool:
    top, last = key.partition(".")[0], key.rpartition(".")[2]
    return top not in IGNORED and last != "seed"

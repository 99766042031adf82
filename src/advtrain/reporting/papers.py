"""A paper's figures beside ours: where they may be compared, by how much they differ, and whether
the paper's lies within what chance allows of ours.

Within means: inside the 95 % interval of our figure. Of one run that is the exact interval of
Clopper and Pearson over its examples. Of several seeds it is where one further run would lie, by
Student's t with the standard deviation over seeds, since the paper's figure is of one run, joined
with the exact interval of the mean: outside is said where neither chance explains it.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import fmean, stdev

from advtrain import inert
from advtrain.records import interval
from advtrain.reporting.records import Row, Run

Reach = tuple[float, float]

FREE = (
    *inert.KEYS,
    *("experiment", "row", "seed", "job", "compile", "recompute"),
    *(f"dataset.{key}" for key in (*inert.OF_DATA, "root")),
    *("eval.size", "eval.batch_size"),
)
"""Keys of the command line that leave a setting what it is; so do those of FREE_GROUPS."""
FREE_GROUPS = ("logger", "hydra", "plan")

FIRST = ("scale", "dataset", "model")


@dataclass(frozen=True)
class Figure:
    """A published `value`; `difference` is ours less that, None where they are not compared.

    `within`: whether the value lies within the interval of ours, None where there is none.
    `marks`: the numbers of the table's footnotes about this value.
    """

    value: float
    difference: float | None = None
    within: bool | None = None
    marks: tuple[int, ...] = ()


def beside(value: float, ours: float | None, reach: Reach | None, *, comparable: bool) -> Figure:
    """The published `value` beside `ours`, whose interval is `reach`."""
    if ours is None or not comparable:
        return Figure(value)
    within = None if reach is None else reach[0] <= value <= reach[1]
    return Figure(value, ours - value, within)


def reach_of(shares: Sequence[float], n: int | None) -> Reach | None:
    """The 95 % interval of shares of `n` examples, one per seed; None where n is not known."""
    mean = fmean(shares)
    exact = None if n is None or n < 1 else interval(min(round(mean * n), n), n)
    if len(shares) < 2:
        return exact
    from scipy.stats import t

    count = len(shares)
    spread = float(t.ppf(0.975, count - 1)) * stdev(shares) * sqrt(1 + 1 / count)
    low, high = exact or (mean, mean)
    return max(0.0, min(low, mean - spread)), min(1.0, max(high, mean + spread))


def told(run: Run, view: str) -> dict[str, float]:
    """The published values for a view of a run: keyed by measure, or by measure@view."""
    here = {k.rpartition("@")[0]: v for k, v in run.published.items() if k.endswith(f"@{view}")}
    plain = {key: value for key, value in run.published.items() if "@" not in key}
    only = len(run.views) < 2
    return (plain | here) if only or view == "identity" else here


def of_row(run: Run, row: Row) -> Figure | None:
    """The published figure of a row of one run, beside the row's."""
    value = told(run, row.view).get(row.name)
    if value is None:
        return None
    reach = None if row.low is None or row.high is None else (row.low, row.high)
    return beside(value, row.accuracy, reach, comparable=is_comparable(run))


def departures(run: Run) -> list[str]:
    """How a run's setting is another than the paper's, in a few words each; none where it is not.

    That is what `paper.setting` lists, and every key of the command line that could change a
    figure. A run without a paper departs from nothing.
    """
    setting = run.paper.setting
    if not setting:
        return []
    found = []
    for key, wanted in sorted(setting.items(), key=_place):
        here = _value(run, key)
        if here != wanted:
            found.append(f"{key}={here or 'null'} in place of {wanted}")
    said = [word.lstrip("+~").partition("=") for word in run.overrides]
    if ("job", "=", "eval") in said:
        return [*found, "job=eval judges a checkpoint whose training is not known here"]
    free = (*FREE, *setting, *run.paper.given)
    for key, equals, value in said:
        if key not in free and key.partition(".")[0] not in FREE_GROUPS:
            found.append(f"{key}{equals}{value}")
    return found


def is_comparable(run: Run) -> bool:
    return not departures(run)


def _place(item: tuple[str, str]) -> int:
    """The most telling keys first."""
    key, _ = item
    return FIRST.index(key) if key in FIRST else len(FIRST)


def _value(run: Run, key: str) -> str:
    """A choice by the name of its group, else what stands at a dotted key of the configuration."""
    if key in run.choices:
        return run.choices[key]
    value: object = run.config
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return "" if value is None else str(value)


def incomparable(lines: Iterable[tuple[str, Run]]) -> Iterator[str]:
    """A sentence for each way in which runs, given with their labels, depart from their paper."""
    groups: dict[str, list[str]] = {}
    count = 0
    for label, run in lines:
        count += 1
        words = "; ".join(departures(run))
        if words:
            names = groups.setdefault(words, [])
            names += [label] if label not in names else []
    whole = sum(map(len, groups.values())) == count and len(groups) == 1
    for words, names in groups.items():
        which = "These figures" if whole else f"The figures of {', '.join(names)}"
        yield f"{which} cannot be compared with the paper's: {words}."


def sources(runs: Iterable[Run]) -> list[str]:
    """Where the published figures of the runs are from, each once."""
    return list(dict.fromkeys(r.paper.source for r in runs if r.published and r.paper.source))

"""A command line into the jobs that it stands for: lists, ranges, and rows of paired values.

`seed=0,1`, `seed=range(0,5)` and `defense=glob(*)` are Hydra's; every combination is a job. The
rows of `hydra.sweeper.rows` are mappings of keys whose values belong together: each row is combined
with everything else, not with the other rows. What the command line gives counts more than a row,
and a row more than `hydra.sweeper.params`.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser

from advtrain.config import ConfigError

KEY = "hydra.sweeper.rows"


def expand(
    arguments: Sequence[str],
    params: Mapping[str, Any] | None = None,
    rows: Any = None,
    loader: ConfigLoader | None = None,
) -> list[list[str]]:
    """The overrides of each job, in order; the last key varies fastest, rows slowest.

    `loader`: knows the options of groups, for `glob`. ConfigError: rows that are none, an interval,
    or a list without values. Hydra's error: a line that cannot be read.
    """
    parser = OverridesParser.create(config_loader=loader)
    always = [f"{key}={value}" for key, value in (params or {}).items()]
    found = []
    for row in _rows(rows):
        overrides = parser.parse_overrides([*always, *row, *arguments])
        for each in overrides:
            if each.is_sweep_override() and not each.is_discrete_sweep():
                raise ConfigError(
                    f"{each.input_line}: all values between two are for a search, as by "
                    "hydra/sweeper=optuna; a grid takes 1,2,3 or range(0,5)."
                )
        for batch in BasicSweeper.split_arguments(overrides, max_batch_size=None):
            found += [list(job) for job in batch]
    if not found:
        lists = [str(each.input_line) for each in overrides if each.is_sweep_override()]
        raise ConfigError(
            f"{' '.join(lists)}: a list of no values makes no job; allowed is one value or more."
        )
    return found


def single(arguments: Iterable[str]) -> list[str]:
    """Those of the overrides that are the same for every job: what is no list and no range."""
    parsed = OverridesParser.create().parse_overrides(list(arguments))
    return [str(each.input_line) for each in parsed if not each.is_sweep_override()]


def twin(first: Sequence[str], other: Sequence[str]) -> str:
    """How the overrides of two jobs differ, in words; empty where they do not."""
    mine = [each for each in other if each not in first]
    theirs = [each for each in first if each not in other]
    return f"{' '.join(mine)} as {' '.join(theirs)}" if mine else ""


def _rows(given: Any) -> list[list[str]]:
    if given is None:
        return [[]]
    if not isinstance(given, Sequence) or isinstance(given, str) or not given:
        raise ConfigError(
            f"{KEY}={given} is refused; allowed is a list of rows, each a mapping of keys to "
            "values: [{defense: trades, optimizer.lr: 0.05}, {defense: mart}]."
        )
    for number, row in enumerate(given):
        if not isinstance(row, Mapping) or not row:
            raise ConfigError(
                f"{KEY}[{number}]={row} is refused; a row is a mapping of keys to values, as "
                "{defense: trades, optimizer.lr: 0.05}."
            )
    return [[f"{key}={_spelled(value)}" for key, value in row.items()] for row in given]


def _spelled(value: Any) -> str:
    """A value of YAML as the command line would have it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{_spelled(each)}" for key, each in value.items()) + "}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "[" + ",".join(_spelled(each) for each in value) + "]"
    return str(value)

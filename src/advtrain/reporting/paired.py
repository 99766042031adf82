"""Two runs on the same examples, compared example by example.

Both runs judge every example, so what tells them apart are the examples that stand in one alone:
b in the first, c in the second, of n. The difference is that of the accuracies, (c - b) / n.
Its 95 % interval is Newcombe's for paired proportions (1998, Statistics in Medicine 17, 2635,
https://doi.org/10.1002/(SICI)1097-0258(19981130)17:22<2635::AID-SIM954>3.0.CO;2-C, method 10); his
e, f, g, h are both, first, second, neither here. The p value is McNemar's (1947,
https://doi.org/10.1007/BF02295996) in its exact form: given b + c, b is binomial with rate 1/2.

The two are different methods and may disagree where an end of the interval is close to 0. Both
speak of these two networks: what training again with another seed would do, they cannot know.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import isclose, sqrt
from statistics import NormalDist

from advtrain.reporting.folding import labels
from advtrain.reporting.notes import row_notes
from advtrain.reporting.records import Row, Run
from advtrain.reporting.wording import fraction, settings

SETTINGS = ("norm", "eps", "steps", "restarts", "version", "queries")
"""Of a row, what must be equal for two of them to be the same attack."""
DETAILS = ("attack", "step_size", "keep", "loss", "objective", "start")
"""The same, which results.json of earlier versions leave out."""


@dataclass(frozen=True)
class Counts:
    """Examples that stand in both runs, in the first or second alone, and in neither."""

    both: int
    first: int
    second: int
    neither: int

    @property
    def n(self) -> int:
        return self.both + self.first + self.second + self.neither


@dataclass(frozen=True)
class Pair:
    """A row of two runs: accuracies and their difference, second minus first, in [-1, 1].

    `doubtful`: whether a warning concerns the row of the first, of the second.
    """

    name: str
    view: str
    settings: str
    counts: Counts
    low: float
    high: float
    p: float
    doubtful: tuple[bool, bool] = (False, False)

    @property
    def first(self) -> float:
        return (self.counts.both + self.counts.first) / self.counts.n

    @property
    def second(self) -> float:
        return (self.counts.both + self.counts.second) / self.counts.n

    @property
    def difference(self) -> float:
        return (self.counts.second - self.counts.first) / self.counts.n


@dataclass(frozen=True)
class Side:
    """One of the runs: `letter` stands for it in tables, `name` says what it is."""

    letter: str
    name: str
    run: Run


@dataclass(frozen=True)
class Pairing:
    """The rows that two runs share; `remarks` say what is left out, and why."""

    first: Side
    second: Side
    pairs: tuple[Pair, ...]
    remarks: tuple[str, ...]

    @property
    def has_views(self) -> bool:
        return any(pair.view != "identity" for pair in self.pairs)


def pairings(runs: Sequence[Run]) -> tuple[Pairing, ...]:
    """Each further run against the first; none for fewer than two."""
    if len(runs) < 2:
        return ()
    names = labels([[run] for run in runs])
    sides = [
        Side(chr(ord("A") + i) if i < 26 else f"run {i + 1}", name, run)
        for i, (name, run) in enumerate(zip(names, runs, strict=True))
    ]
    return tuple(_pairing(sides[0], side) for side in sides[1:])


def count(first: str, second: str) -> Counts:
    """Both are of equal length: 1 where an example stands in the run, 0 where it has fallen."""
    found = Counter(zip(first, second, strict=True))
    return Counts(found["1", "1"], found["1", "0"], found["0", "1"], found["0", "0"])


def mcnemar(first: int, second: int) -> float:
    """The two-sided p value for `first` and `second` discordant examples; 1 without any."""
    from scipy.stats import binomtest

    both = first + second
    return float(binomtest(min(first, second), both, 0.5).pvalue) if both else 1.0


def newcombe(counts: Counts, level: float = 0.95) -> tuple[float, float]:
    """The interval for the difference, second minus first; it holds the estimate, in [-1, 1].

    The sum in squares of the distances from either rate to the ends of its score interval, less
    what the rates have in common: their correlation, if positive corrected for continuity.
    """
    both, first, second, neither = counts.both, counts.first, counts.second, counts.neither
    n = counts.n
    margins = (both + first) * (second + neither) * (both + second) * (first + neither)
    joint = both * neither - first * second
    common = max(joint - n / 2, 0) if joint > 0 else joint
    phi = common / sqrt(margins) if margins else 0.0
    below_a, above_a = _wilson(both + first, n, level)
    below_b, above_b = _wilson(both + second, n, level)
    difference = (second - first) / n
    low = difference - sqrt(below_b**2 - 2 * phi * below_b * above_a + above_a**2)
    high = difference + sqrt(above_b**2 - 2 * phi * above_b * below_a + below_a**2)
    return max(low, -1.0), min(high, 1.0)  # only rounding goes beyond


def _wilson(hits: int, n: int, level: float) -> tuple[float, float]:
    """How far the score interval of a rate reaches below and above hits / n (Wilson 1927)."""
    z = NormalDist().inv_cdf((1 + level) / 2)
    centre = (hits + z * z / 2) / (n + z * z)
    half = z / (n + z * z) * sqrt(hits * (n - hits) / n + z * z / 4)
    return hits / n - (centre - half), centre + half - hits / n


def _pairing(first: Side, second: Side) -> Pairing:
    obstacle = _obstacle(first, second)
    if obstacle:
        return Pairing(first, second, (), (obstacle,))
    pairs, remarks = [], []
    ours = {(row.name, row.view): row for row in first.run.rows}
    theirs = {(row.name, row.view): row for row in second.run.rows}
    for key, row in ours.items():
        if key not in theirs:
            continue
        difference = ", ".join(_differences(first, row, second, theirs[key]))
        if difference:
            remarks.append(f"{_called(row)} is left out: {difference}.")
        else:
            pairs.append(_pair(first.run, row, second.run, theirs[key]))
    untold = [side.letter for side in (first, second) if _untold(side.run, pairs)]
    if untold:
        remarks.append(
            f"{' and '.join(untold)} {'do' if len(untold) > 1 else 'does'} not tell all arguments "
            "of the attacks, as results.json of an earlier version: rows of one name may be "
            "different attacks."
        )
    for side, rows, others in ((first, ours, theirs), (second, theirs, ours)):
        alone = [_called(row) for key, row in rows.items() if key not in others]
        if alone:
            remarks.append(f"In {side.letter} alone: {', '.join(alone)}.")
    return Pairing(first, second, tuple(pairs), tuple(remarks))


def _obstacle(first: Side, second: Side) -> str:
    """Why no row of the two runs can be paired, or nothing."""
    empty = [f"{side.letter} ({side.run.state})" for side in (first, second) if not side.run.rows]
    if empty:
        return f"No accuracy is told in {' and '.join(empty)}: nothing is compared."
    silent = [side.letter for side in (first, second) if not side.run.examples]
    if silent:
        does = "do" if len(silent) > 1 else "does"
        return (
            f"{' and '.join(silent)} {does} not say which examples were evaluated, as results.json "
            "of an earlier version: nothing is compared. Evaluate again: job=eval checkpoint=DIR."
        )
    if first.run.examples != second.run.examples:
        told = [f"{side.letter} {side.run.dataset} {side.run.examples}" for side in (first, second)]
        return f"The evaluated examples differ ({', '.join(told)}): nothing is compared."
    return ""


def _differences(first: Side, row: Row, second: Side, other: Row) -> Iterator[str]:
    whole = bool(row.configuration and other.configuration)
    apart = [key for key in (*SETTINGS, *(DETAILS if whole else ())) if _differ(row, other, key)]
    for key in apart:
        known = [_shown(key, getattr(each, key)) for each in (row, other)]
        yield f"{key} {known[0]} in {first.letter}, {known[1]} in {second.letter}"
    if whole and not apart and row.configuration != other.configuration:
        yield "arguments of the attack differ that results.json does not spell out"
    silent = [side.letter for side, known in ((first, row), (second, other)) if not known.standing]
    if silent:
        yield f"which examples stand is not told in {' and '.join(silent)}"
    elif len(row.standing) != len(other.standing):
        sizes = f"{len(row.standing)} in {first.letter}, {len(other.standing)} in {second.letter}"
        yield f"n {sizes}"


def _untold(run: Run, pairs: Sequence[Pair]) -> bool:
    """Whether the run leaves open what exactly the attack of a pair was."""
    paired = {(pair.name, pair.view) for pair in pairs}
    rows = [row for row in run.rows if (row.name, row.view) in paired and row.norm]
    return not all(row.configuration for row in rows)


def _differ(row: Row, other: Row, key: str) -> bool:
    one, two = getattr(row, key), getattr(other, key)
    if isinstance(one, float) and isinstance(two, float):
        return not isclose(one, two, rel_tol=1e-6)
    return bool(one != two)


def _shown(key: str, value: str | float | None) -> str:
    if value in (None, ""):
        return "not given"
    return fraction(value) if isinstance(value, float) else str(value)


def _pair(first: Run, row: Row, second: Run, other: Row) -> Pair:
    counts = count(row.standing, other.standing)
    low, high = newcombe(counts)
    doubtful = bool(row_notes(first, row)), bool(row_notes(second, other))
    p = mcnemar(counts.first, counts.second)
    return Pair(row.name, row.view, settings(row), counts, low, high, p, doubtful)


def _called(row: Row) -> str:
    return row.name if row.view == "identity" else f"{row.name} ({row.view})"

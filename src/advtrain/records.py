"""Verdicts on disk: one line per attack and batch, appended as it is reached, read back to resume.

A line is whole or it is not there: a torn last line, of a killed run, is cut off on opening. Any
other line that is no verdict is refused.
Numbers in results.json come from these lines and from nothing else.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from advtrain.world import leads


@dataclass(frozen=True)
class Verdicts:
    """What the referee found for one batch of one attack.

    row: the attack's fingerprint. at: the positions of the examples. adversarial: right on the
    proposal, robust: right on the image and the proposal, one character 0 or 1 per example; an
    invalid proposal counts as the image itself. outside: proposals outside the set or not
    finite. non_finite: valid proposals with logits that are not finite, which name no class.
    draws: of a stochastic network, `adversarial` by each of several single draws. labels: of the
    examples; answers: the classes named at the proposals, -1 for none. Both empty in old lines.
    """

    row: str
    at: tuple[int, ...]
    adversarial: str
    robust: str
    outside: int
    non_finite: int
    forward_passes: int
    backward_passes: int
    seconds: float
    draws: tuple[str, ...] = ()
    labels: tuple[int, ...] = ()
    answers: tuple[int, ...] = ()


class VerdictLog:
    """The verdicts of a run directory; `append` returns once a line is on disk. Of several
    processes all know them, and the leader writes.

    ValueError: a line of the file, other than a torn last one, is no verdict.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines = {(line.row, line.at): line for line in self._whole_lines()}

    def _whole_lines(self) -> Iterator[Verdicts]:
        if not self.path.exists():
            return
        content = self.path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            with self.path.open("r+b") as file:
                file.truncate(len(whole))
        for number, line in enumerate(whole.splitlines(), start=1):
            try:
                yield parsed(json.loads(line))
            except (ValueError, TypeError, KeyError, RecursionError) as error:
                raise ValueError(
                    f"{self.path}, line {number}, is no verdict: {line[:60]!r}. Remove the line to "
                    "judge its batch again, or the file to evaluate all again."
                ) from error

    def find(self, row: str, at: tuple[int, ...]) -> Verdicts | None:
        return self.lines.get((row, at))

    def append(self, verdicts: Verdicts) -> None:
        if leads():
            told = {key: value for key, value in asdict(verdicts).items() if value != ()}
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(told) + "\n")
                file.flush()
                os.fsync(file.fileno())
        self.lines[verdicts.row, verdicts.at] = verdicts


def parsed(fields: Any) -> Verdicts:
    """The verdicts of a line. ValueError, TypeError, KeyError: it does not hold together."""
    at = tuple(fields["at"])
    lists = {key: tuple(fields.get(key, ())) for key in ("draws", "labels", "answers")}
    found = Verdicts(**{**fields, "at": at, **lists})
    numbers = (found.outside, found.non_finite, found.forward_passes, found.backward_passes)
    if not all(type(value) is int and value >= 0 for value in (*found.at, *numbers)):
        raise ValueError("a place or a count is no whole number")
    if type(found.row) is not str or type(found.seconds) not in (int, float):
        raise ValueError("the fingerprint is no text, or the time no number")
    for bits in (found.adversarial, found.robust, *found.draws):
        if len(bits) != len(found.at) or not set(bits) <= {"0", "1"}:
            raise ValueError("there is not one character 0 or 1 for each example")
    for classes, least in ((found.labels, 0), (found.answers, -1)):
        if classes and len(classes) != len(found.at):
            raise ValueError("there is not one class for each example")
        if not all(type(each) is int and each >= least for each in classes):
            raise ValueError("a class is no whole number")
    return found


def interval(hits: int, trials: int, level: float = 0.95) -> tuple[float, float]:
    """The exact two-sided interval of Clopper and Pearson (1934) for a rate, in [0, 1]."""
    from scipy.stats import beta

    tail = (1 - level) / 2
    low = float(beta.ppf(tail, hits, trials - hits + 1)) if hits > 0 else 0.0
    high = float(beta.ppf(1 - tail, hits + 1, trials - hits)) if hits < trials else 1.0
    return low, high

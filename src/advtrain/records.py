"""Verdicts on disk: one line per attack and batch, appended as it is reached, read back to resume.

A line is whole or it is not there: a torn last line, of a killed run, is cut off on opening.
Numbers in results.json come from these lines and from nothing else.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Verdicts:
    """What the referee found for the examples [start, start + len(clean)) of one row.

    row: the row's fingerprint. clean, adversarial: right on the image, on the proposal, one
    character 0 or 1 per example. robust: right on both, where an invalid proposal counts as the
    image itself. outside: proposals outside the set or not finite. non_finite: valid proposals
    with logits that are not finite, which fool nobody.
    """

    row: str
    start: int
    clean: str
    adversarial: str
    robust: str
    outside: int
    non_finite: int
    forward_passes: int
    backward_passes: int
    seconds: float

    @property
    def examples(self) -> int:
        return len(self.clean)


class VerdictLog:
    """The verdicts of a run directory; `append` returns once a line is on disk."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines = {self._key(line): line for line in self._whole_lines()}

    def _whole_lines(self) -> Iterator[Verdicts]:
        if not self.path.exists():
            return
        content = self.path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            with self.path.open("r+b") as file:
                file.truncate(len(whole))
        for line in whole.splitlines():
            try:
                yield Verdicts(**json.loads(line))
            except (ValueError, TypeError) as error:
                raise ValueError(
                    f"{self.path} has a line that is no verdict: {line[:60]!r}. Remove the file to "
                    "evaluate again."
                ) from error

    @staticmethod
    def _key(line: Verdicts) -> tuple[str, int, int]:
        return line.row, line.start, line.examples

    def find(self, row: str, start: int, examples: int) -> Verdicts | None:
        return self.lines.get((row, start, examples))

    def append(self, verdicts: Verdicts) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(verdicts)) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self.lines[self._key(verdicts)] = verdicts


def interval(hits: int, trials: int, level: float = 0.95) -> tuple[float, float]:
    """The exact two-sided interval of Clopper and Pearson (1934) for a rate, in [0, 1]."""
    from scipy.stats import beta

    tail = (1 - level) / 2
    low = float(beta.ppf(tail, hits, trials - hits + 1)) if hits > 0 else 0.0
    high = float(beta.ppf(1 - tail, hits + 1, trials - hits)) if hits < trials else 1.0
    return low, high

"""Verdicts on disk: one line per attack and batch, appended as it is reached, read back to resume.

A line is whole or it is not there: a torn last line, of a killed run, is cut off on opening. Any
other line that is no verdict, or that is not as it was written, by the checksum in it, is told and
left out: its batch is judged again.
Numbers in results.json come from these lines and from nothing else.
"""

import json
import logging
import os
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from advtrain import foreign
from advtrain.files import naming, write_bytes
from advtrain.world import leads

MAX_BYTES = 1 << 30  # ten million verdicts have less than half of it
LONGEST = 1e12  # seconds of a line

log = logging.getLogger(__name__)


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
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines = {(line.row, line.at): line for line in self._whole_lines()}

    def _whole_lines(self) -> Iterator[Verdicts]:
        if not self.path.exists():
            return
        try:
            content = foreign.content(self.path, MAX_BYTES)
        except foreign.Refused as error:
            raise OSError(
                f"{self.path} is refused: {error}. Move it away to begin anew."
            ) from error
        whole = content[: content.rfind(b"\n") + 1]
        kept = []
        for number, line in enumerate(whole.splitlines(keepends=True), start=1):
            try:
                found = parsed(summed(foreign.parsed(line)))
            except (ValueError, TypeError, KeyError, AttributeError):
                told = f"{self.path}, line {number}, is no verdict: {line[:60]!r}"
                log.warning("%s. It is left out, and its batch judged again.", told)
            else:
                kept.append(line)
                yield found
        if sum(map(len, kept)) < len(content):
            write_bytes(self.path, b"".join(kept))

    def find(self, row: str, at: tuple[int, ...]) -> Verdicts | None:
        return self.lines.get((row, at))

    def append(self, verdicts: Verdicts) -> None:
        if leads():
            told = {key: value for key, value in asdict(verdicts).items() if value != ()}
            line = json.dumps({**told, CHECK: checksum(told)})
            with naming(self.path), self.path.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
                file.flush()
                os.fsync(file.fileno())
        self.lines[verdicts.row, verdicts.at] = verdicts


CHECK = "crc32"


def checksum(fields: Mapping[str, Any]) -> int:
    """Of a line without its own, as it is written."""
    return zlib.crc32(json.dumps(fields).encode())


def summed(fields: Any) -> dict[str, Any]:
    """The fields of a line without its checksum; old lines have none. ValueError: another one."""
    rest = {key: value for key, value in fields.items() if key != CHECK}
    if CHECK in fields and fields[CHECK] != checksum(rest):
        raise ValueError("it is not as it was written")
    return rest


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
    if not 0 <= found.seconds < LONGEST:
        raise ValueError("the time is no length of time")
    for bits in (found.adversarial, found.robust, *found.draws):
        if type(bits) is not str or len(bits) != len(found.at) or not set(bits) <= {"0", "1"}:
            raise ValueError("there is not one character 0 or 1 for each example")
    for classes, least in ((found.labels, 0), (found.answers, -1)):
        if classes and len(classes) != len(found.at):
            raise ValueError("there is not one class for each example")
        if not all(type(each) is int and each >= least for each in classes):
            raise ValueError("a class is no whole number")
    return found


def interval(hits: int, trials: int, level: float = 0.95) -> tuple[float, float]:
    """The exact two-sided interval of Clopper and Pearson (1934) for a rate, in [0, 1]."""
    from scipy.special import betaincinv  # scipy.stats takes half a second more to import

    tail = (1 - level) / 2
    low = float(betaincinv(hits, trials - hits + 1, tail)) if hits > 0 else 0.0
    high = float(betaincinv(hits + 1, trials - hits, 1 - tail)) if hits < trials else 1.0
    return low, high

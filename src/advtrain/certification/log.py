"""certify.tsv: one line per certified image, in the format of Cohen et al. 2019.

Tab-separated columns idx, label, predict (-1: abstained), radius, correct (0 or 1) and time, which
is H:MM:SS.ffffff or seconds, under a header of these names. https://github.com/locuslab/smoothing

Differs: the authors print radii to three digits, which lifts some onto the next point of a grid
(0.4996 reads as 0.5). Here nine decimals are cut off, never rounded up.

A line counts only with its newline: before that, a killed writer may have left half a number.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from decimal import ROUND_DOWN, Decimal
from math import isfinite
from pathlib import Path
from types import TracebackType
from typing import Self

from advtrain.files import write_text

HEADER = "idx\tlabel\tpredict\tradius\tcorrect\ttime"
PREDICT_HEADER = "idx\tlabel\tpredict\tcorrect\ttime"
STEP = Decimal("1e-9")  # of radii in the file


@dataclass(frozen=True)
class Certificate:
    """What is certified about image `index`: `prediction` holds within the l2 radius `radius`.

    prediction is -1, and radius 0, where it was abstained on. radius is in pixel units of [0, 1].
    """

    index: int
    label: int
    prediction: int
    radius: float
    seconds: float

    @property
    def correct(self) -> bool:
        return self.prediction == self.label

    def line(self) -> str:
        """The line of the file, without its newline; reading it gives a radius not above this."""
        # by way of repr: the exact value of the float 0.378 is below 0.378, and would lose a step
        cut = Decimal(repr(float(self.radius))).quantize(STEP, rounding=ROUND_DOWN)
        radius = f"{cut:f}" if cut else "0.0"
        columns = (self.index, self.label, self.prediction, radius, int(self.correct))
        return "\t".join([*map(str, columns), clock(self.seconds)])


@dataclass(frozen=True)
class Log:
    """What a file holds: certificates in its order, and a sentence for each line that is not one.

    Of lines with the same idx, the first counts; it is told where they disagree. `cut` is the
    unfinished last line, if any: it is no fault, the image was merely not done.
    """

    certificates: tuple[Certificate, ...] = ()
    problems: tuple[str, ...] = ()
    cut: str = ""


class Writer:
    """Appends certificates to `path`, and flushes them as they come.

    Opening creates the file with its header, or repairs the one that is there and goes on after
    it; `found` is what it held. Use it in a `with` block.

    ValueError: `path` is not such a log; it is left as it is.
    """

    def __init__(self, path: Path) -> None:
        self.found = repair(path)
        self._stream = path.open("a", encoding="utf-8", newline="\n")

    def write(self, certificates: Iterable[Certificate]) -> None:
        """Append the lines in one piece, and flush them."""
        self._stream.write("".join(f"{each.line()}\n" for each in certificates))
        self._stream.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stream.close()


def read(path: Path) -> Log:
    """The certificates in `path`, the lines that are none, and an unfinished last line.

    A file that ends within its header holds nothing yet. ValueError: another header.
    """
    text = path.read_bytes().decode("utf-8", errors="replace").replace("\r\n", "\n")
    head, newline, body = text.partition("\n")
    if not newline and HEADER.startswith(head):
        return Log(cut=head)
    if head == PREDICT_HEADER:
        raise ValueError(
            f"{path} begins with {head!r}, the columns of a PREDICT log, not with the columns of a "
            "certification log: it holds answers and no radii. Give the log of CERTIFY, which has "
            "a column radius."
        )
    if head != HEADER:
        raise ValueError(
            f"{path} begins with {head[:60]!r}, not with the columns of a certification log, "
            f"{HEADER!r}. Move it away, or name another file."
        )
    *lines, cut = body.split("\n")
    seen: dict[int, Certificate] = {}
    problems = []
    for number, line in enumerate(lines, start=2):
        try:
            certificate = parse(line)
            first = seen.setdefault(certificate.index, certificate)
            if first is not certificate:
                raise ValueError(_repeated(first, certificate))
        except ValueError as error:
            problems.append(f"{path.name}, line {number} is not counted: {error}.")
    return Log(tuple(seen.values()), tuple(problems), cut)


def _repeated(first: Certificate, again: Certificate) -> str:
    """What is wrong with a second line of the same idx."""
    words = f"idx {again.index} was certified before, and counts once"
    answers = [(each.label, each.prediction, each.radius) for each in (first, again)]
    if answers[0] == answers[1]:
        return words
    told = [f"label {label}, predict {guess}, radius {r:g}" for label, guess, r in answers]
    return f"{words}, as it stood first ({told[0]}); this line disagrees ({told[1]})"


def repair(path: Path) -> Log:
    """Rewrite `path`, atomically, as the lines that count, so that more may be appended.

    A missing file becomes an empty log. Returns what `read` found; a sound file is not touched.
    """
    found = read(path) if path.exists() else Log()
    if found.problems or found.cut or not path.exists() or os.path.getsize(path) == 0:
        lines = [HEADER, *(each.line() for each in found.certificates)]
        write_text(path, "".join(f"{line}\n" for line in lines))
    return found


def parse(line: str) -> Certificate:
    """The certificate of one line without its newline. ValueError says what is wrong with it."""
    if line == HEADER:
        raise ValueError("it is the header again, as where two logs were joined")
    columns = line.split("\t")
    if len(columns) != 6:
        raise ValueError(f"it has {len(columns)} columns, not 6: {line[:60]!r}")
    if "_" in line:
        raise ValueError(f"a number has an underscore: {line[:60]!r}")  # int() would read 1_0 as 10
    index, label, prediction, correct = (int(columns[i]) for i in (0, 1, 2, 4))
    radius = float(columns[3])
    certificate = Certificate(index, label, prediction, radius, seconds(columns[5]))
    if index < 0 or label < 0 or prediction < -1:
        raise ValueError(f"idx {index}, label {label} or predict {prediction} is out of range")
    if not (isfinite(radius) and radius >= 0) or (prediction == -1 and radius != 0):
        raise ValueError(f"radius {columns[3]} cannot be, with predict {prediction}")
    if correct != certificate.correct:
        raise ValueError(f"correct is {correct}, with label {label} and predict {prediction}")
    return certificate


def clock(duration: float) -> str:
    """Seconds as H:MM:SS.ffffff; hours may exceed 24."""
    microseconds = round(duration * 1e6)
    minutes, rest = divmod(microseconds, 60_000_000)
    whole, fraction = divmod(rest, 1_000_000)
    return f"{minutes // 60}:{minutes % 60:02}:{whole:02}.{fraction:06}"


def seconds(text: str) -> float:
    """The duration written as H:MM:SS, H:MM:SS.ffffff or seconds. ValueError for other texts."""
    parts = [float(part) for part in text.split(":")]
    if len(parts) not in (1, 3) or not all(isfinite(part) and part >= 0 for part in parts):
        raise ValueError(f"time is {text!r}, neither H:MM:SS.ffffff nor seconds")
    total = 0.0
    for part in parts:
        total = 60 * total + part
    return total

"""certify.tsv: one line per certified image, in the format of Cohen et al. 2019.

Tab-separated columns idx, label, predict (-1: abstained), radius, correct (0 or 1) and time, which
is H:MM:SS.ffffff or seconds, under a header of these names. https://github.com/locuslab/smoothing

Differs: the authors print radii to three digits, which lifts some onto the next point of a grid
(0.4996 reads as 0.5). Here nine decimals are cut off, never rounded up.
"""

from dataclasses import dataclass
from decimal import ROUND_DOWN, Decimal
from math import isfinite
from pathlib import Path

from advtrain.certification import lines
from advtrain.certification.lines import Format, clock, columns, integer, seconds

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

    @property
    def told(self) -> str:
        return f"label {self.label}, predict {self.prediction}, radius {self.radius:g}"

    def line(self) -> str:
        """The line of the file, without its newline; reading it gives a radius not above this."""
        told = (self.index, self.label, self.prediction, cut(self.radius), int(self.correct))
        return "\t".join([*map(str, told), clock(self.seconds)])


class Log(lines.Log[Certificate]):
    """What a certify.tsv holds."""

    @property
    def certificates(self) -> tuple[Certificate, ...]:
        return self.lines


class Writer(lines.Writer[Certificate]):
    """Appends certificates to `path`, see `lines.Writer`."""

    found: Log

    def __init__(self, path: Path) -> None:
        super().__init__(path, CERTIFICATES)
        self.found = _log(self.found)


def read(path: Path) -> Log:
    """The certificates in `path`, the lines that are none, and an unfinished last line.

    A file that ends within its header holds nothing yet. ValueError: another header.
    """
    return _log(CERTIFICATES.read(path))


def repair(path: Path) -> Log:
    """Rewrite `path`, atomically, as the lines that count, so that more may be appended.

    A missing file becomes an empty log. Returns what `read` found; a sound file is not touched.
    """
    return _log(CERTIFICATES.repair(path))


def parse(line: str) -> Certificate:
    """The certificate of one line without its newline. ValueError says what is wrong with it."""
    told = columns(line, 6)
    index, label, prediction, correct = (integer(told[i]) for i in (0, 1, 2, 4))
    radius = float(told[3])
    certificate = Certificate(index, label, prediction, radius, seconds(told[5]))
    require_classes(index, label, prediction)
    if not (isfinite(radius) and radius >= 0) or (prediction == -1 and radius != 0):
        raise ValueError(f"radius {told[3]} cannot be, with predict {prediction}")
    require_correct(correct, label, prediction)
    return certificate


def require_classes(index: int, label: int, prediction: int) -> None:
    """ValueError: numbers that name no image, or no class."""
    if index < 0 or label < 0 or prediction < -1:
        raise ValueError(f"idx {index}, label {label} or predict {prediction} is out of range")


def require_correct(correct: int, label: int, prediction: int) -> None:
    """ValueError: `correct` is not what label and prediction say."""
    if correct != (prediction == label):
        raise ValueError(f"correct is {correct}, with label {label} and predict {prediction}")


def cut(radius: float) -> str:
    """`radius` to nine decimals, never rounded up."""
    # by way of repr: the exact value of the float 0.378 is below 0.378, and would lose a step
    short = Decimal(repr(float(radius))).quantize(STEP, rounding=ROUND_DOWN)
    return f"{short:f}" if short else "0.0"


def _log(found: lines.Log[Certificate]) -> Log:
    return Log(found.lines, found.problems, found.cut)


CERTIFICATES = Format(
    HEADER,
    parse,
    "a certification log",
    "certified",
    others={PREDICT_HEADER: "those of a PREDICT log, which holds answers and no radii"},
)

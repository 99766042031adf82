"""draws.tsv: how many draws of noise the certificates of an adaptive run took, n0 included.

Beside certify.tsv, whose six columns are Cohen's. An image has its line before its certificate.
"""

from dataclasses import dataclass

from advtrain.certification.lines import Format, columns


@dataclass(frozen=True)
class Drawn:
    """The draws of image `index`."""

    index: int
    draws: int

    @property
    def told(self) -> str:
        return f"draws {self.draws}"

    def line(self) -> str:
        return f"{self.index}\t{self.draws}"


def parse(line: str) -> Drawn:
    """ValueError: not two numbers, or none that can be."""
    found = Drawn(*map(int, columns(line, 2)))
    if found.index < 0 or found.draws < 1:
        raise ValueError(f"idx {found.index} or draws {found.draws} is out of range")
    return found


DRAWS = Format("idx\tdraws", parse, "a log of draws", "counted")

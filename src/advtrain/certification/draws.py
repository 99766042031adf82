"""draws.tsv: how many draws of noise the certificates of an adaptive run took, n0 included.

Beside certify.tsv, whose six columns are Cohen's: idx and draws, tab-separated, under a header. An
image has its line before its certificate. A line counts only with its newline.
"""

from collections.abc import Mapping
from pathlib import Path

from advtrain.files import write_text

HEADER = "idx\tdraws"


def read(path: Path) -> dict[int, int]:
    """Draws by idx; none where there is no file. An unfinished last line is cut off."""
    if not path.exists():
        return {}
    whole, newline, cut = path.read_text(encoding="utf-8").rpartition("\n")
    if cut:
        write_text(path, whole + newline)
    pairs = (line.split("\t") for line in whole.split("\n")[1:])
    return {int(index): int(draws) for index, draws in pairs}


def append(path: Path, draws: Mapping[int, int]) -> None:
    """Add lines to `path`, which begins with its header."""
    begin = not path.exists() or path.stat().st_size == 0
    lines = [*([HEADER] if begin else []), *(f"{index}\t{each}" for index, each in draws.items())]
    with path.open("a", encoding="utf-8", newline="\n") as stream:
        stream.write("".join(f"{line}\n" for line in lines))

"""`advtrain-report PATH...`: the table and the page of any set of runs and certification logs.

Of single runs, given one by one, all are compared with the first, example by example.
"""

import argparse
import sys
from collections.abc import Sequence
from math import isfinite
from pathlib import Path

from advtrain.foreign import printable, words
from advtrain.reporting.claims import Wanted
from advtrain.reporting.sources import find
from advtrain.reporting.terminal import print_run, print_set
from advtrain.reporting.writing import write_run, write_set

MAX_RADII = 100


def main(arguments: Sequence[str] | None = None) -> int:
    """Write table.{md,tex,csv} and report.html; 0, or 2 and one sentence when there is nothing."""
    given = _parser().parse_args(arguments)
    single = given.paths[0] if len(given.paths) == 1 and not given.paths[0].is_file() else None
    out = given.out or single or Path()
    wanted = Wanted(given.radii, given.step, given.alpha, given.fractions)
    try:
        alone = single is not None and find([single]).runs == (single.resolve(),)
        if given.out is None and single is not None and alone:
            print_run(write_run(single, wanted))
        else:
            print_set(write_set(given.paths, out, wanted))
    except (OSError, ValueError) as error:
        print(f"advtrain-report: {printable(words(error))}", file=sys.stderr)
        return 2
    print(printable(str(out / "report.html")))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="advtrain-report",
        description="Compare runs: a table with a row per configuration, seeds folded, and a page; "
        "single runs on the same examples also example by example, with the first. Logs of "
        "certificates in Cohen's format become certified accuracies by radius, ACR and curves.",
    )
    help_paths = "runs, grids, certification logs (certify.tsv or any name), folders of them"
    parser.add_argument("paths", nargs="+", type=Path, metavar="PATH", help=help_paths)
    help_out = "folder to write to (default: PATH if it is one folder, else the current one)"
    parser.add_argument("--out", type=Path, metavar="DIR", help=help_out)
    columns = parser.add_mutually_exclusive_group()
    help_radii = "radii of the certified accuracies (default: those of the runs, steps for logs)"
    columns.add_argument("--radii", type=_radii, default=(), metavar="R,R,...", help=help_radii)
    help_step = "step between the radii (default: 0.25, or as much as makes 12 columns)"
    columns.add_argument("--step", type=_positive, metavar="R", help=help_step)
    help_alpha = "alpha of logs with no certify.json that tells it (default: 0.001)"
    parser.add_argument("--alpha", type=_level, metavar="A", help=help_alpha)
    help_fractions = "certified accuracies as papers print them, 0.43 and not 42.80 percent"
    parser.add_argument("--fractions", action="store_true", help=help_fractions)
    return parser


def _radii(text: str) -> tuple[float, ...]:
    radii = sorted({_number(word) for word in text.split(",")})
    if radii[0] < 0 or len(radii) > MAX_RADII:
        raise argparse.ArgumentTypeError(
            f"{text!r}: radii are not negative, at most {MAX_RADII}; write --radii 0.25,0.5,1"
        )
    return tuple(radii)


def _positive(text: str) -> float:
    if (step := _number(text)) <= 0:
        raise argparse.ArgumentTypeError(f"{text!r}: the step is positive; write --step 0.25")
    return step


def _level(text: str) -> float:
    if not 0 < (alpha := _number(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: alpha lies in (0, 1); write --alpha 0.001")
    return alpha


def _number(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = float("nan")
    if not isfinite(number):
        raise argparse.ArgumentTypeError(f"{text!r} is no number")
    return number

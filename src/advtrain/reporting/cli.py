"""`advtrain-report DIR...`: the table and the page of any set of run directories.

Of single runs, given one by one, all are compared with the first, example by example.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from advtrain.reporting.paired_terminal import print_pairings
from advtrain.reporting.reading import find_runs
from advtrain.reporting.terminal import print_run, print_table
from advtrain.reporting.writing import write_run, write_set


def main(arguments: Sequence[str] | None = None) -> int:
    """Write table.{md,tex,csv} and report.html; 0, or 2 and one sentence when there is nothing."""
    parser = argparse.ArgumentParser(
        prog="advtrain-report",
        description="Compare runs: a table with a row per configuration, seeds folded, and a page; "
        "single runs on the same examples also example by example, with the first.",
    )
    parser.add_argument("directories", nargs="+", type=Path, metavar="DIR", help="runs or grids")
    help_out = "folder to write to (default: DIR if there is one, else the current folder)"
    parser.add_argument("--out", type=Path, metavar="DIR", help=help_out)
    given = parser.parse_args(arguments)
    single = given.directories[0] if len(given.directories) == 1 else None
    out = given.out or single or Path()
    try:
        if given.out is None and single is not None and find_runs([single]) == [single.resolve()]:
            write_run(single)
            print_run(single)
        else:
            table, pairings = write_set(given.directories, out)
            print_table(table)
            print_pairings(pairings)
    except (OSError, ValueError) as error:
        print(f"advtrain-report: {error}", file=sys.stderr)
        return 2
    print(out / "report.html")
    return 0

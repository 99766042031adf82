"""Random kills of whole jobs: what is lost, done again, or comes out otherwise. Nothing must.

    python scripts/kill_runs.py --kills 200

For each kind of job: it is done once undisturbed. Then it is given again and again, each time with
a fault at a random moment or at a random step of writing its files (SIGKILL, SIGTERM, SIGINT, or a
power cut, after which the newest file has lost its end or holds zeros there), until it is done; and
all that from the beginning, until there were enough kills. What each attempt had finished must be
in the next one's files as it was, with the seconds that it took; in the end the weights, verdicts,
certificates and tables must be those of the undisturbed job. `--disks` fills small disks of their
own besides, which takes the right to mount them. See docs/reliability.md.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import date
from pathlib import Path

import torch
from benchmark import machine

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
import faults

COLUMNS = ("SIGKILL", "SIGTERM", "SIGINT", "power cut", "full disk")


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a line per kind of job; 1 if anything was lost or came out otherwise."""
    options = parse(arguments)
    print(f"{date.today()}, {machine(torch.device('cpu'))}, torch {torch.__version__}")
    heading = " ".join(f"{each:>9}" for each in (*COLUMNS, "attempts", "finished", "faults"))
    print(f"{'':15}{heading}", flush=True)
    wrong = 0
    with tempfile.TemporaryDirectory() as folder:
        for number, kind in enumerate(options.kinds):
            began, here = time.monotonic(), Path(folder)
            job = faults.undisturbed(kind, here)
            share = options.kills // len(options.kinds) + (
                number < options.kills % len(options.kinds)
            )
            tally = faults.kill_and_repeat(job, here, share, options.seed)
            if options.disks:
                faults.fill_disks(job, here, options.disks, options.seed, tally)
            counts = [tally.kills[each] for each in COLUMNS]
            counts += [tally.attempts, tally.finished, len(tally.faults)]
            line = " ".join(f"{each:>9}" for each in counts)
            print(f"{kind:15}{line}   {time.monotonic() - began:.0f} s", flush=True)
            for fault in tally.faults:
                print(f"  {fault}", flush=True)
            wrong += len(tally.faults)
    print(f"load of the machine meanwhile, means of 5 and 15 minutes: {os.getloadavg()[1:]}")
    return int(wrong > 0)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0] if __doc__ else "",
    )
    parser.add_argument("--kills", type=int, default=200, help="over all kinds (default: 200)")
    known = (*faults.KINDS, faults.OWN)
    help_kinds = f"of {','.join(known)} (default: all but the last)"
    parser.add_argument(
        "--kinds", type=lambda text: text.split(","), default=list(faults.KINDS), help=help_kinds
    )
    help_disks = "small disks per kind that are filled, as root (default: 0)"
    parser.add_argument("--disks", type=int, default=0, help=help_disks)
    parser.add_argument("--seed", type=int, default=0)
    found = parser.parse_args(arguments)
    if unknown := [each for each in found.kinds if each not in known]:
        parser.error(f"--kinds {','.join(unknown)}: choose of {', '.join(known)}")
    return found


if __name__ == "__main__":
    sys.exit(main())

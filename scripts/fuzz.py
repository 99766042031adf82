"""Random inputs at length: command lines, calls of attacks, damaged files.

    python scripts/fuzz.py --configurations 2000 --attack-calls 10000 --files 5000 --seed 0

Needs the development extras. `make test` draws a few of each; what is drawn, and what is asked of
it, is in tests/random_*.py. Prints how each kind was answered, and the smallest example of whatever
broke a promise, after which the exit code is 1. The same seed draws the same examples.
"""

import argparse
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import random_calls as calls
import random_configurations as configurations
import random_files as files

LONGEST = 120  # seconds that one input may take
AUTOATTACK = 500  # calls of other attacks to one of AutoAttack, which costs as many


class Late(BaseException):
    """An input takes too long. It is no Exception, which readers take for damage."""


def main() -> int:
    asked = _arguments()
    torch.set_num_threads(1)
    signal.signal(signal.SIGALRM, _late)
    kinds: list[tuple[str, int, st.SearchStrategy[Any], Callable[[Any], str]]] = [
        ("attack calls", asked.attack_calls, calls.calls(), calls.kept),
        (
            "calls of AutoAttack",
            asked.attack_calls // AUTOATTACK,
            calls.calls((calls.SLOW,)),
            calls.kept,
        ),
        ("files", asked.files, files.damages, _in_a_folder(files.read)),
        ("reports", asked.files // 50, files.damages, _in_a_folder(files.reported)),
        ("configurations", asked.configurations, configurations.lines, configurations.checked),
        ("runs", asked.runs, configurations.small(), _in_a_folder(configurations.ran)),
    ]
    return int(any([not _hold(*kind, asked.seed) for kind in kinds if kind[1]]))


def _in_a_folder(answer: Callable[[Any, Path], str]) -> Callable[[Any], str]:
    def in_a_folder(drawn: Any) -> str:
        with tempfile.TemporaryDirectory() as folder:
            return answer(drawn, Path(folder))

    return in_a_folder


def _hold(
    name: str, count: int, inputs: st.SearchStrategy[Any], answer: Callable[[Any], str], start: int
) -> bool:
    """Whether `answer` was content with `count` inputs; prints what it said of them."""
    seen: Counter[str] = Counter()

    @seed(start)
    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
        print_blob=False,
    )
    @given(inputs)
    def each(drawn: Any) -> None:
        signal.alarm(LONGEST)
        try:
            seen[answer(drawn)] += 1
        except Late as late:
            seen["late"] += 1
            late.add_note(f"on {drawn!r:.500}")
            raise
        except Exception:
            seen["broken"] += 1
            raise
        finally:
            signal.alarm(0)

    began, whole = time.perf_counter(), True
    try:
        each()
    except BaseExceptionGroup as errors:
        whole = _tell(name, list(errors.exceptions))
    except (Exception, Late) as error:
        whole = _tell(name, [error])
    told = ", ".join(f"{number} {word}" for word, number in seen.most_common())
    print(f"{name}: {told}, in {time.perf_counter() - began:.0f} s", flush=True)
    return whole


def _tell(name: str, errors: list[BaseException]) -> bool:
    for error in errors:
        print(f"{name}: {type(error).__name__}: {error}")
        for note in getattr(error, "__notes__", ()):
            print(f"  {note}")
    return False


def _late(signum: int, frame: FrameType | None) -> None:
    raise Late(f"no answer within {LONGEST} s")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--configurations", type=int, default=2000, metavar="N")
    parser.add_argument("--runs", type=int, default=200, metavar="N")
    parser.add_argument("--attack-calls", type=int, default=10_000, metavar="N")
    parser.add_argument("--files", type=int, default=5000, metavar="N")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())

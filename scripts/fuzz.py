"""Random inputs at length: configurations, calls of attacks, damaged files.

    python scripts/fuzz.py --configurations 2000 --runs 200 --attack-calls 10000 --files 5000 --seed 0

Needs the development extras. `make test` draws a few of each; what is drawn and what is asked of it
is in tests/random_*.py. Prints how each kind was answered, and the smallest example of whatever
broke a promise, after which the exit code is 1. The same seed draws the same examples.
"""

import argparse
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))


def main() -> int:
    asked = _arguments()
    torch.set_num_threads(1)
    from random_calls import SLOW, calls, kept

    kinds: list[tuple[str, int, st.SearchStrategy[Any], Callable[[Any], str]]] = [
        ("attack calls", asked.attack_calls, calls(), kept),
        ("calls of AutoAttack", asked.attack_calls // 500, calls((SLOW,)), kept),
    ]
    return int(any([not _hold(*kind, asked.seed) for kind in kinds if kind[1]]))


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
        try:
            seen[answer(drawn)] += 1
        except BaseException:
            seen["broken"] += 1
            raise

    began, whole = time.perf_counter(), True
    try:
        each()
    except BaseExceptionGroup as errors:
        whole = _tell(name, list(errors.exceptions))
    except Exception as error:
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

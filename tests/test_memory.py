"""Freed memory stays with the process, so that a training step fetches no pages from the system."""

import subprocess
import sys

import pytest

FAULTS = """
import resource, torch
from advtrain.memory import keep_freed
torch.set_num_threads(1)
kept = keep_freed()
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        held = [torch.ones(1_000_000) for _ in range(4)]
        del held
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(kept, faults())
"""


def measured(**environment: str) -> tuple[str, int]:
    done = subprocess.run(
        [sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True, env=environment
    )
    kept, faults = done.stdout.split()
    return kept, int(faults)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks glibc")
def test_buffers_of_some_megabytes_are_not_fetched_anew():
    kept, faults = measured()
    if kept == "False":
        pytest.skip("no glibc")
    assert faults < 100  # 16 MB in each of 20 turns are 80,000 pages of 4 KiB


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks glibc")
def test_options_of_the_environment_are_left_alone():
    kept, _ = measured(MALLOC_ARENA_MAX="2")
    assert kept == "False"

"""The slots of a pool: how many there are, and the share of this machine that each one gets."""

import ctypes
import os
from collections.abc import Mapping
from typing import Literal

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


def environments(asked: int | Literal["auto"], jobs: int) -> list[dict[str, str]]:
    """The environment of the processes in each slot: its device, or its number of threads.

    `auto`: a slot per GPU, else one per two cores but at least two where there are two; never more
    than `jobs`. With more slots than GPUs, slots share them in turn. Threads are left as they are
    where the environment sets a number already: PyTorch takes MKL's, also beside OpenMP's.
    """
    devices, cores = gpus(os.environ), available_cores()
    sensible = len(devices) or max(min(cores, 2), cores // 2)
    count = max(1, min(sensible if asked == "auto" else asked, jobs))
    given = any(name in os.environ for name in THREADS)
    threads = {} if given else dict.fromkeys(THREADS, str(max(1, cores // count)))
    return [
        threads | ({"CUDA_VISIBLE_DEVICES": devices[slot % len(devices)]} if devices else {})
        for slot in range(count)
    ]


def available_cores() -> int:
    """Those that this process may use; where the system does not tell, all."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def gpus(environment: Mapping[str, str]) -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them; without torch."""
    if "CUDA_VISIBLE_DEVICES" in environment:
        listed = [each.strip() for each in environment["CUDA_VISIBLE_DEVICES"].split(",")]
        stop = listed.index("-1") if "-1" in listed else len(listed)  # CUDA reads no further
        return [each for each in listed[:stop] if each]
    return [str(number) for number in range(_installed())]


def _installed() -> int:
    """GPUs that the driver's management library counts; 0 without a driver."""
    try:
        library, count = ctypes.CDLL("libnvidia-ml.so.1"), ctypes.c_uint(0)
    except OSError:
        return 0
    if library.nvmlInit_v2() or library.nvmlDeviceGetCount_v2(ctypes.byref(count)):
        return 0
    library.nvmlShutdown()
    return count.value

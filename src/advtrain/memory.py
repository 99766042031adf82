"""Freed memory kept for the next step.

The C library hands buffers of some megabytes, as the activations of a batch are, back to the system
and fetches them again in every step, a page at a time: a fifth of the time of a training step of a
small network on a processor.
"""

import ctypes
import os
import sys

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # numbers of the options in malloc.h
LARGEST = 32 << 20  # bytes; glibc takes no higher threshold


def keep_freed() -> bool:
    """Let this process keep buffers of up to 32 MiB that it frees; whether it does now.

    Only glibc is asked, and not where the environment gives it options of its own.
    """
    if not sys.platform.startswith("linux") or any(
        name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ
    ):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(MMAP_THRESHOLD, LARGEST) and mallopt(TRIM_THRESHOLD, 2**31 - 1))

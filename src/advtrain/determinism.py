"""Kernels that give the same bits each time, or any.

Most CUDA kernels do; some add in the order in which threads happen to arrive, as those of gradients
that are gathered. On a processor the same number of threads gives the same bits in either case.
https://docs.pytorch.org/docs/stable/notes/randomness.html
"""

import os

import torch

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
MARK = "does not have a deterministic implementation"


def demand(wanted: bool) -> None:
    """Let torch take such kernels alone, from now on, or any; where one is missing it raises.

    cuBLAS reads its environment at its first call: in a process that does several jobs the first
    decides that part for all.
    """
    if wanted:
        os.environ.setdefault(WORKSPACE, ":4096:8")
    torch.backends.cudnn.benchmark = False  # which would choose kernels by how long they took
    torch.backends.cudnn.deterministic = wanted
    if torch.are_deterministic_algorithms_enabled() != wanted:  # which takes seconds to import
        torch.use_deterministic_algorithms(wanted)


def missing(error: Exception) -> str:
    """The operation that has no such kernel, where `error` says so; empty for other errors."""
    text = str(error)
    return text.partition(MARK)[0].strip() if MARK in text else ""

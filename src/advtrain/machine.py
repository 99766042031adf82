"""Errors of the machine, which say nothing of the file that was being read."""

import errno

OF_FILES = (None, errno.EINVAL, errno.EOVERFLOW)
"""What a library raises on its own, or because a file sends it to a place that cannot be."""


def of_machine(error: BaseException) -> bool:
    """Whether memory, the disk, the network or a right was wanting, which may be there again later.

    Whoever calls such a file damaged would have a sound one thrown away.
    """
    if isinstance(error, OSError):
        return error.errno not in OF_FILES
    return isinstance(error, MemoryError)

"""What a container of Linux may still take of memory, by its control group.

Files of the kernel's cgroup-v2.rst (5-2-1) and cgroup-v1/memory.rst (5.2). What is used counts the
cache of files that were read, which the kernel takes back before it refuses memory. tmpfs is not in
it: its pages are on the lists of anonymous memory.
"""

from pathlib import Path
from typing import NamedTuple

MOUNTED = Path("/sys/fs/cgroup")
UNBOUND = 2**62  # bytes; version 1 writes a number above it where there is no bound


class Names(NamedTuple):
    """Of the folder and the files of a version, and of the lines of memory.stat that are cache."""

    folder: str
    bound: str
    used: str
    cache: tuple[str, ...]


VERSIONS = (
    Names("", "memory.max", "memory.current", ("inactive_file", "active_file")),
    Names(
        "memory",
        "memory.limit_in_bytes",
        "memory.usage_in_bytes",
        ("total_inactive_file", "total_active_file"),
    ),
)


def left(mounted: Path = MOUNTED) -> int:
    """Bytes below the bound of the group at `mounted`; UNBOUND where there is none."""
    return min(_left(mounted / names.folder, names) for names in VERSIONS)


def _left(group: Path, names: Names) -> int:
    try:
        bound, used = (int((group / name).read_text()) for name in (names.bound, names.used))
    except (OSError, ValueError):  # no such group, or "max"
        return UNBOUND
    return min(UNBOUND, max(0, bound - max(0, used - _cache(group, names.cache))))


def _cache(group: Path, names: tuple[str, ...]) -> int:
    try:
        lines = (group / "memory.stat").read_text().splitlines()
    except OSError:
        return 0
    return sum(
        int(size) for name, _, size in (line.partition(" ") for line in lines) if name in names
    )

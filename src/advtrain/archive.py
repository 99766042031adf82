"""Zip files in which every reader finds one list of parts: the one that ends the file.

Readers look for it in different ways: from the beginning at the place that is told, or from the end
by its size; up to the last signature of an end, whole or torn. A file that shows a harmless list to
one and another to the next is told here, before anything is believed.
"""

import os
import struct
from pathlib import Path

START, END, END64, LOCATOR = b"PK\3\4", b"PK\5\6", b"PK\6\6", b"PK\6\7"
CLOSING, LOCATING, CLOSING64 = (
    struct.Struct(f"<{each}") for each in ("4s4H2LH", "4sLQL", "4sQ2H2L4Q")
)


def is_archive(path: Path) -> bool:
    """Whether the file begins as a zip does, by which torch.load takes it for one."""
    with path.open("rb") as stream:
        return stream.read(len(START)) == START


def astray(path: Path) -> str:
    """Why readers could find other lists of parts in a zip file; empty if they cannot.

    That is if the list lies where it says, directly before the record that ends the file.
    """
    with path.open("rb") as stream:
        size = stream.seek(0, os.SEEK_END)
        stream.seek(max(0, size - CLOSING.size - LOCATING.size - CLOSING64.size))
        tail = stream.read()
    if len(tail) < CLOSING.size:
        return "it ends before its list of parts"
    signature, *_, length, place, comment = CLOSING.unpack(tail[-CLOSING.size :])
    if signature != END or comment:
        return "it does not end with its list of parts"
    end, tail = size - CLOSING.size, tail[: -CLOSING.size]
    if tail[-LOCATING.size :].startswith(LOCATOR):
        _, _, told, _ = LOCATING.unpack(tail[-LOCATING.size :])
        end, tail = end - LOCATING.size - CLOSING64.size, tail[: -LOCATING.size]
        if len(tail) < CLOSING64.size or told != end:
            return "its list of parts is not where it says"
        signature, *_, length, place = CLOSING64.unpack(tail)
        if signature != END64:
            return "its list of parts is not where it says"
    return "" if place + length == end else "its list of parts is not where it says"

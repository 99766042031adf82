"""Whether a file of torch.save is as it was written.

Such a file is a zip, with a CRC-32 of each of its parts. torch.load does not look at them: a bit
that flips on the disk, or a block that a power cut leaves empty, is read as other weights.
"""

import os
from pathlib import Path
from zipfile import ZipFile, is_zipfile

from advtrain.machine import of_machine

TAIL = 1 << 17  # bytes at the end of a zip, in which its directory is looked for


def damage(path: Path) -> str:
    """What of the file at `path` is not as it was written; empty if nothing, or if it cannot tell.

    It cannot where the file is no zip, as before torch 1.6 (or cut off, which torch.load tells), or
    was saved without checksums. Archives that unpack to more than they are, which torch.save makes
    none of, are not unpacked to see. OSError, MemoryError: the machine could not read it now.
    """
    _require_readable(path)
    if not is_zipfile(path):
        return ""
    try:
        with ZipFile(path) as archive:
            parts = archive.infolist()
            bounded = sum(part.file_size for part in parts) <= path.stat().st_size
            summed = bounded and any(part.CRC for part in parts)
            wrong = archive.testzip() if summed else None
    except Exception as error:  # the list of its parts is damaged, which fails in any way
        if of_machine(error):
            raise
        return f"its list of parts is not readable ({type(error).__name__})"
    return f"the checksum of {wrong} is another" if wrong else ""


def _require_readable(path: Path) -> None:
    """Raise the OSError of a disk that cannot be read, which `is_zipfile` takes for no zip."""
    with path.open("rb") as stream:
        stream.seek(-min(TAIL, path.stat().st_size), os.SEEK_END)
        stream.read()

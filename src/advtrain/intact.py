"""Whether a file of torch.save is as it was written.

Such a file is a zip, with a CRC-32 of each of its parts. torch.load does not look at them: a bit
that flips on the disk, or a block that a power cut leaves empty, is read as other weights.
"""

from pathlib import Path
from zipfile import ZipFile

from advtrain.archive import astray, is_archive
from advtrain.machine import of_machine


def damage(path: Path) -> str:
    """What of the file at `path` is not as it was written; empty if nothing, or if it cannot tell.

    It cannot where the file is no zip, as before torch 1.6, or was saved without checksums.
    Archives that unpack to more than they are, which torch.save makes none of, are not unpacked to
    see. OSError, MemoryError: the machine could not read it now.
    """
    if not is_archive(path):
        return ""
    if why := astray(path):
        return why
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

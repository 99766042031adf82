"""Files that anyone may have written: read within bounds, as plain values, or not at all.

Few bytes can stand for many: compressed archives, lists that hold one list twice, and that one
twice again, containers in containers until the reader's stack ends. What is read here is no larger
in memory than its file by more than a constant, and is walked in a moment.
"""

import errno
import json
import struct
import zipfile
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

from advtrain.archive import is_archive

DEPTH = 64  # of containers in containers
MEMBERS = 1_000_000  # of all containers of a value together
BRIEF = 100  # letters of the words of others
SLACK = 1 << 20  # bytes of an archive's members beyond the size of its file
MAX_STATUS, MAX_RESULTS = 8 << 20, 32 << 20
TOO_MUCH = f"its containers are nested more than {DEPTH} deep, or hold over {MEMBERS:,} values"


class Refused(ValueError):
    """What a file holds is not taken; the message says why, as the end of a sentence."""


def content(path: Path, most: int) -> bytes:
    """The bytes of a file. Refused: it holds more than `most`. OSError: it is none."""
    if not path.is_file():  # devices and pipes would be read for ever
        told = "it is no file" if path.exists() else "there is no such file"
        raise FileNotFoundError(errno.ENOENT, told, str(path))
    with path.open("rb") as stream:
        found = stream.read(most + 1)
    if len(found) > most:
        raise Refused(f"{path.name} is larger than {most >> 20} MiB, not read")
    return found


def read_json(path: Path, most: int) -> Any:
    """The value in a JSON file of at most `most` bytes; OSError as `content`.

    ValueError, Refused among them: it is no JSON in UTF-8, an object names a key twice, or
    containers are nested more than DEPTH deep.
    """
    return parsed(content(path, most))


def parsed(text: bytes) -> Any:
    """The value of a JSON text; ValueError as `read_json`."""
    if sum(text.count(sign) for sign in (b"[", b"{", b",")) > MEMBERS:  # before there are objects
        raise Refused(TOO_MUCH)
    try:
        value = json.loads(text, object_pairs_hook=_once)
    except RecursionError as error:
        raise Refused(f"its containers are nested more than {DEPTH} deep") from error
    require_plain(value)
    return value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise Refused(f"the key {ascii(twice)[:60]} is there twice")
    return found


def require_plain(
    value: Any, *, beside: tuple[type, ...] = (), keys: tuple[type, ...] = (str,)
) -> None:
    """Refused: `value` is no tree of mappings with names, lists and scalars, or a huge one.

    `beside`: what it may hold beside scalars. `keys`: what may be in the place of names.

    A container that is reached twice counts twice, so nothing behind this has to fear its copies.
    """
    open_, members = [(value, 0)], 0
    while open_:
        node, depth = open_.pop()
        if isinstance(node, Mapping):
            if not all(isinstance(key, keys) for key in node):
                raise Refused("a key is no text")
            below = list(node.values())
        elif isinstance(node, list | tuple):
            below = list(node)
        elif node is None or isinstance(node, (str, int, float, *beside)):
            continue
        else:
            raise Refused(f"it holds a {type(node).__name__}, which is no plain value")
        members += len(below)
        if depth >= DEPTH or members > MEMBERS:
            raise Refused(TOO_MUCH)
        open_ += [(each, depth + 1) for each in below]


def printable(text: str) -> str:
    """`text` without what a terminal would obey: of control characters, line ends and tabs stay."""
    return "".join(letter if letter.isprintable() or letter in "\n\t" else "?" for letter in text)


def words(error: Exception) -> str:
    """What an error says: of one of the system, the file and the reason, without its number."""
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return str(error)


def brief(error: Exception) -> str:
    """What an error of a library says, which may quote the file at length: one short line."""
    said = printable(words(error)).split("\n")[0]
    return (said if len(said) <= BRIEF else f"{said[:BRIEF]}...") or type(error).__name__


def require_stored(path: Path) -> None:
    """Refused: the archive `path` unpacks to more than its size; torch.save compresses nothing.

    A file that is no archive passes; what its list of parts says is what torch reads unless it is
    `astray`.
    """
    if not is_archive(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, struct.error, ValueError) as error:
        raise Refused("it is a damaged archive") from error
    size = path.stat().st_size
    if sum(member.file_size for member in members) > size + SLACK:
        raise Refused("it is an archive that unpacks to more than its size")
    names = [member.filename for member in members]
    if len(set(names)) < len(names):
        raise Refused("it is an archive that names a member twice")


def require_whole(path: Path, most: int) -> None:
    """Refused: an archive of arrays (npz) that is compressed, claims more bytes than `most` or than
    it has, or holds arrays of nothing, which may have any number of entries.
    """
    from numpy.lib import format as npy

    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            if sum(member.file_size for member in members) > most:
                raise Refused(f"{path.name} holds more than {most >> 20} MiB")
            if any(member.compress_type != zipfile.ZIP_STORED for member in members):
                raise Refused(f"{path.name} is compressed")
            for member in members:
                with archive.open(member) as stream:
                    reading = {
                        (1, 0): npy.read_array_header_1_0,
                        (2, 0): npy.read_array_header_2_0,
                    }.get(npy.read_magic(stream))
                    if reading is None:
                        raise Refused(f"{path.name} holds an array of another format")
                    shape, _, kind = reading(stream)
                    beyond = prod(shape) * kind.itemsize > member.file_size
                    if kind.hasobject or not kind.itemsize or beyond:
                        raise Refused(f"{path.name} promises an array larger than it is")
    except (zipfile.BadZipFile, NotImplementedError, EOFError, RuntimeError, struct.error) as error:
        raise Refused(f"{path.name} is damaged: {brief(error)}") from error


def require_modest(path: Path) -> None:
    """Refused: the YAML file at `path` stands for more than it says.

    That is an alias to a container of aliases and so on, which a reader would write out in full, or
    containers nested more than DEPTH deep. Of what is no YAML its reader tells.
    """
    import yaml  # type: ignore[import-untyped]

    try:
        root = yaml.compose(content(path, MAX_STATUS), Loader=yaml.SafeLoader)
    except (yaml.YAMLError, RecursionError):
        return
    except (OSError, ValueError) as error:
        raise Refused(f"{path} is refused: {error}.") from error
    waiting, members = [(root, 0)] if root is not None else [], 0
    while waiting:
        node, depth = waiting.pop()
        below = node.value if isinstance(node.value, list) else []
        below = [part for pair in below for part in (pair if isinstance(pair, tuple) else [pair])]
        members += len(below)
        if depth > DEPTH or members > MEMBERS // 10:
            raise Refused(
                f"{path} is refused: its containers are nested more than {DEPTH} deep, or hold "
                f"over {MEMBERS // 10:,} values, aliases written out."
            )
        waiting += [(part, depth + 1) for part in below]

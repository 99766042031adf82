"""Logs of one line per image: tab-separated columns, under a header of their names.

They are flushed as images are done, and go on after their last line when a killed run is started
again. A line counts only with its newline: before that, a killed writer may have left half a
number. What the columns are, a `Format` says.
"""

import logging
import os
import re
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, Protocol, Self, TypeVar

from advtrain.files import naming, write_json, write_text
from advtrain.foreign import MAX_STATUS, Refused, content, read_json

log = logging.getLogger(__name__)

SYNC = 1.0  # seconds between two waits for the disk
MAX_BYTES = 64 << 20  # of a log: a million lines and more
MAX_PROBLEMS = 1000  # of lines that are none
LONGEST = 1e12  # seconds
WHOLE = re.compile(r"-?[0-9]{1,18}")


class Line(Protocol):
    """What a log says about one image."""

    @property
    def index(self) -> int:
        """The place of the image in its source; one line of a log has it."""

    @property
    def told(self) -> str:
        """What it says, in words, but for the time that it took."""

    def line(self) -> str:
        """The line of the file, without its newline."""


L = TypeVar("L", bound=Line)


@dataclass(frozen=True)
class Log(Generic[L]):
    """What a file holds: its lines in their order, and a sentence for each that is not one.

    Of lines with the same idx, the first counts; it is told where they disagree. `cut` is the
    unfinished last line, if any: it is no fault, the image was merely not done.
    """

    lines: tuple[L, ...] = ()
    problems: tuple[str, ...] = ()
    cut: str = ""


@dataclass(frozen=True)
class Format(Generic[L]):
    """One kind of log: its header, how a line is read, and its name in messages.

    `parse` raises ValueError, saying what is wrong with a line. `done` is what happens to an image
    before it has a line, as in "idx 3 was certified before". `others`: headers of logs that are
    given by mistake, and what these are.
    """

    header: str
    parse: Callable[[str], L]
    name: str
    done: str
    others: Mapping[str, str] = field(default_factory=dict)

    def read(self, path: Path) -> Log[L]:
        """The lines of `path`, those that are none, and an unfinished last line.

        A file that ends within its header holds nothing yet. ValueError: another header, a file
        that is too large, or one of too many lines that are none.
        """
        try:
            text = content(path, MAX_BYTES).decode("utf-8", errors="replace")
        except Refused as error:
            raise ValueError(f"{path}: {error}.") from error
        text = text.replace("\r\n", "\n")
        head, newline, body = text.partition("\n")
        if not newline and self.header.startswith(head):
            return Log(cut=head)
        if head != self.header:
            what = f" ({self.others[head]})" if head in self.others else ""
            raise ValueError(
                f"{path} begins with {head[:60]!r}{what}, not with the columns of {self.name}, "
                f"{self.header!r}. Move it away, or name another file."
            )
        *lines, cut = body.split("\n")
        seen: dict[int, L] = {}
        problems = []
        for number, line in enumerate(lines, start=2):
            try:
                found = self._parsed(line)
                first = seen.setdefault(found.index, found)
                if first is not found:
                    raise ValueError(self._repeated(first, found))
            except ValueError as error:
                problems.append(f"{path.name}, line {number} is not counted: {error}.")
                if len(problems) > MAX_PROBLEMS:
                    raise ValueError(
                        f"{path} is no {self.name.removeprefix('a ')}: more than {MAX_PROBLEMS} of "
                        f"its lines are none; {problems[0]}"
                    ) from error
        return Log(tuple(seen.values()), tuple(problems), cut)

    def _parsed(self, line: str) -> L:
        if line == self.header:
            raise ValueError("it is the header again, as where two logs were joined")
        if "_" in line:  # int() would read 1_0 as 10
            raise ValueError(f"a number has an underscore: {line[:60]!r}")
        return self.parse(line)

    def _repeated(self, first: L, again: L) -> str:
        """What is wrong with a second line of the same idx."""
        words = f"idx {again.index} was {self.done} before, and counts once"
        if first.told == again.told:
            return words
        stood = f"as it stood first ({first.told})"
        return f"{words}, {stood}; this line disagrees ({again.told})"

    def repair(self, path: Path) -> Log[L]:
        """Rewrite `path`, atomically, as the lines that count, so that more may be appended.

        A missing file becomes an empty log. Returns what `read` found; a sound file is not touched.
        """
        found = self.read(path) if path.exists() else Log[L]()
        if found.problems or found.cut or not path.exists() or os.path.getsize(path) == 0:
            self.rewrite(path, found.lines)
        return found

    def rewrite(self, path: Path, found: Iterable[L]) -> None:
        """Let `path`, atomically, hold these lines alone."""
        lines = [self.header, *(each.line() for each in found)]
        write_text(path, "".join(f"{line}\n" for line in lines))

    def writer(self, path: Path) -> "Writer[L]":
        return Writer(path, self)


class Writer(Generic[L]):
    """Appends lines to `path`, and flushes them as they come: a kill loses none of them, a power
    cut those of the last second.

    Opening creates the file with its header, or repairs the one that is there and goes on after
    it; `found` is what it held. Use it in a `with` block.

    ValueError: `path` is not such a log; it is left as it is.
    """

    def __init__(self, path: Path, form: Format[L]) -> None:
        self.found = form.repair(path)
        self._path = path
        self._stream = path.open("a", encoding="utf-8", newline="\n")
        self._synced = time.monotonic()

    def write(self, lines: Iterable[L]) -> None:
        """Append the lines in one piece, and flush them."""
        with naming(self._path):
            self._stream.write("".join(f"{each.line()}\n" for each in lines))
            self._stream.flush()
            if time.monotonic() - self._synced > SYNC:
                self._sync()

    def _sync(self) -> None:
        os.fsync(self._stream.fileno())
        self._synced = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with naming(self._path), self._stream:
            if kind is None:
                self._sync()


def claim(header: Path, key: str, facts: Mapping[str, Any], logs: Iterable[Path]) -> None:
    """Keep `logs` if `header`, the JSON beside them, has their `key`; else remove them.

    `key` names all that their lines depend on. `header` then says so, with the `facts` that the
    columns leave out.
    """
    if header.exists() and _kept(header).get("key") == key:
        return
    for each in logs:
        each.unlink(missing_ok=True)
    write_json(header, {"key": key, **facts})


def _kept(header: Path) -> Mapping[str, Any]:
    """What a header says; nothing where it cannot be read, so that its logs are made again."""
    try:
        found = read_json(header, MAX_STATUS)
    except ValueError:
        log.warning("%s is damaged: nobody knows what its logs are of; they begin anew.", header)
        return {}
    return found if isinstance(found, Mapping) else {}


def columns(line: str, count: int) -> list[str]:
    """The columns of a line. ValueError: not so many."""
    found = line.split("\t")
    if len(found) != count:
        raise ValueError(f"it has {len(found)} columns, not {count}: {line[:60]!r}")
    return found


def integer(word: str) -> int:
    """An integer as it is written. ValueError: it is none."""
    if not WHOLE.fullmatch(word):
        raise ValueError(f"{word[:20]!r} is no integer")
    return int(word)


def clock(duration: float) -> str:
    """Seconds as H:MM:SS.ffffff; hours may exceed 24."""
    microseconds = round(duration * 1e6)
    minutes, rest = divmod(microseconds, 60_000_000)
    whole, fraction = divmod(rest, 1_000_000)
    return f"{minutes // 60}:{minutes % 60:02}:{whole:02}.{fraction:06}"


def seconds(text: str) -> float:
    """The duration written as H:MM:SS, H:MM:SS.ffffff or seconds. ValueError for other texts."""
    parts = [float(part) for part in text.split(":")]
    if len(parts) not in (1, 3) or not all(isfinite(part) and part >= 0 for part in parts):
        raise ValueError(f"time is {text!r}, neither H:MM:SS.ffffff nor seconds")
    total = 0.0
    for part in parts:
        total = 60 * total + part
    if not total < LONGEST:
        raise ValueError(f"time is {text!r}, longer than anybody waits")
    return total

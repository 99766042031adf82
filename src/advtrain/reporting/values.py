"""Values out of a file that anyone may have written, taken for what is expected or for nothing."""

import math
from collections.abc import Mapping
from typing import Any

MAX_TEXT = 400
MAX_ENTRIES = 2_000


def named(value: Any) -> dict[str, Any]:
    """An object, or the name alone that stands for one."""
    return {"name": value} if isinstance(value, str) else mapping(value)


def mapping(value: Any) -> dict[str, Any]:
    return {text(k): v for k, v in value.items()} if isinstance(value, Mapping) else {}


def clean(value: Any) -> dict[str, Any]:
    """An object, all texts in it bounded lines; of long lists and objects the first entries."""
    return {key: _clean(entry) for key, entry in list(mapping(value).items())[:MAX_ENTRIES]}


def _clean(value: Any) -> Any:
    if isinstance(value, Mapping):
        return clean(value)
    if isinstance(value, list):
        return [_clean(entry) for entry in value[:MAX_ENTRIES]]
    return text(value) if isinstance(value, str) else value


def items(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def texts(value: Any) -> dict[str, str]:
    return {key: text(entry) for key, entry in mapping(value).items() if entry is not None}


def text(value: Any) -> str:
    """One bounded line, without control characters; what is no scalar is no text."""
    if value is None or isinstance(value, Mapping | list):
        return ""
    line = shown(" ".join(str(value).split()))
    return line if len(line) <= MAX_TEXT else f"{line[: MAX_TEXT - 1]}…"


def shown(words: object) -> str:
    """A line, or a path, as a page and a terminal may show it: without control characters, and
    without what stands for bytes that are no UTF-8.
    """
    return "".join(letter if letter.isprintable() else "?" for letter in str(words))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_real(value: Any) -> bool:
    """A number that a float holds; nan and inf are, since a loss may be."""
    return _is_number(value) and not 1e300 < abs(value) < math.inf


def number(value: Any) -> float | None:
    """A finite number, else None."""
    return float(value) if _is_number(value) and abs(value) < 1e300 else None


def integer(value: Any) -> int | None:
    known = number(value)
    return int(known) if known is not None and known == int(known) else None


def fraction(value: Any) -> float | None:
    known = number(value)
    return known if known is not None and 0 <= known <= 1 else None


def fractions(value: Any) -> dict[str, float]:
    known = {key: fraction(entry) for key, entry in mapping(value).items()}
    return {key: entry for key, entry in known.items() if entry is not None}

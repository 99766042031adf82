"""Types of hyper-parameters with the values they allow: signatures made of them are schemas.

`config.check` reads these from the source of a target, so a wrong value is refused before torch
is imported; constructors that Python callers use directly call `require` themselves.
"""

import re
from dataclasses import dataclass
from math import inf, isfinite
from typing import Annotated, Any

FRACTION = re.compile(r"\s*([+-]?\d{1,18})/(\d{1,18})\s*")


@dataclass(frozen=True)
class Range:
    """Numbers between `low` and `high`, ends included unless `open_low` or `open_high`."""

    low: float = -inf
    high: float = inf
    open_low: bool = False
    open_high: bool = False
    hint: str = ""

    def __contains__(self, value: float) -> bool:
        above = value > self.low if self.open_low else value >= self.low
        below = value < self.high if self.open_high else value <= self.high
        return isfinite(value) and above and below

    def __str__(self) -> str:
        if self.high == inf:
            relation = "greater than" if self.open_low else "at least"
            text = f"a number {relation} {self.low:g}"
        else:
            left, right = "(" if self.open_low else "[", ")" if self.open_high else "]"
            text = f"a number in {left}{self.low:g}, {self.high:g}{right}"
        return f"{text}; {self.hint}" if self.hint else text


PIXELS = Range(0, 1, hint="pixels lie in [0, 1], so write 8/255, not 8")

Eps = Annotated[float, PIXELS]
Positive = Annotated[float, Range(0, open_low=True)]
NonNegative = Annotated[float, Range(0)]
Unit = Annotated[float, Range(0, 1)]
Probability = Annotated[float, Range(0, 1, open_low=True, open_high=True)]
Decay = Annotated[float, Range(0, 1, open_high=True)]
Count = Annotated[int, Range(1)]
Natural = Annotated[int, Range(0)]

ImportPath = str
"""The dotted name of a callable; outside advtrain only where the command line names its package."""


class RangeError(ValueError):
    """A hyper-parameter is outside of its range; the message names it, its value and the range."""


def require(name: str, value: float, allowed: Range) -> None:
    """Raise RangeError, naming the key, the value and what is allowed, if `value` is outside."""
    if value not in allowed:
        raise RangeError(f"{name} is {value}; allowed is {allowed}.")


def number(value: Any) -> float | None:
    """A number from 0.1, "0.1" or "8/255"; None if it is none, or none that a float holds."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    fraction = FRACTION.fullmatch(value) if isinstance(value, str) else None
    try:
        return int(fraction[1]) / int(fraction[2]) if fraction else float(value)
    except (ValueError, ArithmeticError):
        return None

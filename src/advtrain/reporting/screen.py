"""A terminal, where a table is narrowed until it fits, and a pipe, where it keeps its width."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table as RichTable


def screen() -> "Console":
    """Standard output; in a pipe no colour is written."""
    from rich.console import Console

    return Console()


def fit(console: "Console", choices: "Sequence[RichTable]") -> None:
    """Print the first that fits on a terminal; in a pipe the first, at its full width."""
    wide = console.options.update(max_width=10_000)
    widths = [console.measure(choice, options=wide).maximum for choice in choices]
    if not console.is_terminal:
        _print(console, choices[0], widths[0])
        return
    for choice, width in zip(choices, widths, strict=True):
        if width <= console.width:
            console.print(choice)
            return
    console.print(choices[-1])


def _print(console: "Console", table: "RichTable", width: int) -> None:
    from rich.console import Console

    plain = Console(file=console.file, width=width, color_system=None, force_terminal=False)
    plain.print(table)


def say(console: "Console", text: str, style: str = "") -> None:
    """A line of plain text, whatever signs are in it."""
    from rich.text import Text

    console.print(Text(text, style=style), soft_wrap=True, highlight=False)


def new_table() -> "RichTable":
    from rich import box
    from rich.table import Table as RichTable

    return RichTable(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False, show_edge=False)

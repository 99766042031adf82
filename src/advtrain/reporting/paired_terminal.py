"""The paired comparison on a terminal."""

from collections.abc import Sequence
from itertools import compress
from typing import TYPE_CHECKING

from advtrain.reporting.paired import Pairing
from advtrain.reporting.paired_formats import caption, cells, heading, legend
from advtrain.reporting.screen import fit, new_table, say, screen
from advtrain.reporting.wording import MINUS

if TYPE_CHECKING:
    from rich.console import Console, JustifyMethod
    from rich.table import Table as RichTable

NARROWER = ((), ("settings",), ("settings", "only"))
"""The columns that are left out, by their last word, until a terminal is wide enough."""


def print_pairings(pairings: Sequence[Pairing], console: "Console | None" = None) -> None:
    """A table for each further run against the first, and what was left out of it."""
    console = console or screen()
    for pairing in pairings:
        say(console, f"\nExample by example, {legend(pairing)}", "bold")
        if pairing.pairs:
            fit(console, [_table(pairing, left_out=names) for names in NARROWER])
        for remark in pairing.remarks:
            say(console, remark, "yellow")
    if any(pairing.pairs for pairing in pairings):
        say(console, caption(pairings), "dim")


def _table(pairing: Pairing, *, left_out: Sequence[str]) -> "RichTable":
    from rich.text import Text

    shown = new_table()
    words = ["attack", "view", "settings"]
    names = [*words, *heading(pairing)]
    hidden = {*left_out, *([] if pairing.has_views else ["view"])}
    kept = [name.split()[-1] not in hidden for name in names]
    for name in compress(names, kept):
        justify: JustifyMethod = "left" if name in words else "right"
        shown.add_column(name.replace(MINUS, "-"), justify=justify, no_wrap=True)
    for pair in pairing.pairs:
        told = [pair.name, pair.view, pair.settings, *cells(pair)]
        shown.add_row(*[Text(cell.replace(MINUS, "-")) for cell in compress(told, kept)])
    return shown

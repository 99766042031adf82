"""The tables of certificates on a terminal, what attacks inside the radii found, and PREDICT."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from advtrain.reporting import study
from advtrain.reporting.claim_formats import beside_text, head, share_text, totals
from advtrain.reporting.claim_words import HIGH, caption, doubts, name, notes
from advtrain.reporting.claims import Claim, Claims
from advtrain.reporting.records import Run
from advtrain.reporting.screen import fit, new_table, say, screen
from advtrain.reporting.soundness import failure, reassurance
from advtrain.reporting.wording import DASH

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text


def unsaid(notes: Iterable[str], told: set[str]) -> list[str]:
    """The sentences that no table before has `told`; they are added to those."""
    new = [note for note in dict.fromkeys(notes) if note not in told]
    told.update(new)
    return new


def print_claims(
    tables: Sequence[Claims], console: "Console | None" = None, told: set[str] | None = None
) -> None:
    """A table per norm, narrowed where the terminal is narrow, and the notes under it.

    `told`: doubts under the tables before, which are not said again; these are added.
    """
    told = set() if told is None else told
    console = console or screen()
    for claims in tables:
        fit(console, [_wide(claims), _tall(claims)])
        for note in notes(claims):
            say(console, note, "dim")
        for doubt in unsaid(doubts(claims), told):
            say(console, f"! {doubt}", "yellow")
        say(console, caption(claims).replace("bold the", "marked the"), "dim")


def print_checks(named: Sequence[tuple[str, Run]], console: "Console | None" = None) -> None:
    """A red line for each run with a broken certificate, a calm one where none was broken."""
    console = console or screen()
    for label, run in named:
        before = f"{label}: " if label else ""
        if words := failure(run):
            say(console, f"ERROR: {before}{words}", "bold red")
        elif words := reassurance(run):
            say(console, f"{before}{words}")


def print_studies(
    named: study.Named, console: "Console | None" = None, told: set[str] | None = None
) -> None:
    """The five categories of PREDICT, a line per number of draws; `told` as above."""
    from rich.text import Text

    console = console or screen()
    if not named:
        return
    first, body = study.grid(named)
    shown = new_table()
    words = len(first) - study.NUMBERS
    for place, word in enumerate(first):
        shown.add_column(word, justify="left" if place < words else "right", no_wrap=True)
    for cells in body:
        shown.add_row(*[Text(cell) for cell in cells])
    fit(console, [shown])
    for note in unsaid(study.notes(named), set() if told is None else told):
        say(console, f"! {note}", "yellow")
    say(console, study.caption(named), "dim")


def _wide(claims: Claims) -> "RichTable":
    """A line per claim, and below a line per claim of what holds with high probability."""
    from rich.text import Text

    shown = new_table()
    first, *others = head(claims)
    shown.add_column(first, no_wrap=True)
    for word in others:
        shown.add_column(Text(word), justify="right", no_wrap=True)
    for claim in claims.claims:
        rest = [Text(cell, style="dim" if cell == DASH else "") for cell in totals(claim, claims)]
        shown.add_row(Text(name(claim)), *_cells(claim, claims), *rest)
    for claim in claims.claims:
        if claim.high and not claim.is_exact:
            cells = [share_text(claim.high.get(radius), claims) for radius in claims.radii]
            shown.add_row(*map(Text, [f"{name(claim)}, {HIGH}", *cells]), style="dim")
    return shown


def _tall(claims: Claims) -> "RichTable":
    """A line per radius, for narrow terminals; without high probability."""
    from rich.text import Text

    shown = new_table()
    shown.add_column("")
    for claim in claims.claims:
        shown.add_column(Text(name(claim)), justify="right", overflow="fold")
    columns = [
        [*_cells(claim, claims), *map(Text, totals(claim, claims))] for claim in claims.claims
    ]
    for word, cells in zip(head(claims)[1:], zip(*columns, strict=True), strict=True):
        shown.add_row(Text(word), *cells)
    return shown


def _cells(claim: Claim, claims: Claims) -> "list[Text]":
    from rich.text import Text

    cells = []
    for radius in claims.radii:
        value = claim.shares.get(radius)
        if value is None:
            cells.append(Text(DASH, style="dim"))
            continue
        best = value == claims.best(radius)
        text = Text(share_text(value, claims), style="bold green" if best else "")
        cells.append(text.append(beside_text(claim, radius, claims), style="dim"))
    return cells

"""The tables on a terminal, and in a pipe, where no column is cut and no colour is written."""

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from advtrain.reporting.formats import caption, eps_text, spread_text, value_text
from advtrain.reporting.records import Run, read_run
from advtrain.reporting.tables import Column, Line, Table, general_notes, row_notes, title
from advtrain.reporting.wording import DASH, count, duration, percent, settings

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text


def print_run(run_dir: "Path", console: "Console | None" = None) -> None:
    """The accuracies of one run, an attack per line, then its warnings."""
    from rich.text import Text

    console = console or _console()
    run = read_run(run_dir)
    facts = [run.dataset, run.model, run.defense, eps_text(run)]
    facts += [f"seed {run.seed}"] if run.seed is not None else []
    if run.rows:
        _fit(console, [_row_table(run, wide=True), _row_table(run, wide=False)])
    found = run.certified
    if found is not None:
        radii = [f"{percent(v, 1)} at {r:.2f}" for r, v in found.at_radius.items()]
        acr = [] if found.acr is None else [f"ACR {found.acr:.3f}"]
        base = [] if found.accuracy is None else [f"{percent(found.accuracy, 1)} at 0"]
        words = ", ".join([*base, *radii, *acr])
        _line(console, Text(f"certified: {words} (n = {found.examples or '?'})"))
    if run.state != "done":
        _line(console, Text(f"{run.state}: {run.error}", style="red"))
    for note in [*general_notes(run), *(n for row in run.rows for n in row_notes(run, row))]:
        about = f"{note.row}: " if note.row else ""
        _line(console, Text(f"warning: {about}{note.message}", style="yellow"))
    _line(console, Text(" · ".join([fact for fact in facts if fact]), style="dim"))


def print_table(table: Table, console: "Console | None" = None) -> None:
    """The table of a set of runs, with intervals where the terminal is wide enough for them."""
    from rich.text import Text

    console = console or _console()
    _fit(console, [_wide(table, spread=True), _wide(table, spread=False), _tall(table)])
    for line in table.lines:
        if line.error:
            _line(console, Text(f"{line.label}: {line.error}", style="red"))
    for note in table.notes:
        _line(console, Text(note, style="yellow"))
    _line(console, Text(caption(table).replace("bold the", "marked the"), style="dim"))


@contextmanager
def unread_output() -> Iterator[None]:
    """A reader that has gone, as `| head` does, ends the printing and nothing else."""
    try:
        yield
    except (BrokenPipeError, SystemExit):  # rich makes the one into the other
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _console() -> "Console":
    from rich.console import Console

    return Console()


def _fit(console: "Console", choices: "Sequence[RichTable]") -> None:
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


def _line(console: "Console", text: object) -> None:
    console.print(text, soft_wrap=True, highlight=False)


def _new_table() -> "RichTable":
    from rich import box
    from rich.table import Table as RichTable

    return RichTable(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False, show_edge=False)


def _row_table(run: Run, *, wide: bool) -> "RichTable":
    from rich.text import Text

    shown = _new_table()
    several = len(run.views) > 1 or run.views != ("identity",)
    shown.add_column("attack", no_wrap=True)
    if several:
        shown.add_column("view", no_wrap=True)
    if wide:
        shown.add_column("settings", no_wrap=True)
    for name in ("accuracy", "95 % interval", "n", *(("passes", "time") if wide else ())):
        shown.add_column(name, justify="right", no_wrap=True)
    if run.published:
        shown.add_column("paper", justify="right", no_wrap=True)
    for row in run.rows:
        interval = DASH if row.low is None else f"{percent(row.low)} to {percent(row.high)}"
        passes = (row.forward_passes or 0) + (row.backward_passes or 0)
        cells = [row.name, *([row.view] if several else []), *([settings(row)] if wide else [])]
        cells += [percent(row.accuracy), interval, DASH if row.n is None else str(row.n)]
        cells += [count(passes or None), duration(row.seconds)] if wide else []
        cells += [percent(run.published.get(row.name))] if run.published else []
        mark = "yellow" if row_notes(run, row) else ""
        shown.add_row(*[Text(cell) for cell in cells], style=mark)
    for norm, value in run.worst_case.items():
        cells = [f"worst {norm}", *(["all"] if several else []), *(["per example"] if wide else [])]
        cells += [percent(value), "", "", *(["", ""] if wide else [])]
        cells += [percent(run.published.get(f"worst_{norm}"))] if run.published else []
        shown.add_row(*[Text(cell) for cell in cells], style="bold")
    return shown


def _wide(table: Table, *, spread: bool) -> "RichTable":
    """A line per configuration."""
    from rich.text import Text

    shown = _new_table()
    shown.add_column("configuration", no_wrap=True)
    for name in [*(["view"] if table.has_views else []), *(["seeds"] if table.has_seeds else [])]:
        shown.add_column(name, no_wrap=True)
    for column in table.columns:
        shown.add_column(Text(title(column.key)), justify="right", no_wrap=True)
    for line in table.lines:
        cells = [Text(line.label), *([Text(line.view)] if table.has_views else [])]
        cells += [Text(str(line.seeds))] if table.has_seeds else []
        cells += [_cell(line, column, table, spread) for column in table.columns]
        shown.add_row(*cells, style="red" if line.error and not line.cells else "")
    return shown


def _tall(table: Table) -> "RichTable":
    """A line per measure, for narrow terminals."""
    from rich.text import Text

    shown = _new_table()
    shown.add_column("")
    told = [line for line in table.lines if line.cells]
    for line in told:
        view = f" ({line.view})" if table.has_views else ""
        shown.add_column(Text(line.label + view), justify="right", overflow="fold")
    for column in table.columns:
        cells = [_cell(line, column, table, False) for line in told]
        shown.add_row(Text(title(column.key)), *cells)
    return shown


def _cell(line: Line, column: Column, table: Table, spread: bool) -> "Text":
    from rich.text import Text

    cell = line.cells.get(column.key)
    if cell is None:
        return Text(DASH, style="dim")
    best = cell.value == table.best(column.key)
    text = Text(value_text(cell, column), style="bold green" if best else "")
    extra = spread_text(cell, column)
    if extra and (spread or cell.std is not None):
        text.append(f" {extra}", style="not bold dim")
    if column.key in line.published:
        paper = line.published[column.key]
        shown = f"{paper:.3f}" if column.is_radius else percent(paper)
        text.append(f" (paper {shown})", style="not bold dim")
    return text

"""The tables on a terminal, and in a pipe, where no column is cut and no colour is written.

An exclamation mark stands at a number with a warning, a star at a configuration or a paper's
figure with a remark; both stand under the table.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from advtrain.reporting.claim_terminal import (
    print_checks,
    print_claims,
    print_studies,
    unsaid,
)
from advtrain.reporting.formats import caption, eps_text, paper_text, spread_text, value_text
from advtrain.reporting.notes import general_notes, row_notes, sentence
from advtrain.reporting.paired_terminal import print_pairings
from advtrain.reporting.paper_words import figure_text
from advtrain.reporting.papers import of_row
from advtrain.reporting.records import Row, Run
from advtrain.reporting.report import Report
from advtrain.reporting.screen import fit, new_table, say, screen
from advtrain.reporting.tables import UNJUDGED, Column, Line, Table, title
from advtrain.reporting.wording import DASH, MINUS, count, described, duration, percent, radii
from advtrain.telling import release

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text

MARK = "! "  # before a number, so that digits stay aligned
STAR = "*"


def print_run(report: Report, console: "Console | None" = None) -> None:
    """The accuracies of one run, an attack per line, its certificates, then its warnings."""
    console = console or screen()
    (run,) = report.runs
    facts = [run.dataset, run.model, run.defense, eps_text(run)]
    facts += [f"seed {run.seed}"] if run.seed is not None else []
    told: set[str] = set()
    if run.rows:
        fit(console, [_row_table(run, wide=True), _row_table(run, wide=False)])
    print_claims(report.claims, console, told)
    print_studies(report.studies, console, told)
    if run.state != "done":
        say(console, f"{run.state}: {run.error}", "red")
    for note in [*general_notes(run), *(n for row in run.rows for n in row_notes(run, row))]:
        say(console, f"! warning: {sentence(note)}", "yellow")
    _say_of_paper(report.table, console, told)
    print_checks(report.named, console)
    say(console, " · ".join([fact for fact in facts if fact]), "dim")


def print_set(report: Report, console: "Console | None" = None) -> None:
    """The table of a set of runs and logs, comparisons, certificates; broken ones at the end."""
    console = console or screen()
    told: set[str] = set()
    if report.table.lines:
        print_table(report.accuracies, console, told)
    print_pairings(report.pairings, console)
    print_claims(report.claims, console, told)
    print_studies(report.studies, console, told)
    for words in report.left_out:
        say(console, f"! {words}", "yellow")
    print_checks(report.named, console)


def print_table(
    table: Table, console: "Console | None" = None, told: set[str] | None = None
) -> None:
    """The table of a set of runs, with intervals where the terminal is wide enough for them.

    `told`: what was said already of a paper's figures; what is said here is added.
    """
    console = console or screen()
    layouts = [_wide(table, spread=True), _wide(table, spread=False)]
    layouts += [_wide(table, spread=False, stacked=True)] if table.has_published else []
    fit(console, [*layouts, _tall(table)])
    unjudged = [line.label for line in table.lines if line.error == UNJUDGED]
    if unjudged:
        which = unjudged[0] if len(unjudged) == 1 else f"{len(unjudged)} configurations"
        say(console, f"{which}: {UNJUDGED}", "red")
    for line in table.lines:
        if line.error and line.error != UNJUDGED:
            say(console, f"{line.label}: {line.error}", "red")
    for footnote in table.footnotes:
        if not footnote.remark:
            say(console, f"! warning: {footnote.text}", "yellow")
    _say_of_paper(table, console, set() if told is None else told)
    for note in table.notes:
        say(console, note, "yellow")
    say(console, caption(table).replace("bold the", "marked the"), "dim")


def _say_of_paper(table: Table, console: "Console", told: set[str]) -> None:
    """Why its figures are not compared, and what is to be said of them."""
    for words in unsaid(table.incomparable, told):
        say(console, f"! {words}", "yellow")
    for words in [*table.remarks, *(note.text for note in table.footnotes if note.remark)]:
        say(console, f"{STAR} {words}")


@contextmanager
def unread_output() -> Iterator[None]:
    """A reader that has gone, as `| head` does, ends the printing and nothing else."""
    try:
        yield
    except (BrokenPipeError, SystemExit):  # rich makes the one into the other
        release(sys.stdout)


def _row_table(run: Run, *, wide: bool) -> "RichTable":
    from rich.text import Text

    shown = new_table()
    several = len(run.views) > 1 or run.views != ("identity",)
    shown.add_column("attack", no_wrap=True)
    if several:
        shown.add_column("view", no_wrap=True)
    if wide:
        shown.add_column("settings", no_wrap=True)
    for name in ("accuracy", "95 % interval", "n", *(("passes", "time") if wide else ())):
        shown.add_column(name, justify="right", no_wrap=True)
    paper = any(key in run.published for key in _measured(run))
    if paper:
        shown.add_column("paper", justify="right", no_wrap=True)
    for row in run.rows:
        interval = DASH if row.low is None else f"{percent(row.low)} to {percent(row.high)}"
        passes = (row.forward_passes or 0) + (row.backward_passes or 0)
        noted = bool(row_notes(run, row))
        cells = [row.name, *([row.view] if several else []), *([described(row)] if wide else [])]
        cells += [MARK * noted + percent(row.accuracy), interval]
        cells += [DASH if row.n is None else str(row.n)]
        cells += [count(passes or None), duration(row.seconds)] if wide else []
        cells += [_paper(run, row)] if paper else []
        shown.add_row(*[Text(cell) for cell in cells], style="yellow" if noted else "")
        for cells in _stages(row, several=several, wide=wide):
            shown.add_row(*[Text(cell) for cell in cells], style="dim")
    for norm, value in run.worst_case.items():
        within = ", ".join(filter(None, ["per example", radii(run, norm)]))
        cells = [f"worst {norm}", *(["all"] if several else []), *([within] if wide else [])]
        cells += [percent(value), "", "", *(["", ""] if wide else [])]
        cells += [percent(run.published.get(f"worst_{norm}"))] if paper else []
        shown.add_row(*[Text(cell) for cell in cells], style="bold")
    return shown


def _paper(run: Run, row: Row) -> str:
    figure = of_row(run, row)
    return DASH if figure is None else figure_text(figure).replace(MINUS, "-")


def _measured(run: Run) -> list[str]:
    """The keys of what the lines of a run tell."""
    return [*(row.name for row in run.rows), *(f"worst_{norm}" for norm in run.worst_case)]


def _stages(row: Row, *, several: bool, wide: bool) -> Iterator[list[str]]:
    """A line per attack of a row that is several: how many it ran on, and what was left of all."""
    for stage in row.stages:
        ran = "" if stage.n is None else f"on {stage.n}"
        passes = (stage.forward_passes or 0) + (stage.backward_passes or 0)
        cells = [f"  {stage.name}", *([""] if several else []), *([ran] if wide else [])]
        cells += [percent(stage.accuracy), "", ""]
        yield [*cells, *([count(passes or None), duration(stage.seconds)] if wide else [])]


def _wide(table: Table, *, spread: bool, stacked: bool = False) -> "RichTable":
    """A line per configuration; `stacked`, a paper's figures below ours."""
    from rich.text import Text

    shown = new_table()
    shown.add_column("configuration", no_wrap=True)
    for name in [*(["view"] if table.has_views else []), *(["seeds"] if table.has_seeds else [])]:
        shown.add_column(name, no_wrap=True)
    for column in table.columns:
        shown.add_column(Text(title(column.key)), justify="right", no_wrap=True)
    for line in table.lines:
        cells = [Text(_named(line, table))]
        cells += [Text(line.view)] if table.has_views else []
        cells += [Text(str(line.seeds))] if table.has_seeds else []
        cells += [_cell(line, column, table, spread, stacked) for column in table.columns]
        shown.add_row(*cells, style="red" if line.error and not line.cells else "")
    return shown


def _tall(table: Table) -> "RichTable":
    """A line per measure, for narrow terminals."""
    from rich.text import Text

    shown = new_table()
    shown.add_column("")
    told = [line for line in table.lines if line.cells]
    for line in told:
        view = f" ({line.view})" if table.has_views else ""
        name = _named(line, table) + view
        shown.add_column(Text(name), justify="right", overflow="fold")
    for column in table.columns:
        cells = [_cell(line, column, table, False) for line in told]
        shown.add_row(Text(title(column.key)), *cells)
    return shown


def _named(line: Line, table: Table) -> str:
    """The label, with signs for the warnings and the remarks about all of the line."""
    remarked = any(note.remark for note in table.footnotes if note.number in line.marks)
    return MARK * table.warned(line.marks) + line.label + STAR * remarked


def _cell(line: Line, column: Column, table: Table, spread: bool, stacked: bool = False) -> "Text":
    from rich.text import Text

    cell = line.cells.get(column.key)
    if cell is None:
        return Text(DASH, style="dim")
    best = cell.value == table.best(column.key)
    text = Text().append(MARK if cell.marks else "", style="yellow")
    text.append(value_text(cell, column), style="bold green" if best else "")
    extra = spread_text(cell, column)
    if extra and (spread or cell.std is not None):
        text.append(f" {extra}", style="dim")
    figure = line.published.get(column.key)
    if figure is not None:
        shown = paper_text(figure, column).replace(MINUS, "-")
        shown = shown.replace(" (", "\n(") if stacked else shown
        text.append(f"{chr(10) if stacked else ' '}paper {shown}", style="dim")
        text.append(STAR if figure.marks else "", style="yellow")
    return text

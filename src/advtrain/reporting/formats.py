"""The accuracy table as Markdown, LaTeX and CSV."""

import csv
import io
from collections.abc import Iterator

from advtrain.reporting.markup import LATEX, MARKDOWN, Markup, latex_table, pipes
from advtrain.reporting.measures import Cell
from advtrain.reporting.paper_words import ENDINGS, caption_words, figure_text, values
from advtrain.reporting.papers import Figure, departures
from advtrain.reporting.records import Run
from advtrain.reporting.tables import Column, Line, Table, title
from advtrain.reporting.values import shown
from advtrain.reporting.wording import DASH, count, duration, fraction, percent, settings, stages


def value_text(cell: Cell, column: Column) -> str:
    """`57.18`, in percent; a radius as it is."""
    return f"{cell.value:.3f}" if column.is_radius else percent(cell.value)


def paper_text(figure: Figure, column: Column) -> str:
    """The same of a paper, with how it compares with ours, see `paper_words`."""
    return figure_text(figure, radius=column.is_radius)


def spread_text(cell: Cell, column: Column) -> str:
    """`± 0.31` over seeds, `[52.14, 62.11]` for one run, or nothing."""
    if cell.std is not None:
        spread = f"{cell.std:.3f}" if column.is_radius else percent(cell.std)
        return f"± {spread}"
    if cell.low is not None:
        return f"[{percent(cell.low)}, {percent(cell.high)}]"
    return ""


def caption(table: Table) -> str:
    """What the numbers are, with n."""
    words = ["Accuracy in percent of all examples"]
    if table.n is not None:
        words[0] += f" (n = {table.n})"
    if any(cell.low is not None for line in table.lines for cell in line.cells.values()):
        words.append("with the exact 95 % interval where there is one run")
    if table.has_seeds:
        words.append("± the standard deviation over seeds")
    if table.has_published:
        words.append(caption_words(table.sources, verdicts=table.has_verdicts))
    if len(table.lines) > 1:
        words.append("bold the best of a column")
    if any(column.is_radius for column in table.columns):
        words.append("ACR the average certified radius")
    return f"{'; '.join(words)}; {DASH} not measured."


def markdown(table: Table, run: Run | None = None) -> str:
    """The table and its footnotes; between them, of a single `run`, the attacks one by one."""
    lines = [caption(table), "", *pipes(*_grid(table, MARKDOWN))]
    lines += [f"\n**{MARKDOWN.text(words)}**" for words in table.incomparable]
    lines += [f"\n{MARKDOWN.text(note)}" for note in _sentences(table)]
    lines += ["", *_rows(run, table)] if run is not None and run.rows else []
    lines += [f"\n{note}" for note in _footnotes(table, MARKDOWN)]
    return "\n".join(lines) + "\n"


def _rows(run: Run, table: Table) -> Iterator[str]:
    """How strong each attack was and what it cost, and the stages of those that are several."""
    several = len(run.views) > 1 or run.views not in ((), ("identity",))
    head = ["attack", *(["view"] if several else []), "settings", "accuracy", "95 % interval"]
    head += ["n", "forward", "backward", "time"]
    marks = {
        (line.view, key): cell.marks for line in table.lines for key, cell in line.cells.items()
    }
    body = []
    for row in run.rows:
        interval = DASH if row.low is None else f"{percent(row.low)} to {percent(row.high)}"
        accuracy = percent(row.accuracy) + MARKDOWN.marks(marks.get((row.view, row.name), ()))
        words = [row.name, *([row.view] if several else []), settings(row)]
        cells = [accuracy, interval, DASH if row.n is None else str(row.n)]
        cells += [count(row.forward_passes), count(row.backward_passes), duration(row.seconds)]
        body.append([*map(MARKDOWN.text, words), *cells])
    yield from pipes(head, body, 2 + several)
    for row in run.rows:
        if row.stages:
            view = f" ({row.view})" if several else ""
            yield f"\n{MARKDOWN.text(f'{row.name}{view}: {stages(run, row)}')}"


def latex(table: Table) -> str:
    """A booktabs table, ready for \\input; the document needs \\usepackage{booktabs}."""
    notes = [LATEX.bold(LATEX.text(words)) for words in table.incomparable]
    notes += [*map(LATEX.text, _sentences(table)), *_footnotes(table, LATEX)]
    return latex_table(LATEX.text(caption(table)), *_grid(table, LATEX), notes)


def _sentences(table: Table) -> list[str]:
    """What stands below a table without a number; first why a row of it is empty or unfinished."""
    failures = [f"{line.label}: {line.error}" for line in table.lines if line.error]
    return [*failures, *table.remarks, *table.notes]


def _footnotes(table: Table, markup: Markup) -> list[str]:
    return [f"{markup.marks([note.number])} {markup.text(note.text)}" for note in table.footnotes]


def comma_separated(table: Table) -> str:
    """For programs: fractions in full; empty for what was not measured."""
    head = ["configuration", "view", "dataset", "model", "defense", "threat", "eps"]
    head += ["seeds", "seed", "state", "error", "warnings", "directory"]
    head += ["not_comparable", "remarks"] if table.is_of_a_paper else []
    endings = ("", "_std", "_n", "_ci_low", "_ci_high", "_seeds", *ENDINGS)
    head += [f"{column.key}{ending}" for column in table.columns for ending in endings]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(head)
    for line in table.lines:
        run = line.runs[0]
        seeds = " ".join(str(r.seed) for r in line.runs if r.seed is not None)
        row: list[object] = [line.label, line.view, run.dataset, run.model, run.defense, run.norm]
        row += [run.eps, line.seeds, seeds, line.state, run.error, _warnings(line, table)]
        row += [" ".join(shown(r.directory.name) for r in line.runs)]
        if table.is_of_a_paper:
            row += ["; ".join(departures(run)), " ".join([*table.remarks, *_remarks(line, table)])]
        for column in table.columns:
            cell, paper = line.cells.get(column.key), line.published.get(column.key)
            if cell is None:
                row += [None] * 6
            else:
                row += [cell.value, cell.std, cell.n, cell.low, cell.high, cell.seeds]
            row += values(paper)
        writer.writerow([round(v, 8) if isinstance(v, float) else v for v in row])
    return out.getvalue()


def _warnings(line: Line, table: Table) -> str:
    return "; ".join(note.of(line.label) for note in table.about(line) if not note.remark)


def _remarks(line: Line, table: Table) -> list[str]:
    return [note.of(line.label) for note in table.about(line) if note.remark]


def _grid(table: Table, markup: Markup) -> tuple[list[str], list[list[str]]]:
    papers = {c.key for c in table.columns if any(c.key in line.published for line in table.lines)}
    head = ["configuration", *(["view"] if table.has_views else [])]
    head += ["seeds"] if table.has_seeds else []
    for column in table.columns:
        size = f" (n = {column.n})" if column.n is not None and table.n is None else ""
        head += [title(column.key) + size, *(["paper"] if column.key in papers else [])]
    body = []
    for line in table.lines:
        cells = [markup.text(line.label) + markup.marks(line.marks)]
        cells += [markup.text(line.view)] if table.has_views else []
        cells += [str(line.seeds)] if table.has_seeds else []
        for column in table.columns:
            cells.append(_cell(line, column, table, markup))
            if column.key in papers:
                paper = line.published.get(column.key)
                if paper is None:
                    cells.append(markup.text(DASH))
                else:
                    shown = markup.text(paper_text(paper, column))
                    cells.append(shown + markup.marks(paper.marks))
        body.append(cells)
    return [markup.text(word) for word in head], body


def _cell(line: Line, column: Column, table: Table, markup: Markup) -> str:
    cell = line.cells.get(column.key)
    if cell is None:
        return markup.text(DASH)
    value = markup.text(value_text(cell, column))
    if cell.value == table.best(column.key):
        value = markup.bold(value)
    extra = [spread_text(cell, column)]
    if cell.std is not None and cell.seeds != line.seeds:
        extra.append(f"({cell.seeds} seeds)")
    size = table.size_shown(column, cell)
    if size is not None:
        extra.append(f"(n = {size})")
    told = [markup.text(word) for word in extra if word]
    return " ".join([value + markup.marks(cell.marks), *told])


def eps_text(run: Run) -> str:
    """`linf 8/255`, the threat of a run."""
    return f"{run.norm} {fraction(run.eps)}" if run.norm else ""

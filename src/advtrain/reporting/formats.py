"""The accuracy table as Markdown, LaTeX and CSV."""

import csv
import io
import re
from collections.abc import Callable, Sequence

from advtrain.reporting.records import Run
from advtrain.reporting.tables import Cell, Column, Line, Table, general_notes, row_notes, title
from advtrain.reporting.wording import DASH, count, duration, fraction, percent, settings

Text = Callable[[str], str]

TEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "·": r"$\cdot$",
    "…": r"\ldots{}",
    DASH: "--",
    "±": r"$\pm$",
    "ε": r"$\varepsilon$",
} | {sign: f"\\{sign}" for sign in "&%$#_{}"}


def value_text(cell: Cell, column: Column) -> str:
    """`57.18`, in percent; a radius as it is."""
    return f"{cell.value:.3f}" if column.is_radius else percent(cell.value)


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
        words.append("beside it the value in the paper")
    if len(table.lines) > 1:
        words.append("bold the best of a column")
    if any(column.is_radius for column in table.columns):
        words.append("ACR the average certified radius")
    return f"{'; '.join(words)}; {DASH} not measured."


def markdown(table: Table) -> str:
    head, body = _grid(table, _markdown, lambda text: f"**{text}**")
    lines = [caption(table), "", _pipe(head), _pipe(["---", *["---:"] * (len(head) - 1)])]
    lines += [_pipe(cells) for cells in body]
    lines += [f"\n{_markdown(note)}" for note in table.notes]
    return "\n".join(lines) + "\n"


def markdown_rows(run: Run) -> str:
    """Row by row: how strong each attack was, what it cost, and the warnings about it."""
    head = ["attack", "settings", "accuracy", "95 % interval", "n", "forward", "backward", "time"]
    several = len(run.views) > 1 or run.views not in ((), ("identity",))
    lines = [_pipe([*head[:1], *(["view"] if several else []), *head[1:]])]
    lines.append(_pipe(["---"] * (2 + several) + ["---:"] * 6))
    for row in run.rows:
        interval = DASH if row.low is None else f"{percent(row.low)} to {percent(row.high)}"
        cells = [_markdown(row.name), *([_markdown(row.view)] if several else [])]
        cells += [_markdown(settings(row)), percent(row.accuracy), interval]
        cells += [DASH if row.n is None else str(row.n)]
        cells += [count(row.forward_passes), count(row.backward_passes), duration(row.seconds)]
        lines.append(_pipe(cells))
    for note in general_notes(run):
        lines.append(f"\nWarning: {_markdown(note.message)}")
    for row in run.rows:
        for note in row_notes(run, row):
            lines.append(f"\nWarning: {_markdown(f'{note.row}: {note.message}')}")
    return "\n".join(lines) + "\n"


def latex(table: Table) -> str:
    """A booktabs table, ready for \\input; the document needs \\usepackage{booktabs}."""
    head, body = _grid(table, _latex, lambda text: f"\\textbf{{{text}}}")
    lines = [
        "% needs \\usepackage{booktabs}",
        "\\begin{table}",
        "\\centering",
        f"\\caption{{{_latex(caption(table))}}}",
        f"\\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}",
        "\\toprule",
        f"{' & '.join(head)} \\\\",
        "\\midrule",
        *[f"{' & '.join(cells)} \\\\" for cells in body],
        "\\bottomrule",
        "\\end{tabular}",
        *[f"\\par\\smallskip {_latex(note)}" for note in table.notes],
        "\\end{table}",
    ]
    return "\n".join(lines) + "\n"


def comma_separated(table: Table) -> str:
    """For programs: fractions in full; empty for what was not measured."""
    head = ["configuration", "view", "dataset", "model", "defense", "threat", "eps"]
    head += ["seeds", "seed", "state", "error", "directory"]
    endings = ("", "_std", "_n", "_ci_low", "_ci_high", "_seeds", "_published")
    head += [f"{column.key}{ending}" for column in table.columns for ending in endings]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(head)
    for line in table.lines:
        run = line.runs[0]
        seeds = " ".join(str(r.seed) for r in line.runs if r.seed is not None)
        row: list[object] = [line.label, line.view, run.dataset, run.model, run.defense, run.norm]
        row += [run.eps, line.seeds, seeds, line.state, run.error]
        row += [" ".join(r.directory.name for r in line.runs)]
        for column in table.columns:
            cell, paper = line.cells.get(column.key), line.published.get(column.key)
            if cell is None:
                row += [None] * 6 + [paper]
            else:
                row += [cell.value, cell.std, cell.n, cell.low, cell.high, cell.seeds, paper]
        writer.writerow([round(v, 8) if isinstance(v, float) else v for v in row])
    return out.getvalue()


def _grid(table: Table, escape: Text, bold: Text) -> tuple[list[str], list[list[str]]]:
    papers = {c.key for c in table.columns if any(c.key in line.published for line in table.lines)}
    head = ["configuration", *(["view"] if table.has_views else [])]
    head += ["seeds"] if table.has_seeds else []
    for column in table.columns:
        size = f" (n = {column.n})" if column.n is not None and table.n is None else ""
        head += [title(column.key) + size, *(["paper"] if column.key in papers else [])]
    wordy = any(line.error for line in table.lines)
    head += ["remark"] if wordy else []
    body = []
    for line in table.lines:
        cells = [escape(line.label), *([escape(line.view)] if table.has_views else [])]
        cells += [str(line.seeds)] if table.has_seeds else []
        for column in table.columns:
            cells.append(_cell(line, column, table, escape, bold))
            if column.key in papers:
                paper = line.published.get(column.key)
                cells.append(escape(percent(paper) if not column.is_radius else f"{paper}"))
        body.append([*cells, *([escape(line.error)] if wordy else [])])
    return [escape(word) for word in head], body


def _cell(line: Line, column: Column, table: Table, escape: Text, bold: Text) -> str:
    cell = line.cells.get(column.key)
    if cell is None:
        return escape(DASH)
    value = escape(value_text(cell, column))
    if cell.value == table.best(column.key):
        value = bold(value)
    extra = [spread_text(cell, column)]
    if cell.std is not None and cell.seeds != line.seeds:
        extra.append(f"({cell.seeds} seeds)")
    size = table.size_shown(column, cell)
    if size is not None:
        extra.append(f"(n = {size})")
    return " ".join([value, *[escape(word) for word in extra if word]])


def _pipe(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _markdown(text: str) -> str:
    return re.sub(r"([\\|*`<>\[\]])", r"\\\1", text) if re.search(r"[\\|*`<>]", text) else text


def _latex(text: str) -> str:
    return "".join(TEX.get(sign, sign) for sign in text)


def eps_text(run: Run) -> str:
    """`linf 8/255`, the threat of a run."""
    return f"{run.norm} {fraction(run.eps)}" if run.norm else ""

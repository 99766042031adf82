"""The paired comparison as Markdown, LaTeX and CSV."""

import csv
import io
from collections.abc import Sequence

from advtrain.reporting.markup import LATEX, MARKDOWN, Markup, latex_table, pipes
from advtrain.reporting.paired import Pair, Pairing
from advtrain.reporting.values import shown
from advtrain.reporting.wording import MINUS, percent, points

DOUBT = "!"


def legend(pairing: Pairing) -> str:
    """`A: trades; B: mart`."""
    return "; ".join(f"{side.letter}: {side.name}" for side in (pairing.first, pairing.second))


def heading(pairing: Pairing) -> list[str]:
    """The columns from the accuracies on."""
    one, two = pairing.first.letter, pairing.second.letter
    return [one, two, f"{two} {MINUS} {one}", "95 % interval", f"{one} only", f"{two} only", "p"]


def cells(pair: Pair) -> list[str]:
    """Percent, points and counts; a mark at an accuracy that a warning concerns."""
    marks = [f"{DOUBT} " if doubtful else "" for doubtful in pair.doubtful]
    accuracies = [
        mark + percent(v) for mark, v in zip(marks, (pair.first, pair.second), strict=True)
    ]
    interval = f"{points(pair.low)} to {points(pair.high)}"
    alone = [str(pair.counts.first), str(pair.counts.second)]
    return [*accuracies, points(pair.difference), interval, *alone, chance(pair.p)]


def chance(p: float) -> str:
    """A p value to three decimals, or that it is smaller."""
    return f"{p:.3f}" if p >= 0.001 else "<0.001"


def caption(pairings: Sequence[Pairing]) -> str:
    """What the numbers are, by which methods, and what they cannot tell."""
    pairs = [pair for pairing in pairings for pair in pairing.pairs]
    sizes = ", ".join(map(str, sorted({pair.counts.n for pair in pairs})))
    doubtful = any(any(pair.doubtful) for pair in pairs)
    return (
        f"Accuracy in percent on the same examples (n = {sizes}); difference in points with "
        "Newcombe's 95 % interval for paired proportions (1998, method 10); only: how many "
        "examples stand in that run alone; p: McNemar's exact test, two-sided, of each row by "
        "itself. All of it is about these networks, not about training them with other seeds."
        f"{f' {DOUBT} a warning concerns this number.' if doubtful else ''}"
    )


def markdown(pairings: Sequence[Pairing]) -> str:
    """A table for each further run against the first."""
    lines = []
    for pairing in pairings:
        lines += [MARKDOWN.text(legend(pairing)), ""]
        if pairing.pairs:
            lines += [*pipes(*_grid(pairing, MARKDOWN), words=2 + pairing.has_views), ""]
        for remark in pairing.remarks:
            lines += [MARKDOWN.text(remark), ""]
    if any(pairing.pairs for pairing in pairings):
        lines += [caption(pairings), ""]
    return "\n".join(lines)


def latex(pairings: Sequence[Pairing]) -> str:
    """booktabs tables, ready for \\input; the document needs \\usepackage{booktabs}."""
    tables = []
    for pairing in pairings:
        words = f"{legend(pairing)}. {caption([pairing]) if pairing.pairs else ''}".strip()
        notes = [LATEX.text(remark) for remark in pairing.remarks]
        head, body = _grid(pairing, LATEX)
        left = 2 + pairing.has_views
        tables.append(latex_table(LATEX.text(words), head, body, notes, words=left))
    return "\n".join(tables)


def _grid(pairing: Pairing, markup: Markup) -> tuple[list[str], list[list[str]]]:
    head = ["attack", *(["view"] if pairing.has_views else []), "settings", *heading(pairing)]
    body = []
    for pair in pairing.pairs:
        words = [pair.name, *([pair.view] if pairing.has_views else []), pair.settings]
        body.append([markup.text(word) for word in [*words, *cells(pair)]])
    return [markup.text(word) for word in head], body


def comma_separated(pairings: Sequence[Pairing]) -> str:
    """For programs: fractions in full; `remarks` hold the sentences, in a line of their own."""
    head = ["first", "second", "first_directory", "second_directory", "row", "view", "settings"]
    head += ["n", "accuracy_first", "accuracy_second", "difference", "ci_low", "ci_high"]
    head += ["first_only", "second_only", "p", "remark"]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(head)
    for pairing in pairings:
        sides = (pairing.first, pairing.second)
        folders = [shown(side.run.directory.name) for side in sides]
        names = [*(side.name for side in sides), *folders]
        for pair in pairing.pairs:
            counts = pair.counts
            numbers = [pair.first, pair.second, pair.difference, pair.low, pair.high]
            row = [*names, pair.name, pair.view, pair.settings, counts.n]
            row += [round(number, 8) for number in numbers]
            writer.writerow([*row, counts.first, counts.second, pair.p, None])
        for remark in pairing.remarks:
            writer.writerow([*names, *[None] * (len(head) - len(names) - 1), remark])
    return out.getvalue()

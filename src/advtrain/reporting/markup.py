"""Text of others, made safe for Markdown and LaTeX, and what tables in both are made of."""

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from advtrain.reporting.wording import DASH, MINUS

TEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "·": r"$\cdot$",
    "…": r"\ldots{}",
    DASH: "--",
    MINUS: "$-$",
    "±": r"$\pm$",
    "ε": r"$\varepsilon$",
} | {sign: f"\\{sign}" for sign in "&%$#_{}"}
RAISED = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")


class Markup(NamedTuple):
    """How a language writes text as text, the numbers of footnotes after a value, and bold."""

    text: Callable[[str], str]
    marks: Callable[[Sequence[int]], str]
    bold: Callable[[str], str]


def _markdown(text: str) -> str:
    """Nothing in `text` becomes bold, code, a tag, a link or the end of a cell."""
    if not re.search(r"[\\|*`<>]|\]\s*[\[(:]", text):
        return text
    return re.sub(r"([\\|*`<>\[\]])", r"\\\1", text)


def _markdown_marks(numbers: Sequence[int]) -> str:
    return ",".join(str(number).translate(RAISED) for number in numbers)


def _latex(text: str) -> str:
    return "".join(TEX.get(sign, sign) for sign in text)


def _latex_marks(numbers: Sequence[int]) -> str:
    return f"\\textsuperscript{{{','.join(map(str, numbers))}}}" if numbers else ""


MARKDOWN = Markup(_markdown, _markdown_marks, "**{}**".format)
LATEX = Markup(_latex, _latex_marks, "\\textbf{{{}}}".format)


def pipes(head: Sequence[str], body: Sequence[Sequence[str]], words: int = 1) -> list[str]:
    """A Markdown table out of cells that are Markdown already; the first `words` columns left."""
    rule = ["---"] * words + ["---:"] * (len(head) - words)
    return [f"| {' | '.join(cells)} |" for cells in (head, rule, *body)]


def latex_table(
    caption: str,
    head: Sequence[str],
    body: Sequence[Sequence[str]],
    notes: Sequence[str],
    words: int = 1,
) -> str:
    """A booktabs table, ready for \\input, out of cells that are LaTeX already."""
    lines = [
        "% needs \\usepackage{booktabs}",
        "\\begin{table}",
        "\\centering",
        f"\\caption{{{caption}}}",
        f"\\begin{{tabular}}{{{'l' * words}{'r' * (len(head) - words)}}}",
        "\\toprule",
        f"{' & '.join(head)} \\\\",
        "\\midrule",
        *[f"{' & '.join(cells)} \\\\" for cells in body],
        "\\bottomrule",
        "\\end{tabular}",
        *[f"\\par\\smallskip {note}" for note in notes],
        "\\end{table}",
    ]
    return "\n".join(lines) + "\n"

"""The study of PREDICT: five categories of answers, by the number of draws (Cohen et al. 2019)."""

import csv
import io
from collections.abc import Sequence
from dataclasses import replace

from advtrain.reporting.markup import LATEX, MARKDOWN, latex_table, pipes
from advtrain.reporting.reading_proofs import CATEGORIES
from advtrain.reporting.records import Answers, Run, Study
from advtrain.reporting.wording import duration, percent

NUMBERS = len(CATEGORIES) + 2
"""Columns that hold numbers: the draws, the categories, the time."""

Named = Sequence[tuple[str, Study]]


def studies(named: Sequence[tuple[str, Run]]) -> list[tuple[str, Study]]:
    """Those of the runs that have one."""
    return [
        (_viewed(label, run.study), _beside_paper(run.study, run))
        for label, run in named
        if run.study is not None
    ]


def _viewed(label: str, study: Study) -> str:
    return label if study.view == "identity" else f"{label} ({study.view})"


def _beside_paper(study: Study, run: Run) -> Study:
    """With a paper's shares, `predict_100_abstain` in the configuration."""
    told = {k: v for k, v in run.published.items() if k.startswith("predict_")}
    return replace(study, published={k.removeprefix("predict_"): v for k, v in told.items()})


def grid(named: Named) -> tuple[list[str], list[list[str]]]:
    """Heading and body, in percent; a column names the runs where there are several."""
    several = len(named) > 1
    titles = [key.replace("_", ", ") for key in CATEGORIES]
    first = [*(["configuration"] if several else []), "n", *titles, "time"]
    body = [
        [
            *([label] if several else []),
            str(row.n),
            *(_share(row, key, study) for key in CATEGORIES),
            duration(row.seconds),
        ]
        for label, study in named
        for row in study.rows
    ]
    return first, body


def _share(row: Answers, key: str, study: Study) -> str:
    paper = study.published.get(f"{row.n}_{key}")
    beside = "" if paper is None else f" (paper {percent(paper)})"
    return percent(getattr(row, key)) + beside


def caption(named: Named) -> str:
    """What the numbers are, with the settings that all share."""
    words = "PREDICT by its number of draws n, in percent of all examples: correct is the label; "
    words += "accurate is what the smoothed classifier answers, by its top class"
    gold = {study.gold_draws for _, study in named}
    if len(gold) == 1 and None not in gold:
        words += f" in {gold.copy().pop():,} other draws"
    facts = []
    for key in ("sigma", "alpha", "examples"):
        known = {getattr(study, key) for _, study in named}
        facts += [f"{key} = {value:g}" for value in known if len(known) == 1 and value is not None]
    settings = ", ".join(facts)
    return f"{words} ({settings})." if facts else f"{words}."


def markdown(named: Named) -> str:
    first, body = grid(named)
    left = len(first) - NUMBERS
    cells = [[MARKDOWN.text(cell) for cell in row] for row in body]
    return "\n".join([MARKDOWN.text(caption(named)), "", *pipes(first, cells, left), ""])


def latex(named: Named) -> str:
    first, body = grid(named)
    left = len(first) - NUMBERS
    cells = [[LATEX.text(cell) for cell in row] for row in body]
    return latex_table(LATEX.text(caption(named)), [*map(LATEX.text, first)], cells, [], left)


def comma_separated(named: Named) -> str:
    """For programs: fractions in full."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    settings = ["sigma", "alpha", "gold_draws", "examples"]
    writer.writerow(["configuration", *settings, "n", *CATEGORIES, "seconds"])
    for label, study in named:
        for row in study.rows:
            shares = [getattr(row, key) for key in CATEGORIES]
            told = [getattr(study, key) for key in settings]
            writer.writerow([label, *told, row.n, *shares, row.seconds])
    return out.getvalue()

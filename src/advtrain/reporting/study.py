"""The study of PREDICT: five categories of answers, by the number of draws (Cohen et al. 2019)."""

import csv
import io
from collections.abc import Sequence

from advtrain.reporting.markup import LATEX, MARKDOWN, latex_table, pipes
from advtrain.reporting.paper_words import ENDINGS, caption_words, figure_text, values
from advtrain.reporting.papers import (
    Figure,
    beside,
    incomparable,
    is_comparable,
    reach_of,
    sources,
)
from advtrain.reporting.reading_proofs import CATEGORIES
from advtrain.reporting.records import Answers, Run, Study
from advtrain.reporting.wording import duration, percent

NUMBERS = len(CATEGORIES) + 2
"""Columns that hold numbers: the draws, the categories, the time."""

Named = Sequence[tuple[str, Run, Study]]


def studies(named: Sequence[tuple[str, Run]]) -> list[tuple[str, Run, Study]]:
    """Those of the runs that have one."""
    return [
        (_viewed(label, run.study), run, run.study) for label, run in named if run.study is not None
    ]


def _viewed(label: str, study: Study) -> str:
    return label if study.view == "identity" else f"{label} ({study.view})"


def figure(row: Answers, key: str, run: Run, study: Study) -> Figure | None:
    """A paper's share, `predict_100_abstain` in the configuration, beside ours."""
    value = run.published.get(f"predict_{row.n}_{key}")
    if value is None:
        return None
    ours = getattr(row, key)
    reach = reach_of([ours], study.examples)
    return beside(value, ours, reach, comparable=is_comparable(run))


def grid(named: Named) -> tuple[list[str], list[list[str]]]:
    """Heading and body, in percent; a column names the runs where there are several."""
    several = len(named) > 1
    titles = [key.replace("_", ", ") for key in CATEGORIES]
    first = [*(["configuration"] if several else []), "n", *titles, "time"]
    body = [
        [
            *([label] if several else []),
            str(row.n),
            *(_share(row, key, run, study) for key in CATEGORIES),
            duration(row.seconds),
        ]
        for label, run, study in named
        for row in study.rows
    ]
    return first, body


def _share(row: Answers, key: str, run: Run, study: Study) -> str:
    paper = figure(row, key, run, study)
    beside_it = "" if paper is None else f" paper {figure_text(paper)}"
    return percent(getattr(row, key)) + beside_it


def caption(named: Named) -> str:
    """What the numbers are, with the settings that all share."""
    words = "PREDICT by its number of draws n, in percent of all examples: correct is the label; "
    words += "accurate is what the smoothed classifier answers, by its top class"
    gold = {study.gold_draws for _, _, study in named}
    if len(gold) == 1 and None not in gold:
        words += f" in {gold.copy().pop():,} other draws"
    facts = []
    for key in ("sigma", "alpha", "examples"):
        known = {getattr(study, key) for _, _, study in named}
        facts += [f"{key} = {value:g}" for value in known if len(known) == 1 and value is not None]
    settings = ", ".join(facts)
    words += f" ({settings})" if facts else ""
    runs = [run for _, run, _ in named if any(k.startswith("predict_") for k in run.published)]
    if runs:
        words += f"; {caption_words(sources(runs), verdicts=any(map(is_comparable, runs)))}"
    return f"{words}."


def notes(named: Named) -> list[str]:
    """Why a paper's shares are not compared, if they are not."""
    return list(incomparable((label, run) for label, run, _ in named if run.published))


def markdown(named: Named) -> str:
    first, body = grid(named)
    left = len(first) - NUMBERS
    cells = [[MARKDOWN.text(cell) for cell in row] for row in body]
    told = [f"\n{MARKDOWN.text(words)}" for words in notes(named)]
    return "\n".join([MARKDOWN.text(caption(named)), "", *pipes(first, cells, left), *told, ""])


def latex(named: Named) -> str:
    first, body = grid(named)
    left = len(first) - NUMBERS
    cells = [[LATEX.text(cell) for cell in row] for row in body]
    told = [LATEX.text(words) for words in notes(named)]
    return latex_table(LATEX.text(caption(named)), [*map(LATEX.text, first)], cells, told, left)


def comma_separated(named: Named) -> str:
    """For programs: fractions in full."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    settings = ["sigma", "alpha", "gold_draws", "examples"]
    papers = [f"{key}{ending}" for key in CATEGORIES for ending in ENDINGS]
    writer.writerow(["configuration", *settings, "n", *CATEGORIES, "seconds", *papers])
    for label, run, study in named:
        for row in study.rows:
            shares = [getattr(row, key) for key in CATEGORIES]
            told = [getattr(study, key) for key in settings]
            beside_it = [v for key in CATEGORIES for v in values(figure(row, key, run, study))]
            line = [label, *told, row.n, *shares, row.seconds, *beside_it]
            writer.writerow([round(v, 9) if isinstance(v, float) else v for v in line])
    return out.getvalue()

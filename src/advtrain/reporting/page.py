"""The report: one HTML page that needs nothing beside itself, from records alone."""

import base64
import hashlib
import os
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from advtrain.reporting import (
    claim_formats,
    claim_words,
    formats,
    frontier_formats,
    paired_formats,
    paper_words,
    papers,
    study,
    wording,
)
from advtrain.reporting.bibliography import cited
from advtrain.reporting.claims import Claims
from advtrain.reporting.notes import general_notes, row_notes, sentence
from advtrain.reporting.paired import Pairing
from advtrain.reporting.records import Run
from advtrain.reporting.report import Report
from advtrain.reporting.tables import title
from advtrain.reporting.values import shown

TEMPLATES = Path(__file__).parent / "templates"
MAX_ENTRIES = 300
PICTURES = {
    "curves": ("wide", "Losses and accuracies over the epochs."),
    "accuracy": ("narrow", "Accuracy by attack."),
    "certified": ("narrow", "Share of the examples that are certified correct, by radius."),
    "examples": ("photo", "Clean images, adversarial ones, and the difference, enlarged."),
    "confusion": ("wide", "Which classes the attacks turn into which."),
    "radii": ("narrow", "Accuracy under attack, by the radius of the attack."),
    "robust_curves": ("narrow", "Accuracy under attack on the validation set over the epochs."),
    "frontier": ("narrow", "Standard and robust accuracy, lambda by lambda."),
}


@dataclass(frozen=True)
class Picture:
    name: str
    stem: str
    kind: str
    caption: str
    content: str


@dataclass(frozen=True)
class Tile:
    name: str
    value: str
    detail: str


@dataclass(frozen=True)
class Entry:
    label: str
    words: str
    link: str
    place: str
    run: Run
    general: list[Any]
    command: str


def run_page(run: Run, report: Report, plots: Iterable[Path]) -> str:
    """The report of one run, with those of `plots` (PNG files) that can be read."""
    return _render(
        "run.html",
        heading=run.name,
        facts=_facts(run),
        run=run,
        report=report,
        general=general_notes(run),
        tiles=_tiles(run),
        pictures=_pictures(plots),
        command=command(run),
        references=cited([run]),
        caption=formats.caption(report.table),
    )


def set_page(heading: str, report: Report, plots: Iterable[Path], out: Path) -> str:
    """The report of a set of runs and logs; links to runs are relative to the folder `out`."""
    runs, table = report.runs, report.accuracies
    named = {id(run): line.label for line in table.lines for run in line.runs}
    entries = [_entry(run, named.get(id(run), run.name), out) for run in runs[:MAX_ENTRIES]]
    seeds = len({line.label for line in table.lines})
    facts = [
        f"{seeds} configuration{'s' * (seeds != 1)}",
        f"{len(runs)} run{'s' * (len(runs) != 1)}",
    ]
    facts = facts if runs else []
    if report.logs:
        facts.append(f"{len(report.logs)} certification log{'s' * (len(report.logs) != 1)}")
    for words in ({r.dataset for r in runs}, {r.model for r in runs}):
        facts += words if len(words) == 1 and "" not in words else []
    return _render(
        "set.html",
        heading=heading,
        facts=facts,
        report=report,
        table=table,
        runs=runs,
        failed=[run for run in runs if run.state != "done"],
        caption=formats.caption(table) if table.lines else "",
        pairings=report.pairings,
        reach=_reach(report.pairings),
        pictures=_pictures(plots),
        entries=entries,
        references=cited(runs),
    )


def command(run: Run) -> str:
    """The command line that makes this run again, to the letter; empty where it is not known."""
    return "" if run.arguments is None else shlex.join(["advtrain", *run.arguments])


def _entry(run: Run, label: str, out: Path) -> Entry:
    page = run.directory / "report.html"
    place = os.path.relpath(page if page.is_file() else run.directory, out.resolve())
    words = [f"seed {run.seed}"] if run.seed is not None else []
    words += [run.state] if run.state != "done" else []
    general = general_notes(run)
    told = len(run.notes)
    words += [f"{told} warning{'s' * (told != 1)}"] if told else []
    link = quote(os.fsencode(place))
    return Entry(label, ", ".join(words), link, shown(place), run, general, command(run))


def _facts(run: Run) -> list[str]:
    seed = f"seed {run.seed}" if run.seed is not None else ""
    chosen = f" (chosen on {run.selected_on})" if run.selected_on else ""
    checkpoint = f"checkpoint {run.checkpoint}{chosen}" if run.checkpoint else ""
    model = run.model
    if run.parameters:
        model += f", {wording.count(run.parameters)} parameters"
    facts = [run.dataset, model, run.defense, formats.eps_text(run), seed, checkpoint]
    return [fact for fact in facts if fact]


def _tiles(run: Run) -> list[Tile]:
    tiles = []
    for row in [row for row in run.rows if row.name == "clean"][:1]:
        view = f", {row.view}" if len(run.views) > 1 else ""
        text = f"{wording.percent(row.accuracy, 1)} %"
        tiles.append(Tile(f"clean{view}", text, _interval(row)))
    for norm, value in list(run.worst_case.items())[:2]:
        within = wording.radii(run, norm).removeprefix("eps ")
        eps = f"eps {within}" if within else "per example"
        tiles.append(Tile(f"worst case, {norm}", f"{wording.percent(value, 1)} %", eps))
    found = run.certified
    if found is not None and found.acr is not None:
        sigma = f", sigma {found.sigma:g}" if found.sigma is not None else ""
        norm = f" in {found.norm}" if found.norm != "l2" else ""
        tiles.append(Tile(f"certified radius{norm}", f"{found.acr:.3f}", f"average{sigma}"))
    sizes = sorted({row.n for row in run.rows if row.n is not None})
    if sizes:
        text = f"{sizes[0]}" if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"
        tiles.append(Tile("examples", text, f"{run.split} set" if run.split else ""))
    if run.seconds is not None:
        tiles.append(Tile("time", wording.duration(run.seconds), run.environment.get("device", "")))
    return tiles


def _interval(row: Any) -> str:
    if row.low is None:
        return ""
    return f"{wording.percent(row.low, 1)} to {wording.percent(row.high, 1)}"


def _reach(pairings: Sequence[Pairing]) -> float:
    """The largest distance from 0 of an end of an interval, which all their drawings share."""
    pairs = [pair for pairing in pairings for pair in pairing.pairs]
    return max((abs(end) for pair in pairs for end in (pair.low, pair.high)), default=1.0)


def _spread(differences: Iterable[float], reach: float) -> list[str]:
    """Places between 0 and 100 for differences between -reach and reach."""
    return [f"{50 + 49 * difference / reach:.2f}" for difference in differences]


def _pictures(plots: Iterable[Path]) -> list[Picture]:
    pictures = []
    for path in plots:
        name = "certified" if path.stem.startswith("certified") else path.stem
        if name in PICTURES and path.is_file():
            kind, words = PICTURES[name]
            content = base64.b64encode(path.read_bytes()).decode()
            pictures.append(Picture(name, path.stem, kind, words, content))
    return pictures


def _curve(claims: Claims, pictures: Iterable[Picture]) -> list[Picture]:
    """The figure of a table of certificates."""
    end = "" if claims.word == "l2" else f"_{claims.word}"
    names = (f"certified{end}", f"certified_curves{end}")
    return [picture for picture in pictures if picture.stem in names]


def _plain(config: dict[str, Any]) -> str:
    import yaml  # type: ignore[import-untyped]

    return str(yaml.safe_dump(config, sort_keys=False, allow_unicode=True, width=100))


def _render(name: str, **values: Any) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    pages = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    pages.filters |= {
        "percent": wording.percent,
        "count": wording.count,
        "duration": wording.duration,
        "settings": wording.described,
        "plain": _plain,
        "title": title,
        "row_notes": row_notes,
        "sentence": sentence,
        "value_text": formats.value_text,
        "spread_text": formats.spread_text,
        "legend": paired_formats.legend,
        "heading": paired_formats.heading,
        "cells": paired_formats.cells,
        "paper_text": formats.paper_text,
        "figure_text": paper_words.figure_text,
        "paper_row": papers.of_row,
        "points": wording.points,
        "spread": _spread,
        "paired_caption": paired_formats.caption,
        "claim_name": claim_words.name,
        "claim_notes": claim_words.notes,
        "claim_doubts": claim_words.doubts,
        "claim_caption": claim_words.caption,
        "claim_heading": claim_words.heading,
        "claim_curve": _curve,
        "claim_head": claim_formats.head,
        "claim_totals": claim_formats.totals,
        "share_text": claim_formats.share_text,
        "share_spread": claim_formats.beside_text,
        "study_grid": study.grid,
        "study_caption": study.caption,
        "study_notes": study.notes,
        "frontier_cells": frontier_formats.cells,
        "frontier_sentences": frontier_formats.sentences,
    }
    style = Markup((TEMPLATES / "style.css").read_text(encoding="utf-8"))
    script = Markup((TEMPLATES / "sort.js").read_text(encoding="utf-8"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    pages.globals |= {"dash": wording.DASH, "style": style, "frontier_head": frontier_formats.HEAD}
    pages.globals |= {"script": script, "digest": digest}  # no other script may run
    return pages.get_template(name).render(**values)

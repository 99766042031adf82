"""The tables of certificates as Markdown, LaTeX and CSV."""

import csv
import io
from collections.abc import Iterator, Sequence

from advtrain.reporting.claim_words import HIGH, caption, doubts, name, notes
from advtrain.reporting.claims import Claim, Claims
from advtrain.reporting.markup import LATEX, MARKDOWN, Markup, latex_table, pipes
from advtrain.reporting.paper_words import ENDINGS, figure_text, values
from advtrain.reporting.wording import DASH, percent


def markdown(tables: Sequence[Claims]) -> str:
    """A table per norm with its caption and notes."""
    lines = []
    for claims in tables:
        lines += [MARKDOWN.text(caption(claims)), "", *pipes(*grid(claims, MARKDOWN))]
        lines += [f"\n{MARKDOWN.text(note)}" for note in (*notes(claims), *doubts(claims))]
        lines.append("")
    return "\n".join(lines)


def latex(tables: Sequence[Claims]) -> str:
    """booktabs tables, ready for \\input; the document needs \\usepackage{booktabs}."""
    return "\n".join(
        latex_table(
            LATEX.text(caption(claims)),
            *grid(claims, LATEX),
            [LATEX.text(note) for note in (*notes(claims), *doubts(claims))],
        )
        for claims in tables
    )


def grid(claims: Claims, markup: Markup) -> tuple[list[str], list[list[str]]]:
    """Heading and body: a row per claim, then a row per claim of what holds with high probability.

    Cells are text of the language.
    """
    body = []
    for claim in claims.claims:
        cells = [markup.text(name(claim)), *_shares(claim, claims, markup)]
        cells += [markup.text(cell) for cell in totals(claim, claims)]
        body.append(cells)
    for claim in claims.claims:
        if claim.high and not claim.is_exact:
            cells = [f"{name(claim)}, {HIGH}"]
            cells += [share_text(claim.high.get(radius), claims) for radius in claims.radii]
            cells += [""] * len(totals(claim, claims))
            body.append([markup.text(cell) for cell in cells])
    return [markup.text(word) for word in head(claims)], body


def head(claims: Claims) -> list[str]:
    """The names of the columns."""
    seeds = ["seeds"] if _several(claims) else []
    radii = [f"r={radius:g}" for radius in claims.radii]
    return ["configuration", *radii, "ACR", "abstained", "n", *seeds]


def totals(claim: Claim, claims: Claims) -> list[str]:
    """ACR, abstentions, examples, and seeds where there are several."""
    acr = DASH if claim.acr is None else f"{claim.acr:.3f}"
    if claim.acr_spread is not None:
        acr += f" ± {claim.acr_spread:.3f}"
    abstained = "" if claim.is_exact else share_text(claim.abstain, claims)
    size = DASH if claim.examples is None else str(claim.examples)
    return [acr, abstained, size, *([str(claim.seeds)] if _several(claims) else [])]


def share_text(value: float | None, claims: Claims) -> str:
    """`42.80`, or `0.43` where fractions are wanted, as papers print them."""
    if value is None:
        return DASH
    return f"{value:.2f}" if claims.fractions else percent(value)


def beside_text(claim: Claim, radius: float, claims: Claims) -> str:
    """` ± 0.31` over seeds and ` paper 42.80 (+0.20, within)`, or nothing."""
    spread, paper = claim.spread.get(radius), claim.published.get(radius)
    words = "" if spread is None else f" ± {share_text(spread, claims)}"
    if paper is None:
        return words
    return f"{words} paper {figure_text(paper, fractions=claims.fractions)}"


def comma_separated(tables: Sequence[Claims]) -> str:
    """For programs: a line per claim, fractions in full, radii of all norms side by side."""
    radii = sorted({radius for claims in tables for radius in claims.radii})
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    kinds = ("certified", "high_probability")
    keys = [f"{kind}_{radius:g}" for kind in kinds for radius in radii]
    keys += [f"{ending.strip('_')}_{radius:g}" for radius in radii for ending in ENDINGS]
    first = ["configuration", "kind", "view", "norm", "noise", "precision"]
    first += ["sigma", "n0", "n", "alpha"]
    last = ["seeds", "examples", "abstain", "acr", "acr_std", "radii_asked", "draws"]
    last += ["soundness_attack", "soundness_examples", "soundness_broken", "source", "remarks"]
    writer.writerow([*first, *keys, *last])
    for claims in tables:
        for claim in claims.claims:
            told = [*_settings(claim), *(claim.shares.get(radius) for radius in radii)]
            told += [claim.high.get(radius) for radius in radii]
            told += [each for radius in radii for each in values(claim.published.get(radius))]
            told += [claim.seeds, claim.examples, claim.abstain, claim.acr, claim.acr_spread]
            told += [*_check(claim), claim.source, " ".join(claim.remarks)]
            writer.writerow([round(v, 9) if isinstance(v, float) else v for v in told])
    return out.getvalue()


def _settings(claim: Claim) -> list[object]:
    found = claim.found
    if found is None:
        return [claim.label, "exact", None, claim.norm, *[None] * 6]
    told = [claim.label, "smoothing", found.view, claim.norm, found.noise, found.precision]
    return [*told, found.sigma, found.n0, found.n, found.alpha]


def _check(claim: Claim) -> Iterator[object]:
    found = claim.found
    asked = " ".join(f"{radius:g}" for radius in found.asked) if found is not None else ""
    yield from (asked, found.draws if found is not None else None)
    check = found.soundness if found is not None else None
    if check is None:
        yield from (None, None, None)
    else:
        yield from (check.attack, check.examples, len(check.broken))


def _shares(claim: Claim, claims: Claims, markup: Markup) -> Iterator[str]:
    for radius in claims.radii:
        value = claim.shares.get(radius)
        shown = markup.text(share_text(value, claims))
        best = value is not None and value == claims.best(radius)
        beside = markup.text(beside_text(claim, radius, claims))
        yield (markup.bold(shown) if best else shown) + beside


def _several(claims: Claims) -> bool:
    return any(claim.seeds > 1 for claim in claims.claims)

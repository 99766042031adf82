"""Certified accuracy over the radius: the curves of one run, or of several in one figure."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from advtrain.certification.shares import high_probability
from advtrain.reporting.claim_words import HIGH, axis, heading, name, settings_of
from advtrain.reporting.claims import Claim, Claims
from advtrain.reporting.style import COLOURS, MARKERS, figure, footnote, percent_axis, save

DASHES = ("-", (0, (5, 1.5)), (0, (1, 1)))  # a colour comes again in the next
SHORT = 48  # signs of a label that leave room for another beside it
MAX_LINES = len(COLOURS) * len(DASHES)


def certified_curves(claims: Claims, path: Path) -> Path | None:
    """A step curve per log, by sigma, ending where nothing is certified; points without a log.

    A thin line below is what holds with high probability; a band around a curve that is alone,
    its pointwise 95 % interval. None where there is nothing to draw.
    """
    told = [claim for claim in claims.claims if claim.radii or len(claim.shares) > 1]
    order = [claim.data for claim in told]
    drawn = sorted(
        told[:MAX_LINES],
        key=lambda claim: (order.index(claim.data), claim.sigma is None, claim.sigma or 0.0),
    )
    if not drawn:
        return None
    alone = len(drawn) == 1
    with figure(*(6.4, 3.5) if alone else (7.2, 3.7 + 0.15 * len(drawn))) as (drawing, grid):
        axes = grid[0][0]
        for claim in drawn:
            _draw(axes, claim, band=alone)
        words = _words(drawn, len(told))
        axes.set(title=heading(claims), xlabel=axis(claims.norm))
        axes.set_xlim(left=0)
        axes.set_ylim(0, 1.02)
        percent_axis(axes.yaxis)
        if alone:
            footnote(drawing, words)
        else:  # a footnote would run into the legend
            axes.set_xlabel(f"{axis(claims.norm)}\n{words}" if words else axis(claims.norm))
            longest = max(len(line.get_label()) for line in axes.lines)
            drawing.legend(loc="outside lower left", ncols=2 if longest <= SHORT else 1)
        return save(drawing, path)


def steps(axes: Any, radii: Sequence[float], *, loss: float = 0.0, **look: Any) -> None:
    """The fraction of `radii` that reach r, less `loss`, as a function of r; -1 never does."""
    x, hits = _reached(radii)
    shares = (hits / len(radii) - loss).clip(min=0)
    axes.plot(x, shares, drawstyle="steps-pre", **look)


def _draw(axes: Any, claim: Claim, *, band: bool) -> None:
    colour = COLOURS[claim.place % len(COLOURS)]
    dash = DASHES[claim.place // len(COLOURS) % len(DASHES)]
    size = f" (n = {claim.examples})" if claim.examples is not None else ""
    label = f"{name(claim)}{size}"
    if not claim.radii:
        x, y = zip(*sorted(claim.shares.items()), strict=True)
        marker = MARKERS[claim.place % len(MARKERS)]
        axes.plot(x, y, marker=marker, linestyle=":", linewidth=1.2, color=colour, label=label)
        return
    steps(axes, claim.radii, color=colour, linestyle=dash, label=label)
    found = claim.found
    if found is not None and found.alpha is not None:
        loss = 1 - high_probability(1.0, len(claim.radii), found.alpha)
        steps(axes, claim.radii, loss=loss, color=colour, linewidth=0.8, alpha=0.7)
    if band:
        from scipy.special import betaincinv

        n = len(claim.radii)
        x, hits = _reached(claim.radii)
        low = betaincinv(hits.clip(1), n - hits.clip(1) + 1, 0.025) * (hits > 0)
        high = betaincinv(hits.clip(max=n - 1) + 1, n - hits.clip(max=n - 1), 0.975)
        high[hits == n] = 1.0
        axes.fill_between(x, low, high, step="pre", alpha=0.15, linewidth=0, color=colour)


def _reached(radii: Sequence[float]) -> tuple[Any, Any]:
    """Where the curve steps, from 0 on, and how many radii reach there."""
    import numpy as np

    ordered = np.sort(np.asarray([radius for radius in radii if radius >= 0]))
    reached = len(ordered) - np.arange(len(ordered))
    x = np.concatenate([[0.0], ordered, ordered[-1:]])
    return x, np.concatenate([[len(ordered)], reached, [0] if len(ordered) else []])


def _words(drawn: Sequence[Claim], told: int) -> str:
    facts, words = "", []
    if len(drawn) == 1 and drawn[0].found is not None:
        size = "" if drawn[0].examples is None else f"{drawn[0].examples} examples"
        facts = ", ".join(filter(None, [size, settings_of(drawn[0].found)]))
    if any(claim.radii for claim in drawn):
        words.append(f"thin: {HIGH}")
    if len(drawn) == 1 and drawn[0].radii:
        words.append("band: pointwise 95 % interval")
    if any(not claim.radii and not claim.is_exact for claim in drawn):
        words.append("markers: no log was found, radii in between are not known")
    if any(claim.is_exact for claim in drawn):
        words.append("exact: at its markers")
    if any(claim.seeds > 1 and claim.radii for claim in drawn):
        words.append("of several seeds the first is drawn")
    if told > len(drawn):
        words.append(f"the first {len(drawn)} of {told} are drawn")
    return "\n".join(filter(None, [facts, "; ".join(words)]))

"""What luck of the draw is worth: stochastic networks that are attacked or judged by single draws.

Papers attack a stochastic network by gradients of single draws, and judge it by one more. Both
make it look better than it is: gradients of a relaxed sample at a low temperature are zero almost
everywhere, and noise that differs from step to step leads nowhere (Athalye et al. 2018,
https://arxiv.org/abs/1802.00420). `overstatement` holds that figure against the worst case of all
rows by the averaged classifier; `concerns` says of each row what it leaves to chance.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from math import sqrt
from statistics import fmean, stdev
from typing import Any

from advtrain.evaluation import Outcome, Row
from advtrain.kinds import BLACK_BOX
from advtrain.results import arguments, attack_name, looks, spread, unwrapped
from advtrain.types import Corruption

SURE = 1.96  # standard errors on each side of an interval of 95 %


def concerns(outcomes: Sequence[Outcome]) -> Iterator[dict[str, str]]:
    """A warning for each row of a stochastic network that takes it for a deterministic one."""
    for outcome in outcomes:
        row = outcome.row
        said = [text for text in (_crafted(row), _judged(outcome)) if text]
        if said:
            yield {"check": "stochastic", "row": row.name, "message": " ".join(said)}


def _crafted(row: Row) -> str:
    attacks = row.members.values() if row.members else [row.plain]
    if not any(as_if_fixed(attack, row.draws) for attack in attacks):
        return ""
    return (
        "Each gradient is that of one draw, as if the network drew nothing, so the accuracy may be "
        "far too high: attack through the mean over draws, and without noise (eval=stochastic)."
    )


def _judged(outcome: Outcome) -> str:
    if outcome.row.draws > 1:
        return ""
    found = spread(outcome).get("draws")
    rest = ""
    if found is not None and found["sd"] is not None:
        rest = (
            f" {found['n']} fresh ones are right on {100 * found['mean']:.1f} % at these points, "
            f"standard deviation {100 * found['sd']:.1f}."
        )
    return f"The verdict is one draw of a network that draws at random.{rest}"


def as_if_fixed(attack: Any, draws: int) -> bool:
    """Whether `attack` takes gradients of single draws of the network as it is.

    `draws`: those of an answer of the network that it is run on.
    """
    inner, views = unwrapped(attack)
    harmless = inner is None or isinstance(inner, Corruption)
    if harmless or attack_name(inner) in (*BLACK_BOX, "clean"):
        return False
    if views and not all(attack_name(view) in ("identity", "mean_of") for view in views):
        return False
    given = arguments(inner)
    averaged = [arguments(view).get("draws", 1) for view in views] if views else [draws]
    objective = given.get("objective")
    samples = objective.keywords.get("samples", 1) if isinstance(objective, partial) else 1
    return max(*averaged, given.get("eot") or 1, samples) == 1


def overstatement(outcomes: Sequence[Outcome], naive: str) -> dict[str, Any] | None:
    """How far single draws at the proposals of the row `naive` exceed the worst case.

    That is, of each example, whether it stands against all rows of the same set under the same
    view. Per example the difference is a share of the draws less 0 or 1; its mean has an interval
    of 95 % by its standard error. None: the row, the clean one or another to compare are missing,
    or verdicts are single draws.
    """
    rows = {outcome.row.name: outcome for outcome in outcomes}
    row, clean = rows.get(naive), rows.get("clean")
    if row is None or clean is None or row.row.threat is None or row.row.draws == 1:
        return None
    alike = [each for each in outcomes if _ball(each.row) == _ball(row.row)]
    single, unharmed = (spread(each).get("draws") for each in (row, clean))
    if len(alike) < 2 or single is None or unharmed is None:
        return None
    stands = [all(bits) for bits in zip(*(each.standing for each in alike), strict=True)]
    shares = [fmean(bits) for bits in looks(row)]
    apart = [share - stand for share, stand in zip(shares, stands, strict=True)]
    n, mean = len(apart), fmean(apart)
    error = SURE * stdev(apart) / sqrt(n) if n > 1 else 1.0
    return {
        "view": row.row.view,
        "draws": row.row.draws,
        "n": n,
        "clean": {**unharmed, "averaged": fmean(clean.standing)},
        "control": {
            "eps": 0.0,
            "looks": unharmed["n"],
            "accuracy": unharmed["all"],
            "cost": unharmed["mean"] - unharmed["all"],
        },
        "naive": {"row": naive, **single, "averaged": fmean(row.standing)},
        "adaptive": {"rows": [each.row.name for each in alike], "accuracy": fmean(stands)},
        "overstated": {"mean": mean, "ci95": [max(mean - error, -1.0), min(mean + error, 1.0)]},
    }


def sentence(found: Mapping[str, Any]) -> dict[str, str]:
    """The warning that says so, at the row `naive`."""
    low, high = (100 * end for end in found["overstated"]["ci95"])
    naive, control, clean = found["naive"], found["control"], found["clean"]
    return {
        "check": "single_draw",
        "row": naive["row"],
        "message": (
            f"By the papers' protocol, one draw at these points, {_percent(naive['mean'])} stand "
            f"(standard deviation {_points(naive['sd'])} over {naive['n']} draws); against all "
            f"rows together {_percent(found['adaptive']['accuracy'])} do, by the mean over "
            f"{found['draws']} draws. The figure of single draws is too high by "
            f"{100 * found['overstated']['mean']:.1f} points [{low:.1f}, {high:.1f}], "
            f"n = {found['n']}. Without any attack one draw is right on {_percent(clean['mean'])}, "
            f"and all of {control['looks']} looks on {_percent(control['accuracy'])}: that is what "
            "choosing among looks costs by itself."
        ),
    }


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _points(sd: float | None) -> str:
    return "unknown" if sd is None else f"{100 * sd:.1f}"


def _ball(row: Row) -> tuple[str, float] | None:
    return (row.threat.norm, row.threat.eps) if row.threat is not None else None

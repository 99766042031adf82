"""What the rows of an evaluation say together, each view by itself: warnings, and more entries."""

from collections.abc import Collection, Iterator, Sequence
from typing import Any

from advtrain import lottery
from advtrain.evaluation import Outcome
from advtrain.results import row_record, worst_case
from advtrain.trust import PLAIN, contradictions


def warnings(
    outcomes: Sequence[Outcome],
    *,
    alike: float,
    lucky: Collection[str],
    stochastic: bool,
    naive: str | None,
) -> Iterator[dict[str, str]]:
    """What `outcomes` say against their numbers; with its view where there are several.

    `alike`: the share of the examples that have the commonest label. `lucky`: views whose networks
    have learned nothing, so that which examples stand tells nothing of gradients. `naive`: the row,
    in a view that averages over draws, to be held against the worst case there.
    """
    views = by_view(outcomes)
    for view, rows in views.items():
        said = contradictions([row_record(outcome) for outcome in rows], alike)
        said = [each for each in said if view not in lucky or each["check"] in PLAIN]
        said += lottery.concerns(rows) if stochastic else []
        over = lottery.overstatement(rows, naive) if naive else None
        said += [lottery.sentence(over)] if over else []
        for each in said:
            yield {**each, "view": view} if len(views) > 1 else each


def entries(outcomes: Sequence[Outcome], *, naive: str | None) -> dict[str, Any]:
    """What results.json holds beside the usual: nothing for one view and without `naive`."""
    found: dict[str, Any] = {}
    views = by_view(outcomes)
    if len(views) > 1:
        found["worst_case_by_view"] = {view: worst_case(rows) for view, rows in views.items()}
    if naive is not None:
        over = [lottery.overstatement(rows, naive) for rows in views.values()]
        found["single_draw"] = [each for each in over if each is not None]
    return found


def by_view(outcomes: Sequence[Outcome]) -> dict[str, list[Outcome]]:
    views: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        views.setdefault(outcome.row.view, []).append(outcome)
    return views

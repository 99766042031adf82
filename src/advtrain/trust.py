"""What the rows of an evaluation say about each other: when a robust accuracy misleads.

Carlini et al. 2019 (https://arxiv.org/abs/1902.06705) list what cannot be: one step better than
many, a black box better than a white one, a larger set safer than a smaller. AutoAttack warns where
its Square takes over 0.2 points more (Croce and Hein 2020, https://arxiv.org/abs/2003.01690).

Rows are records of results.json, and are compared example by example. Something is said only where
they differ by clearly more than those of honest networks (`tolerance`); silence is no all-clear.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import reduce
from itertools import pairwise, product
from operator import and_, itemgetter
from typing import Any

from advtrain.tolerance import IMPOSSIBLE, OVERSTATED, UNLIKELY, clearly, has_collapsed

Record = Mapping[str, Any]
Said = Iterator[tuple[str, str]]
"""Names of rows, and a message about each."""

SINGLE = ("fgsm", "rfgsm")
ASCENDING = ("pgd", "mim", "apgd", "gama", "autoattack")
BLACK_BOX = ("square", "transfer")
THOROUGH = ("apgd_t", "apgd_dlr", "fab", "fab_t")  # stages that no scale of the logits hides from
SEVERAL, MANY = 5, 50  # steps: from which one must not be stronger, and a black box not either
STANDARD = {"steps": 100, "queries": 5000}  # of AutoAttack, on leaderboards


def contradictions(rows: Sequence[Record]) -> list[dict[str, str]]:
    """What `rows` say against their numbers, as `warnings` of results.json; `clean` among them."""
    return [
        {"check": check.__name__, "row": row, "message": message}
        for check in CHECKS
        for row, message in check(rows)
    ]


def outside(rows: Sequence[Record]) -> Said:
    for row in filter(itemgetter("outside"), rows):
        yield (
            row["name"],
            f"{row['outside']} of {row['n']} proposals lie outside the set or the box, or are not "
            "finite; they count as no success, so this accuracy is too high for the attack.",
        )


def non_finite(rows: Sequence[Record]) -> Said:
    for row in filter(itemgetter("non_finite"), rows):
        yield (
            row["name"],
            f"{row['non_finite']} of {row['n']} proposals get logits that are not finite, which "
            "fool nobody here. Find out where the model overflows.",
        )


def above_clean(rows: Sequence[Record]) -> Said:
    clean = _clean(rows)
    for row in rows if clean else ():
        hits, n = _standing(row), row["n"]
        helped = round(row["accuracy_at_proposals"] * n) - hits
        if clearly(helped, clean - hits, n, IMPOSSIBLE):
            yield (
                row["name"],
                f"{hits + helped} of {n} examples are right under this attack and {clean} without: "
                "an attack that helps has the wrong gradient, or the network has learned to read "
                "the label from it. Believe rows of several steps only.",
            )


def single_step(rows: Sequence[Record]) -> Said:
    for one, many in _one_and_many(rows):
        broken, more = _between(one, many)
        if clearly(broken, more, one["n"], IMPOSSIBLE):
            yield (
                many["name"],
                f"{one['name']} breaks {broken} of {one['n']} examples that this row leaves "
                f"standing, the reverse holds for {more}: several steps must not do worse than "
                "one. Gradients are masked, or the step size is wrong; run autoattack.",
            )


def collapsed(rows: Sequence[Record]) -> Said:
    clean = _clean(rows)
    for one, many in _one_and_many(rows):
        if has_collapsed(_standing(one), _standing(many), clean):
            yield (
                one["name"],
                f"Of {clean} examples that are right {_standing(one)} stand against one step, "
                f"{_standing(many)} against {many['name']}: single-step training has collapsed. "
                "Believe rows of several steps only.",
            )


def more_steps(rows: Sequence[Record]) -> Said:
    for few, many, broken, more in _reversed(rows, "steps", "eps"):
        yield (
            many["name"],
            f"{broken} of {few['n']} examples stand after {many['steps']} steps and not after "
            f"{few['steps']}, the reverse holds for {more}: more steps lead away, as on masked "
            "gradients. Keep the first point that fools, and run autoattack.",
        )


def larger_eps(rows: Sequence[Record]) -> Said:
    for small, large, broken, more in _reversed(rows, "eps", "steps"):
        yield (
            large["name"],
            f"{broken} of {small['n']} examples stand within {large['eps']:.4g} and not within "
            f"{small['eps']:.4g}, the reverse holds for {more}: a larger set cannot be safer. "
            "Gradients lead astray; run autoattack.",
        )


def black_box(rows: Sequence[Record]) -> Said:
    yield from _square_stage(rows)
    for group in _groups(rows, "norm", "eps"):
        white = [row for row in group if _kind(row) not in BLACK_BOX]
        black = [row for row in group if row not in white]
        standing = reduce(and_, map(_bits, white), -1)
        thorough = any(map(_thorough, white))
        for row in black if any(map(_several, white)) else ():
            usual = UNLIKELY if _kind(row) == "transfer" else OVERSTATED
            broken = (standing & ~_bits(row)).bit_count()
            if clearly(broken, 0, row["n"], IMPOSSIBLE if thorough else usual):
                yield (
                    row["name"],
                    f"{broken} of {row['n']} examples fall to this attack, which sees no gradient, "
                    "and to none that does: gradients are masked. Believe the worst case, and "
                    "attack adaptively.",
                )


def _square_stage(rows: Sequence[Record]) -> Said:
    for row in filter(_patient, rows):
        for before, after in pairwise(row.get("stages", ())):
            broken = round((before["accuracy"] - after["accuracy"]) * row["n"])
            if after["name"] == "square" and clearly(broken, 0, row["n"], IMPOSSIBLE):
                yield (
                    row["name"],
                    f"{broken} of {row['n']} examples fall to Square alone, which sees no "
                    "gradient: gradients are masked, and the accuracy may still be too high. Give "
                    "Square more queries, and attack adaptively.",
                )


def autoattack_gap(rows: Sequence[Record]) -> Said:
    for group in _groups(rows, "norm", "eps"):
        pgd = [row for row in group if _kind(row) == "pgd" and _several(row)]
        judges = [row for row in group if row.get("version") not in (None, "rand")]
        for row, judge in product(pgd, judges):
            broken, more = _between(judge, row)
            if clearly(broken, more, row["n"], OVERSTATED):
                yield (
                    row["name"],
                    f"{broken - more} of {row['n']} examples that this row leaves standing fall to "
                    f"{judge['name']}, {100 * (broken - more) / row['n']:.1f} points, where "
                    "3 to 6 are usual: PGD is too weak for this network. Quote autoattack.",
                )


def reduced(rows: Sequence[Record]) -> Said:
    for row in rows:
        changed = [f"{row[key]} {key}" for key, usual in STANDARD.items() if row.get(key) != usual]
        if row.get("version") is not None and changed:
            yield (
                row["name"],
                f"AutoAttack ran with {' and '.join(changed)}, not the 100 steps and 5000 queries "
                "of the leaderboards: its accuracy is too high to stand beside theirs.",
            )


CHECKS: tuple[Callable[[Sequence[Record]], Said], ...] = (
    outside,
    non_finite,
    above_clean,
    single_step,
    collapsed,
    more_steps,
    larger_eps,
    black_box,
    autoattack_gap,
    reduced,
)


def _one_and_many(rows: Sequence[Record]) -> Iterator[tuple[Record, Record]]:
    """Rows of one step and of several in the same set."""
    for group in _groups(rows, "norm", "eps"):
        yield from product(filter(_single, group), filter(_several, group))


def _bits(row: Record) -> int:
    """Who stands, as the bits of a number."""
    return int(row["robust"], 2)


def _standing(row: Record) -> int:
    return _bits(row).bit_count()


def _clean(rows: Sequence[Record]) -> int:
    """How many examples are right without an attack; 0 if nobody has looked."""
    return next((_standing(row) for row in rows if row["name"] == "clean"), 0)


def _between(first: Record, second: Record) -> tuple[int, int]:
    """How many fall to `first` alone, and how many to `second` alone."""
    a, b = _bits(first), _bits(second)
    return (b & ~a).bit_count(), (a & ~b).bit_count()


def _groups(rows: Sequence[Record], *keys: str, alike: bool = False) -> list[list[Record]]:
    """Rows with a threat by their view and `keys`; `alike`: and by their name without digits."""
    groups: dict[tuple[object, ...], list[Record]] = {}
    for row in rows:
        if row["norm"] is not None:
            stem = re.sub(r"[\d_]", "", row["name"]) if alike else ""
            place = (stem, row.get("view"), *(row.get(key) for key in keys))
            groups.setdefault(place, []).append(row)
    return list(groups.values())


def _reversed(rows: Sequence[Record], key: str, *others: str) -> Iterator[tuple[Any, ...]]:
    """Two rows that differ in `key`, the higher weaker, and how many fall to either alone."""
    for group in _groups(rows, "norm", "restarts", "version", *others, alike=True):
        known = [row for row in group if row.get(key) is not None]
        for low, high in pairwise(sorted(known, key=itemgetter(key))):
            broken, more = _between(low, high)
            if low[key] < high[key] and clearly(broken, more, low["n"], IMPOSSIBLE):
                yield low, high, broken, more


def _kind(row: Record) -> str:
    """The attack, as rows are named for it: pgd of pgd_linf and pgd20."""
    return re.sub(r"[^a-z].*", "", row["name"])


def _single(row: Record) -> bool:
    return _kind(row) in SINGLE or (_kind(row) in ASCENDING and row.get("steps") == 1)


def _several(row: Record) -> bool:
    return _kind(row) in ASCENDING and (row.get("steps") or 0) >= SEVERAL


def _patient(row: Record) -> bool:
    return row.get("steps") is None or row["steps"] >= MANY


def _thorough(row: Record) -> bool:
    names = (row["name"], *(stage["name"] for stage in row.get("stages", ())))
    return _patient(row) and any(name in THOROUGH for name in names)

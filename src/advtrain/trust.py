"""What the rows of an evaluation say about each other: when a robust accuracy misleads.

Carlini et al. 2019 (https://arxiv.org/abs/1902.06705) list what cannot be: one step better than
many, a black box better than a white one, a larger set safer than a smaller. AutoAttack warns where
its Square takes over 0.2 points more (Croce and Hein 2020, https://arxiv.org/abs/2003.01690).

Rows are records of results.json, and are compared example by example. Something is said only where
they differ by clearly more than those of honest networks (`tolerance`); silence is no all-clear.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import reduce
from itertools import pairwise, product
from operator import and_, itemgetter
from typing import Any

from advtrain.kinds import (
    Record,
    between,
    bits,
    blind,
    clean,
    covers,
    groups,
    judging,
    no_stronger,
    patient,
    reaching,
    several,
    single,
    standing,
    thorough,
)
from advtrain.tolerance import IMPOSSIBLE, OVERSTATED, UNLIKELY, clearly, has_collapsed

Said = Iterator[tuple[str, str]]
"""Names of rows, and a message about each."""

HALF = 0.5  # within which every image may become the same grey one
STANDARD = {"steps": 100, "queries": 5000}  # of AutoAttack, on leaderboards


PLAIN = ("outside", "non_finite", "reduced")
"""Checks of the attack alone, which hold of a network that has learned nothing, too."""


def contradictions(rows: Sequence[Record], alike: float | None = None) -> list[dict[str, str]]:
    """What `rows` say against their numbers, as `warnings` of results.json; `clean` among them.

    `alike`: the share of the examples that have the commonest label; without it nothing is said of
    sets as large as the box.
    """
    found = [(check.__name__, check(rows)) for check in CHECKS]
    if alike is not None:
        found.append(("unbounded", unbounded(rows, alike)))
    return [
        {"check": check, "row": row, "message": message}
        for check, said in found
        for row, message in said
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
            f"{row['non_finite']} of {row['n']} proposals get logits that are not finite; they "
            "count as broken. Find out where the model overflows.",
        )


def above_clean(rows: Sequence[Record]) -> Said:
    unharmed = clean(rows)
    for row in rows if unharmed else ():
        hits, n = standing(row), row["n"]
        helped = round(row["accuracy_at_proposals"] * n) - hits
        if clearly(helped, unharmed - hits, n, IMPOSSIBLE):
            yield (
                row["name"],
                f"{hits + helped} of {n} examples are right under this attack and {unharmed} "
                "without: an attack that helps has the wrong gradient, or the network has learned "
                "to read the label from it. Believe rows of several steps only.",
            )


def single_step(rows: Sequence[Record]) -> Said:
    for one, many in _one_and_many(rows):
        broken, more = between([one], many)
        if clearly(broken, more, one["n"], IMPOSSIBLE):
            yield (
                many["name"],
                f"{one['name']} breaks {broken} of {one['n']} examples that this row leaves "
                f"standing, the reverse holds for {more}: several steps must not do worse than "
                "one. Gradients are masked, or the step size is wrong; run autoattack.",
            )


def collapsed(rows: Sequence[Record]) -> Said:
    unharmed = clean(rows)
    for one, many in _one_and_many(rows):
        if has_collapsed(standing(one), standing(many), unharmed):
            yield (
                one["name"],
                f"Of {unharmed} examples that are right {standing(one)} stand against one step, "
                f"{standing(many)} against {many['name']}: single-step training has collapsed. "
                "Believe rows of several steps only.",
            )


def more_steps(rows: Sequence[Record]) -> Said:
    for few, many, broken, more in _reversed(rows, "steps", "restarts"):
        yield (
            many["name"],
            f"{broken} of {few['n']} examples stand after {many['steps']} steps and not after "
            f"{few['steps']}, the reverse holds for {more}: more steps lead away, as on masked "
            "gradients. Keep the first point that fools, and run autoattack.",
        )


def more_restarts(rows: Sequence[Record]) -> Said:
    for few, many, broken, more in _reversed(rows, "restarts", "steps"):
        yield (
            many["name"],
            f"{broken} of {few['n']} examples stand after {many['restarts']} restarts and not "
            f"after {few['restarts']}, the reverse holds for {more}: further starts cannot make an "
            "attack weaker, unless the network draws at random. Run autoattack.",
        )


def larger_eps(rows: Sequence[Record]) -> Said:
    """A row within a larger radius that breaks clearly fewer than rows within smaller ones.

    Only an attack that is no weaker by itself contradicts another. So a row of several steps, which
    reach across its radius, is compared with each row of its own method, of no more steps or
    restarts, and with each single step: there nothing should remain (IMPOSSIBLE). It is compared
    with all white boxes at smaller radii together, too: these may be as much stronger as AutoAttack
    is than PGD (OVERSTATED). Single steps are never the larger side: a step of length eps may well
    go too far.
    """
    for group in groups(rows, "norm"):
        white = [row for row in group if not blind(row)]
        for large in filter(reaching, white):
            smaller = [row for row in white if row["eps"] < large["eps"]]
            weaker = [row for row in smaller if single(row) or no_stronger(row, large)]
            weaker.sort(key=standing)
            for few, share in ((weaker[:1], IMPOSSIBLE), (smaller, OVERSTATED)):
                broken, more = between(few, large)
                if clearly(broken, more, large["n"], share):
                    radius = max(row["eps"] for row in few)
                    yield (
                        large["name"],
                        f"{broken} of {large['n']} examples stand within {large['eps']:.4g} and "
                        f"not within {radius:.4g} ({', '.join(row['name'] for row in few)}), the "
                        f"reverse holds for {more}: a larger set cannot be safer. Gradients lead "
                        "astray; run autoattack.",
                    )
                    break


def unbounded(rows: Sequence[Record], alike: float) -> Said:
    for row in rows:
        free = row["norm"] == "linf" and row["eps"] >= HALF and not blind(row)
        if free and reaching(row) and clearly(standing(row), 0, row["n"], alike):
            yield (
                row["name"],
                f"{standing(row)} of {row['n']} examples stand within {row['eps']:.4g}, where "
                "every image may turn grey, and then only those of one class stand, at most "
                f"{alike:.0%}: gradients lead nowhere. Judge by square and transfer.",
            )


def black_box(rows: Sequence[Record]) -> Said:
    yield from _square_stage(rows)
    for group in groups(rows, "norm", "eps"):
        white = [row for row in group if not blind(row)]
        black = [row for row in group if row not in white]
        left = reduce(and_, map(bits, white), -1)
        careful = any(map(thorough, white))
        for row in black if any(map(several, white)) else ():
            usual = UNLIKELY if row["attack"] == "transfer" else OVERSTATED
            broken = (left & ~bits(row)).bit_count()
            if clearly(broken, 0, row["n"], IMPOSSIBLE if careful else usual):
                yield (
                    row["name"],
                    f"{broken} of {row['n']} examples fall to this attack, which sees no gradient, "
                    "and to none that does: gradients are masked. Believe the worst case, and "
                    "attack adaptively.",
                )


def _square_stage(rows: Sequence[Record]) -> Said:
    for row in filter(patient, rows):
        for before, after in pairwise(row.get("stages", ())):
            broken = round((before["accuracy"] - after["accuracy"]) * row["n"])
            if after["attack"] == "square" and clearly(broken, 0, row["n"], IMPOSSIBLE):
                yield (
                    row["name"],
                    f"{broken} of {row['n']} examples fall to Square alone, which sees no "
                    "gradient: gradients are masked, and the accuracy may still be too high. Give "
                    "Square more queries, and attack adaptively.",
                )


def autoattack_gap(rows: Sequence[Record]) -> Said:
    for group in groups(rows, "norm", "eps"):
        pgd = [row for row in group if row["attack"] == "pgd" and several(row)]
        for row, judge in product(pgd, filter(judging, group)):
            broken, more = between([judge], row)
            if clearly(broken, more, row["n"], OVERSTATED):
                yield (
                    row["name"],
                    f"{broken - more} of {row['n']} examples that this row leaves standing fall to "
                    f"{judge['name']}, {100 * (broken - more) / row['n']:.1f} points, where "
                    "3 to 6 are usual: PGD is too weak for this network. Quote autoattack.",
                )


def stronger_than_autoattack(rows: Sequence[Record]) -> Said:
    for group in groups(rows, "norm", "eps"):
        for judge in filter(patient, filter(judging, group)):
            others = sorted((row for row in group if row is not judge), key=standing)
            for row in others[:1]:
                broken, more = between([row], judge)
                if clearly(broken, more, row["n"], UNLIKELY):
                    yield (
                        judge["name"],
                        f"{broken} of {row['n']} examples fall to {row['name']} and not to this "
                        f"row, the reverse holds for {more}: AutoAttack stops short here. Quote "
                        "the worst case, and attack adaptively.",
                    )


def reduced(rows: Sequence[Record]) -> Said:
    for row in rows:
        told = {key: row[key] for key in STANDARD if row.get(key) is not None}
        changed = [f"{n} {key}" for key, n in told.items() if n != STANDARD[key]]
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
    more_restarts,
    larger_eps,
    black_box,
    autoattack_gap,
    stronger_than_autoattack,
    reduced,
)


def _one_and_many(rows: Sequence[Record]) -> Iterator[tuple[Record, Record]]:
    """Rows of one step and of several in the same set."""
    for group in groups(rows, "norm", "eps"):
        yield from product(filter(single, group), filter(several, group))


def _reversed(rows: Sequence[Record], key: str, other: str) -> Iterator[tuple[Any, ...]]:
    """Two rows of one method that differ in `key`, the higher weaker, and who falls to either."""
    for group in groups(rows, "norm", "eps", "attack", "method", "queries", other):
        known = [row for row in group if row.get(key) is not None and covers(row)]
        for low, high in pairwise(sorted(known, key=itemgetter(key))):
            broken, more = between([low], high)
            if low[key] < high[key] and clearly(broken, more, low["n"], IMPOSSIBLE):
                yield low, high, broken, more

"""Rows of results.json as sets of examples, and what kind of attack each row was.

What attack a row is says its field `attack`, not its name; one of a user's own counts as white-box.
"""

from collections.abc import Mapping, Sequence
from functools import reduce
from operator import and_
from typing import Any

Record = Mapping[str, Any]

SINGLE = ("fgsm", "rfgsm")
CLIMBING = ("pgd", "mim", "apgd", "gama_pgd", "gama_fw")
AUTOATTACK = ("AutoAttack", "autoattack")
BLACK_BOX = ("square", "transfer")
THOROUGH = ("dlr", "dlr_targeted")  # losses of APGD that no scale of the logits hides from
SEVERAL, MANY = 5, 50  # steps: from which one must not be stronger, and a black box not either


def bits(row: Record) -> int:
    """Who stands, as the bits of a number."""
    return int(row["robust"], 2)


def standing(row: Record) -> int:
    return bits(row).bit_count()


def clean(rows: Sequence[Record]) -> int:
    """How many examples are right without an attack; 0 if nobody has looked."""
    return next((standing(row) for row in rows if row["name"] == "clean"), 0)


def between(together: Sequence[Record], one: Record) -> tuple[int, int]:
    """How many fall to any of `together` and not to `one`, and the reverse; 0 without any."""
    if not together:
        return 0, 0
    a, b = reduce(and_, map(bits, together)), bits(one)
    return (b & ~a).bit_count(), (a & ~b).bit_count()


def groups(rows: Sequence[Record], *keys: str) -> list[list[Record]]:
    """Rows with a threat by their view and `keys`."""
    groups: dict[tuple[object, ...], list[Record]] = {}
    for row in rows:
        if row["norm"] is not None:
            place = (row.get("view"), *(row.get(key) for key in keys))
            groups.setdefault(place, []).append(row)
    return list(groups.values())


def no_stronger(row: Record, other: Record) -> bool:
    """Whether both are of one method, and `row` takes no more steps or restarts."""
    alike = all(row.get(key) == other.get(key) for key in ("attack", "method"))
    return alike and all(
        (row.get(key) or 0) <= (other.get(key) or 0) for key in ("steps", "restarts", "queries")
    )


def reaching(row: Record) -> bool:
    return several(row) and covers(row)


def covers(row: Record) -> bool:
    """Whether its steps, where they are of one length, can lead from the image to the radius."""
    length, steps = row.get("step_size"), row.get("steps")
    return length is None or steps is None or length * steps >= 0.999 * row["eps"]


def blind(row: Record) -> bool:
    """Whether it sees no gradient; of several attacks, none of them."""
    attacks = [stage["attack"] for stage in row.get("stages", ())] or [row["attack"]]
    return all(attack in BLACK_BOX for attack in attacks)


def single(row: Record) -> bool:
    return row["attack"] in SINGLE or (row["attack"] in CLIMBING and row.get("steps") == 1)


def several(row: Record) -> bool:
    """Whether it follows gradients for several steps; of several attacks, whether one does."""
    if row["attack"] in AUTOATTACK:
        return (row.get("steps") or MANY) >= SEVERAL
    return any(
        each["attack"] in CLIMBING and (each.get("steps") or 0) >= SEVERAL
        for each in row.get("stages") or [row]
    )


def judging(row: Record) -> bool:
    """Whether it is AutoAttack, in a version for networks that draw nothing."""
    return row["attack"] in AUTOATTACK and row.get("version") != "rand"


def patient(row: Record) -> bool:
    return row.get("steps") is None or row["steps"] >= MANY


def thorough(row: Record) -> bool:
    attacks: Sequence[Record] = row.get("stages") or [row]
    return patient(row) and any(
        each["attack"] == "fab" or (each["attack"] == "apgd" and each.get("loss") in THOROUGH)
        for each in filter(patient, attacks)
    )

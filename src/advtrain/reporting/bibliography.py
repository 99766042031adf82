"""What a run should cite: the sources of its method, its network, its data and its evaluation.

`references.bib` lists them; the field `advtrain` of an entry holds its marks: a choice of the run
(`defense=trades`), or the beginning of a name that its configuration builds (`attacks.apgd`).
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from advtrain.reporting.records import Run

FILE = Path(__file__).with_name("references.bib")
ENTRY = re.compile(r"^@(\w+)\{(\w+),\n(.*?)\n\}$", re.MULTILINE | re.DOTALL)
FIELD = re.compile(r"^  (\w+) = \{(.*)\},?$", re.MULTILINE)
BUILT = ("model", "dataset", "defense", "descent", "average", "penalty")
"""Nodes of a configuration whose parts are in every run; those of `eval` where it has results."""


@dataclass(frozen=True)
class Reference:
    """An entry of references.bib; `marks`: what it is the source of."""

    key: str
    kind: str
    fields: Mapping[str, str]
    marks: frozenset[str]

    @property
    def words(self) -> str:
        """`Madry, A., Makelov, A. et al. (2018). Title. Venue.`, without markup."""
        names = self.fields["author"].split(" and ")
        shown = [_initials(name) for name in names[:3]]
        authors = ", ".join(shown) + (" et al." if len(names) > 3 else "")
        where = ("booktitle", "journal", "institution", "howpublished")
        venue = next(self.fields[field] for field in where if field in self.fields)
        told = f"{authors} ({self.fields['year']}). {self.fields['title']}. {venue}."
        return re.sub("[{}]", "", told)

    @property
    def url(self) -> str:
        return self.fields.get("url", "")

    def bibtex(self) -> str:
        lines = ",\n".join(f"  {name} = {{{value}}}" for name, value in self.fields.items())
        return f"@{self.kind}{{{self.key},\n{lines}\n}}\n"


@cache
def references() -> tuple[Reference, ...]:
    """All entries of references.bib, in its order."""
    found = []
    for kind, key, body in ENTRY.findall(FILE.read_text(encoding="utf-8")):
        fields = dict(FIELD.findall(body))
        marks = frozenset(fields.pop("advtrain").split())
        found.append(Reference(key, kind, fields, marks))
    return tuple(found)


def cited(runs: Iterable[Run]) -> list[Reference]:
    """What `runs` rest on, each entry once."""
    used = {mark for run in runs for mark in _marks(run)}
    return [each for each in references() if not each.marks.isdisjoint(used)]


def bibtex(entries: Iterable[Reference]) -> str:
    """The entries for LaTeX."""
    return "\n".join(each.bibtex() for each in entries)


def _marks(run: Run) -> Iterator[str]:
    yield from (f"{group}={name}" for group, name in run.choices.items())
    judged = run.rows or run.certified is not None
    for node in (*BUILT, "eval") if judged else BUILT:
        for target in _targets(run.config.get(node)):
            parts = target.removeprefix("advtrain.").split(".")
            yield from (".".join(parts[: length + 1]) for length in range(len(parts)))


def _targets(node: Any) -> Iterator[str]:
    """What the configuration below `node` builds, as dotted names."""
    if isinstance(node, Mapping):
        yield from (value for key, value in node.items() if key == "_target_" and value)
        node = list(node.values())
    if isinstance(node, list):
        for value in node:
            yield from _targets(value)


def _initials(name: str) -> str:
    last, _, first = name.partition(", ")
    short = " ".join(f"{part[0]}." for part in first.split())
    return f"{last}, {short}" if short else last

"""Certification logs in the format of Cohen et al. 2019, of whoever wrote them.

Such a log holds no settings. They are taken from a JSON file of the same name beside it, as
certify.json; else sigma from the path, where the authors' tree has it:
certify/<dataset>/<arch>/noise_<training sigma>/<split>/sigma_<sigma>.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from statistics import NormalDist
from typing import Any

from advtrain.certification.log import HEADER, PREDICT_HEADER, read
from advtrain.certification.shares import average_radius, certified_share
from advtrain.foreign import MAX_STATUS, read_json
from advtrain.reporting import values
from advtrain.reporting.reading_proofs import certified
from advtrain.reporting.records import Certified

ALPHA = 0.001  # the paper's, where nothing says otherwise
USUAL_DRAWS = 100_000
MAX_PROBLEMS = 5
OF_AUTHORS = 3  # significant digits of radii in the authors' logs
ROUNDED = 0.995  # what is left of a radius that these digits may have lifted


@dataclass(frozen=True)
class Log:
    """A log: `radii` holds the radius of each example, -1 where the answer is wrong.

    `known` are the words that may name it; `indices`, the examples; `alpha_told`, whether alpha
    was found beside the log. `problems` are sentences about its lines.
    """

    path: Path
    known: dict[str, str]
    found: Certified
    radii: tuple[float, ...]
    indices: tuple[int, ...]
    problems: tuple[str, ...] = ()
    alpha_told: bool = False


def kind(path: Path) -> str:
    """`certify` or `predict` for the two logs, `similar` for a file whose columns resemble them."""
    try:
        with path.open("rb") as stream:
            head = stream.read(len(HEADER) + 2).decode("utf-8", errors="replace")
    except OSError:
        return ""
    first = head.partition("\n")[0].removesuffix("\r")
    if first in (HEADER, PREDICT_HEADER):
        return "certify" if first == HEADER else "predict"
    return "similar" if re.match(r"\s*\ufeff?idx\s*[\t,; ]\s*label", head) else ""


def read_log(path: Path, alpha: float | None = None) -> Log:
    """The log in `path`; `alpha` is that of logs which do not say theirs.

    ValueError: it is no such log, holds no certificates, or is too large.
    """
    log = read(path)
    if not log.certificates:
        lines = f": {log.problems[0]}" if log.problems else "."
        raise ValueError(f"{path} holds no certificate{lines} Certify at least one example.")
    settings = _settings(path)
    known = _words(path, settings)
    radii = tuple(each.radius if each.correct else -1.0 for each in log.certificates)
    told = values.number(settings.get("alpha"))
    sigma = values.number(settings.get("sigma"))
    found = certified(
        {
            **settings,
            "alpha": told if told is not None and 0 < told < 1 else alpha or ALPHA,
            "sigma": sigma if sigma is not None else _number(known.get("sigma", "")),
            "accuracy": certified_share(radii, 0.0),
            "acr": average_radius(radii),
            "examples": len(radii),
            "abstain": sum(each.prediction == -1 for each in log.certificates) / len(radii),
        }
    )
    assert found is not None
    problems = [values.shown(each) for each in log.problems[:MAX_PROBLEMS]]
    if len(log.problems) > MAX_PROBLEMS:
        problems.append(f"{len(log.problems) - MAX_PROBLEMS} more lines are not counted.")
    if log.cut:
        problems.append(
            f"Its last line is unfinished and not counted ({values.text(log.cut)[:40]!r}): "
            "certification was stopped, or still goes on."
        )
    indices = tuple(each.index for each in log.certificates)
    return Log(path, known, found, radii, indices, tuple(problems), told is not None)


def names(logs: Sequence[Log]) -> list[str]:
    """A distinct name for each: sigma, else its file or folder; and what tells several apart."""
    apart: list[str] = []
    for key in ("dataset", "model", "split"):
        if _kinds(logs, [*apart, key]) > _kinds(logs, apart):
            apart.append(key)
    found = []
    for log in logs:
        known = log.known
        words = [known[key] for key in apart if key in known]
        words.append(f"sigma {known['sigma']}" if "sigma" in known else known["file"])
        trained = known.get("training sigma")
        if trained is not None and trained != known.get("sigma"):
            words[-1] += f", trained with {trained}"
        found.append(" · ".join(words))
    longer = [
        f"{name} ({log.known['file']})"
        if found.count(name) > 1 and name != log.known["file"]
        else name
        for name, log in zip(found, logs, strict=True)
    ]
    return [
        f"{name} ({values.shown(log.path)})" if longer.count(name) > 1 else name
        for name, log in zip(longer, logs, strict=True)
    ]


def _kinds(logs: Sequence[Log], keys: Sequence[str]) -> int:
    return len({tuple(log.known.get(key, "") for key in keys) for log in logs})


def doubts(log: Log, radii: Sequence[float]) -> list[str]:
    """Sentences about what the numbers of a log at `radii` may hide."""
    told = list(log.problems)
    reached = [radius for radius in log.radii if radius > 0]
    if reached and all(_digits(radius) <= OF_AUTHORS for radius in reached):
        on = {r: sum(each == r for each in reached) for r in radii if r > 0}
        at = [f"{number} at {radius:g}" for radius, number in on.items() if number]
        if at:
            told.append(
                f"Its radii have {OF_AUTHORS} significant digits, so that 0.4996 reads 0.5: "
                f"{len(at)} of {len(on)} cells hold examples exactly on their radius "
                f"({', '.join(at)}), which may be certified a little less far."
            )
    return told + _alpha_doubt(log)


def _alpha_doubt(log: Log) -> list[str]:
    """Whether radii are larger than the usual number of draws allows at the alpha assumed."""
    sigma, alpha = log.found.sigma, log.found.alpha
    if log.alpha_told or not sigma or not alpha or log.found.norm != "l2":
        return []
    rate = NormalDist().cdf(max(log.radii) / sigma)
    surely = NormalDist().cdf(ROUNDED * max(log.radii) / sigma)
    if surely <= alpha ** (1 / USUAL_DRAWS):  # the bound where all draws agree
        return []
    largest = max(log.radii) / sigma
    return [
        f"Radii reach {largest:.1f} sigma, further than {USUAL_DRAWS:,} draws certify at alpha = "
        f"{alpha:g}; so many draws do at alpha = {rate**USUAL_DRAWS:.1g}. Give --alpha."
    ]


def _settings(path: Path) -> dict[str, Any]:
    beside = path.with_suffix(".json")
    try:
        if beside != path and beside.is_file():
            return values.mapping(read_json(beside, MAX_STATUS))
    except (OSError, ValueError):
        pass
    return {}


def _words(path: Path, settings: dict[str, Any]) -> dict[str, str]:
    parts = path.resolve().parts
    found = {"file": path.resolve().parent.name if path.stem == "certify" else path.name}
    for part in parts:
        for key, name in (("training sigma", "noise"), ("sigma", "sigma")):
            match = re.fullmatch(rf"{name}_(\d+(?:\.\d+)?)(?:\.(?:tsv|txt))?", part)
            if match:
                found[key] = match[1]
    if "sigma" not in found and path.stem == "certify":
        sigma = values.number(settings.get("sigma"))
        if sigma is not None:
            found["sigma"] = f"{sigma:g}"
    if "certify" in parts[:-4]:
        place = len(parts) - 1 - parts[::-1].index("certify")
        if len(parts) - place == 6:  # certify, dataset, arch, noise, split, sigma
            found |= {"dataset": parts[place + 1], "model": parts[place + 2]}
            found["split"] = parts[place + 4]
    return {key: values.text(word) for key, word in found.items()}


def _number(word: str) -> float | None:
    return float(word) if word else None


def _digits(radius: float) -> int:
    return len(Decimal(repr(radius)).normalize().as_tuple().digits)

"""From runs and logs to the tables of what is certified.

Claims come from results.json, from the log beside it where that agrees with it, and from logs
alone.
"""

from collections.abc import Iterable, Sequence
from math import floor
from statistics import fmean, stdev

from advtrain.certification.shares import certified_share, high_probability
from advtrain.reporting.claims import Claim, Claims, Wanted
from advtrain.reporting.logs import Log, doubts, names
from advtrain.reporting.papers import Figure, beside, incomparable, is_comparable, reach_of
from advtrain.reporting.records import Certified, Exact, Run
from advtrain.reporting.series import read_radii
from advtrain.reporting.tables import Table
from advtrain.reporting.values import shown

STEPS = (0.25, 0.5, 1.0, 2.0, 5.0)
MOST_COLUMNS = 12
NORMS = ("l2", "l1", "linf")
OTHERWISE = "certify.tsv beside results.json sums up to other numbers; it is not drawn."


def claim_tables(
    table: Table, logs: Sequence[Log] = (), wanted: Wanted | None = None
) -> tuple[Claims, ...]:
    """A table per norm: the configurations of `table` with certificates, then `logs` by sigma."""
    wanted = wanted or Wanted()
    groups = {line.label: line.runs for line in reversed(table.lines)}
    groups = dict(reversed(groups.items()))
    order = sorted(zip(names(logs), logs, strict=True), key=lambda pair: _rank(pair[1]))
    tables = []
    for norm in _norms(groups.values(), logs):
        ours = [log for log in logs if log.found.norm == norm]
        radii = wanted.radii or _columns(norm, groups.values(), ours, wanted.step)
        claims: list[Claim] = []
        for place, (label, runs) in enumerate(groups.items()):
            claims += _of_runs(label, place, runs, norm, radii)
            claims += _of_linear(label, place, runs, norm, radii)
        for place, (label, log) in enumerate(order, start=len(groups)):
            if log.found.norm == norm:
                claims.append(_of_log(label, place, log, radii))
        papers = [
            (label, run) for label, runs in groups.items() for run in runs if _told(run, norm)
        ]
        notes = (*incomparable(papers), *_assumed(ours, wanted), *_compared(ours))
        tables.append(Claims(norm, tuple(radii), tuple(claims), notes, wanted.fractions))
    return tuple(tables)


def _rank(log: Log) -> tuple[str, str, str, float, float]:
    """Logs in order: by data set, model and split, then by sigma, then by that of training."""
    words = [log.known.get(key, "") for key in ("dataset", "model", "split")]
    trained = float(log.known.get("training sigma", "0"))
    return words[0], words[1], words[2], log.found.sigma or 0.0, trained


def _norms(groups: Iterable[Sequence[Run]], logs: Sequence[Log]) -> list[str]:
    runs = [run for group in groups for run in group]
    found = {run.certified.norm for run in runs if run.certified is not None}
    found |= {log.found.norm for log in logs} | {each.norm for run in runs for each in run.exact}
    return sorted(found, key=lambda norm: (NORMS.index(norm) if norm in NORMS else 9, norm))


def _columns(
    norm: str, groups: Iterable[Sequence[Run]], logs: Sequence[Log], step: float | None
) -> tuple[float, ...]:
    """0, the radii that the runs tell, and steps as far as any log reaches."""
    radii = {0.0}
    reach = [max(log.radii) for log in logs]
    for run in [run for group in groups for run in group]:
        for each in run.exact:
            radii |= set(each.at_radius) if each.norm == norm else set()
        found = run.certified
        if found is not None and found.norm == norm:
            radii |= _told(run, norm).keys()
            if step is None:
                radii |= set(found.at_radius)
            else:
                reach.append(max(found.at_radius, default=0.0))
    if reach:
        top = max(reach)
        step = step or next((s for s in STEPS if top / s <= MOST_COLUMNS), top / MOST_COLUMNS)
        radii |= {round(step * k, 9) for k in range(1, max(2, floor(top / step)) + 1)}
    return tuple(sorted(radii))


def _of_runs(
    label: str, place: int, group: Sequence[Run], norm: str, radii: Sequence[float]
) -> Iterable[Claim]:
    """The claim of a configuration: means over its seeds."""
    told = [(run, run.certified) for run in group if run.certified is not None]
    told = [(run, found) for run, found in told if found.norm == norm]
    if not told:
        return
    first, found = told[0]
    logs = [_agreeing(run, each) for run, each in told]
    shares = [_shares(each, log, radii) for (_, each), log in zip(told, logs, strict=True)]
    highs = [_high(each, part) for (_, each), part in zip(told, shares, strict=True)]
    acrs = [each.acr for _, each in told if each.acr is not None]
    abstained = [each.abstain for _, each in told if each.abstain is not None]
    sizes = {each.examples for _, each in told}
    yield Claim(
        label=label,
        place=place,
        norm=norm,
        shares=_mean(shares),
        high=_mean(highs),
        acr=fmean(acrs) if acrs else None,
        found=found,
        examples=sizes.pop() if len(sizes) == 1 else None,
        abstain=fmean(abstained) if abstained else None,
        spread=_deviation(shares),
        acr_spread=stdev(acrs) if len(acrs) > 1 else None,
        seeds=len(told),
        radii=logs[0],
        data=first.dataset,
        source=shown(first.directory),
        published=_published([run for run, _ in told], norm, shares),
        paper=first.paper.source,
        remarks=(OTHERWISE,) if not logs[0] and read_radii(first.directory) else (),
    )


def _published(
    group: Sequence[Run], norm: str, shares: Sequence[dict[float, float]]
) -> dict[float, Figure]:
    """A paper's shares beside ours, compared where every run is at the paper's setting."""
    comparable = all(map(is_comparable, group))
    sizes = {run.certified.examples for run in group if run.certified is not None}
    n = sizes.pop() if len(sizes) == 1 else None
    figures = {}
    for radius, value in _told(group[0], norm).items():
        ours = [part[radius] for part in shares if radius in part]
        reach = reach_of(ours, n) if ours else None
        mean = fmean(ours) if ours else None
        figures[radius] = beside(value, mean, reach, comparable=comparable)
    return figures


def _told(run: Run, norm: str) -> dict[float, float]:
    """A paper's certified accuracies by radius, `certified_0.25` in the configuration; all l2."""
    told = {
        key.removeprefix("certified_"): value
        for key, value in run.published.items()
        if key.startswith("certified_") and norm == "l2"
    }
    numbers = {key: value for key, value in told.items() if key.replace(".", "", 1).isdigit()}
    return {float(key): value for key, value in numbers.items()}


def _of_linear(
    label: str, place: int, group: Sequence[Run], norm: str, radii: Sequence[float]
) -> Iterable[Claim]:
    told = [each for run in group for each in run.exact if each.norm == norm]
    if not told:
        return
    shares = [_shares(each, (), radii) for each in told]
    acrs = [each.acr for each in told if each.acr is not None]
    yield Claim(
        label=label,
        place=place,
        norm=norm,
        shares=_mean(shares),
        high=_mean(shares),  # no chance is in it
        acr=fmean(acrs) if acrs else None,
        spread=_deviation(shares),
        acr_spread=stdev(acrs) if len(acrs) > 1 else None,
        seeds=len(told),
        data=group[0].dataset,
        source=shown(group[0].directory),
    )


def _of_log(label: str, place: int, log: Log, radii: Sequence[float]) -> Claim:
    shares = _shares(log.found, log.radii, radii)
    return Claim(
        label=label,
        place=place,
        norm=log.found.norm,
        shares=shares,
        high=_high(log.found, shares),
        acr=log.found.acr,
        found=log.found,
        examples=log.found.examples,
        abstain=log.found.abstain,
        radii=log.radii,
        data=" ".join(log.known[key] for key in ("dataset", "split") if key in log.known),
        source=shown(log.path),
        remarks=tuple(doubts(log, radii)),
    )


def _agreeing(run: Run, found: Certified) -> tuple[float, ...]:
    """The log of a run, where it holds the examples that results.json sums up; else nothing."""
    radii = read_radii(run.directory)
    if not radii or found.examples not in (None, len(radii)):
        return ()
    if found.accuracy is not None and abs(certified_share(radii, 0.0) - found.accuracy) > 1e-6:
        return ()
    return tuple(radii)


def _shares(
    found: Certified | Exact, log: Sequence[float], radii: Sequence[float]
) -> dict[float, float]:
    told = dict(found.at_radius)
    if found.accuracy is not None:
        told[0.0] = found.accuracy
    if log:
        told |= {radius: certified_share(log, radius) for radius in radii if radius not in told}
    return {radius: told[radius] for radius in radii if radius in told}


def _high(found: Certified, shares: dict[float, float]) -> dict[float, float]:
    """As results.json tells it, else by the formula, where alpha and the examples are known."""
    told = dict(found.high)
    if found.alpha is not None and found.examples:
        for radius, share in shares.items():
            told.setdefault(radius, high_probability(share, found.examples, found.alpha))
    return {radius: told[radius] for radius in shares if radius in told}


def _mean(parts: Sequence[dict[float, float]]) -> dict[float, float]:
    """By radius, where all seeds tell it."""
    shared = [radius for radius in parts[0] if all(radius in part for part in parts)]
    return {radius: fmean(part[radius] for part in parts) for radius in shared}


def _deviation(parts: Sequence[dict[float, float]]) -> dict[float, float]:
    if len(parts) < 2:
        return {}
    return {radius: stdev(part[radius] for part in parts) for radius in _mean(parts)}


def _assumed(logs: Sequence[Log], wanted: Wanted) -> Iterable[str]:
    """What alpha is taken for logs that do not tell it."""
    silent = [log for log in logs if not log.alpha_told]
    if silent:
        which = "these logs" if len(silent) == len(logs) else f"{len(silent)} of the logs"
        how = "assumed" if wanted.alpha is None else "as --alpha says"
        yield (
            f"alpha of {which}, which do not tell it, is taken as {silent[0].found.alpha:g} "
            f"({how}); only the accuracies with high probability depend on it."
        )


def _compared(logs: Sequence[Log]) -> Iterable[str]:
    """Whether logs of the same data hold different examples."""
    by_data: dict[tuple[str, ...], dict[tuple[int, ...], int]] = {}
    for log in logs:
        data = tuple(log.known.get(key, "") for key in ("dataset", "split"))
        by_data.setdefault(data, {})[tuple(sorted(log.indices))] = len(log.indices)
    for data, sizes in by_data.items():
        if len(sizes) > 1:
            name = " ".join(word for word in data if word)
            told = " and ".join(map(str, sorted(sizes.values())))
            yield (
                f"The logs{f' of {name}' if name else ''} do not hold the same examples (n = "
                f"{told}): their accuracies are of different images."
            )

"""Tables of results as columns and rows of plain values, for whoever mirrors a run or a grid."""

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

COLUMNS = (
    *("name", "dataset", "model", "defense", "threat", "eps", "seed", "view", "n"),
    *("clean", "fgsm", "pgd_linf", "pgd_l2", "mim", "cw", "gama", "autoattack"),
    *("worst_linf", "worst_l2", "certified", "acr"),
)
ROW_COLUMNS = (
    *("name", "view", "norm", "eps", "steps", "restarts", "accuracy", "ci95_low", "ci95_high"),
    *("n", "forward_passes", "backward_passes", "seconds"),
)


def accuracy_rows(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row of `COLUMNS` per view of a `results.json`; what was not measured is left out."""
    threat, dataset = results.get("threat") or {}, results.get("dataset") or {}
    model, certified = results.get("model") or {}, results.get("certified") or {}
    shared = {
        "name": results.get("name"),
        "dataset": dataset.get("name"),
        "model": model.get("name"),
        "defense": results.get("defense"),
        "threat": threat.get("norm"),
        "eps": threat.get("eps"),
        "seed": results.get("seed"),
        "certified": certified.get("accuracy"),
        "acr": certified.get("acr"),
    } | {f"worst_{norm}": value for norm, value in (results.get("worst_case") or {}).items()}
    views: dict[str, dict[str, Any]] = {}
    for row in flat_rows(results):
        view = str(row.get("view", "identity"))
        worst = (results.get("worst_case_by_view") or {}).get(view, {})
        here = {f"worst_{norm}": value for norm, value in worst.items()}
        line = views.setdefault(view, {**shared, **here, "view": view, "n": row.get("n")})
        line[str(row["name"])] = row.get("accuracy")
    return list(views.values()) or [shared]


def at(row: Mapping[str, Any]) -> str:
    """Words for the view of a row, where it is another than the network itself."""
    view = row.get("view", "identity")
    return "" if view == "identity" else f"@{view}"


def flat_rows(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    rows = []
    for row in results.get("rows") or []:
        low, high = row.get("ci95") or (None, None)
        rows.append({**row, "ci95_low": low, "ci95_high": high})
    return rows


def of_csv(text: str) -> tuple[list[str], list[list[Any]]]:
    """Columns and rows of a CSV text with a heading; an empty cell is None.

    A column is of numbers where all its cells are, else of words: W&B takes no mixture.
    """
    first, *rest = csv.reader(io.StringIO(text))
    columns = [_values(column) for column in zip(*rest, strict=True)]
    return first, [list(row) for row in zip(*columns, strict=True)]


def _values(cells: Sequence[str]) -> list[float | None] | list[str | None]:
    try:
        return [float(cell) if cell else None for cell in cells]
    except ValueError:
        return [cell or None for cell in cells]

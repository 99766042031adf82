"""Keys that compute nothing: what a run is called, where it runs, what is told beside its figures.

Two configurations that differ in these alone have the same results.
"""

from collections.abc import Mapping
from typing import Any

KEYS = {
    *("name", "logger", "resume", "device", "deterministic", "packages", "plan"),
    *("published", "paper"),
}
OF_DATA = {"download", "cache", "device_limit", "workers"}
"""The same, of the node `dataset`."""
KNOWN = "advtrain.data.sets."
"""Data sets whose images are known by their name: there `root`, too, is a place and no more."""


def without(config: Mapping[str, Any]) -> dict[str, Any]:
    """What of a configuration computes something; of a folder of images, where it is."""
    kept = {key: value for key, value in config.items() if key not in KEYS}
    if isinstance(data := kept.get("dataset"), Mapping):
        away = places(data)
        kept["dataset"] = {key: value for key, value in data.items() if key not in away}
    return kept


def places(data: Any) -> set[str]:
    """The keys of the node `dataset` that compute nothing."""
    target = data.get("_target_", KNOWN) if isinstance(data, Mapping) else KNOWN
    return OF_DATA | {"root"} if str(target).startswith(KNOWN) else OF_DATA

"""How a run stands: `status.json` in its directory, rewritten atomically at each change.

The version before stays beside it. It counts where the newest is damaged: what the run is called in
its grid, and what was chosen, is not lost with it.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from advtrain.files import write_json
from advtrain.foreign import MAX_STATUS, read_json

FILE, BEFORE = "status.json", ".status.before.json"


def write(directory: Path, state: str, error: str | None = None, **facts: Any) -> None:
    """`state`: running, done, failed, interrupted or invalid; facts written before are kept."""
    put(directory, {**read(directory), **facts, "state": state, "error": error})


def put(directory: Path, content: Mapping[str, Any]) -> None:
    """Let the status be `content`."""
    whole = _object(directory / FILE) is not None  # a damaged one takes the place of no other
    write_json(directory / FILE, content, kept=directory / BEFORE if whole else None)


def read(directory: Path) -> Mapping[str, Any]:
    """The status of a run; empty if it has none that can be read."""
    found = _object(directory / FILE)
    if found is None and (directory / FILE).exists():
        found = _object(directory / BEFORE)
    return found or {}


def _object(path: Path) -> dict[str, Any] | None:
    try:
        content = read_json(path, MAX_STATUS)
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None

"""How a run stands: `status.json` in its directory, rewritten atomically at each change."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from advtrain.files import write_json
from advtrain.foreign import MAX_STATUS, read_json

FILE = "status.json"


def write(directory: Path, state: str, error: str | None = None, **facts: Any) -> None:
    """`state`: running, done, failed, interrupted or invalid; facts written before are kept."""
    write_json(directory / FILE, {**read(directory), **facts, "state": state, "error": error})


def read(directory: Path) -> Mapping[str, Any]:
    """The status of a run; empty if it has none that can be read."""
    try:
        content = read_json(directory / FILE, MAX_STATUS)
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}

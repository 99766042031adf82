"""A grid in Weights & Biases: its tables and figures, once, in the group of its jobs' runs.

Tables that are there as they are now are left so. Offline, where a run of W&B cannot be continued,
later ones take the place of those that were not uploaded yet.
"""

import shutil
from contextlib import suppress
from pathlib import Path

from advtrain.config import ConfigError, confined, make
from advtrain.files import write_text
from advtrain.fingerprints import fingerprint
from advtrain.foreign import content
from advtrain.reporting.report import Report, comma_separated
from advtrain.tracking import IDENTITY_FILE, Tracker

MIRRORED = "advtrain-tables.txt"  # beside its runs: a fingerprint of what the last one shows


def mirror(sweep: Path, report: Report) -> None:
    """Log what was written into the folder of the grid, by the logger that its jobs have.

    Nothing without a job that tells its logger, nor where it is none of ours.
    """
    configured = next((run.config for run in report.runs if run.config.get("logger")), None)
    if configured is None:
        return
    folder, sheets = sweep / "wandb", comma_separated(report)
    shown = fingerprint(sheets, configured["logger"])
    if any(folder.glob("*run-*")) and _known(folder / MIRRORED) == shown:
        return
    name, about = f"{sweep.name} (table)", {"job": "grid", "runs": len(report.runs)}
    try:
        confined(configured["logger"], "advtrain.tracking", "logger")
        _withdraw(folder)
        tracker: Tracker = make(
            configured["logger"], about, sweep, name, sweep.name, (), path="logger", allowed=()
        )
    except ConfigError:
        return
    code = 1
    try:
        for title, text in sheets.items():
            tracker.sheet(title, text)
        tracker.images(sorted((sweep / "plots").glob("*.png")))
        code = 0
    finally:
        tracker.finish(code)
    if any(folder.glob("*run-*")):
        write_text(folder / MIRRORED, shown)


def _known(path: Path) -> str | None:
    with suppress(OSError, ValueError):
        return content(path, 100).decode("utf-8")
    return None


def _withdraw(folder: Path) -> None:
    """Remove the runs that wait to be uploaded; `wandb sync` leaves a mark at those it has sent."""
    waiting = [run for run in folder.glob("offline-run-*") if not any(run.glob("*.synced"))]
    for run in waiting:
        shutil.rmtree(run, ignore_errors=True)
    if not any(folder.glob("*run-*")):
        (folder / IDENTITY_FILE).unlink(missing_ok=True)

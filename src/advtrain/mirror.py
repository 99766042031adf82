"""A grid in Weights & Biases: its tables and figures, once, in the group of its jobs' runs."""

from pathlib import Path

from advtrain.config import ConfigError, confined, make
from advtrain.reporting.report import Report, comma_separated
from advtrain.tracking import Tracker


def mirror(sweep: Path, report: Report) -> None:
    """Log what was written into the folder of the grid, by the logger that its jobs have.

    Nothing without a job that tells its logger, nor where it is none of ours.
    """
    configured = next((run.config for run in report.runs if run.config.get("logger")), None)
    if configured is None:
        return
    name, about = f"{sweep.name} (table)", {"job": "grid", "runs": len(report.runs)}
    try:
        confined(configured["logger"], "advtrain.tracking", "logger")
        tracker: Tracker = make(
            configured["logger"], about, sweep, name, sweep.name, (), path="logger", allowed=()
        )
    except ConfigError:
        return
    for title, text in comma_separated(report).items():
        tracker.sheet(title, text)
    tracker.images(sorted((sweep / "plots").glob("*.png")))
    tracker.finish(0)

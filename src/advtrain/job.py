"""One job from start to end: what it leaves in its directory, and its exit code, come what may."""

import logging
import os
import signal
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hydra.errors import HydraException
from omegaconf import DictConfig

from advtrain import status
from advtrain.adopt import adopt
from advtrain.checkpoints import CheckpointError
from advtrain.config import ConfigError, check, plain, settled
from advtrain.data.errors import DataError
from advtrain.evaluation import EvaluationFailed
from advtrain.files import remove_leftovers, write_json
from advtrain.lock import locked
from advtrain.memory import keep_freed
from advtrain.program import execute
from advtrain.ranges import RangeError
from advtrain.reporting.reading import read_run
from advtrain.reporting.report import report_of
from advtrain.reporting.terminal import print_run, unread_output
from advtrain.stopping import Stopped, listening
from advtrain.training import TrainingFailed, TrainingRefused

log = logging.getLogger(__name__)

DONE, FAILED, INVALID = 0, 1, 2
WRONG_INPUT = (
    ConfigError,
    DataError,
    CheckpointError,
    HydraException,
    RangeError,
    TrainingRefused,
)
FORESEEN = (*WRONG_INPUT, TrainingFailed, EvaluationFailed, OSError)


def run_job(
    config: DictConfig, directory: Path, facts: dict[str, Any], allowed: tuple[str, ...]
) -> int:
    """Do the job; the exit code. Failures become a status and a sentence: a grid goes on.

    `facts`: choices, overrides, family (the grid), config_dir (of the command line).
    SystemExit: the job was asked to stop; its state is saved, and a grid ends with it.
    """
    keep_freed()
    try:
        with locked(directory / ".lock", wait=False):
            remove_leftovers(directory, directory / "checkpoints")
            return _run(config, directory, facts, allowed)
    except BlockingIOError:
        _tell(f"hydra.run.dir={directory}: another process is at work there. Choose another.")
        return INVALID


def _run(
    config: DictConfig, directory: Path, facts: dict[str, Any], allowed: tuple[str, ...]
) -> int:
    before, code = status.read(directory), DONE
    status.write(directory, "running", **facts)
    with listening() as stop:
        try:
            if config.job == "eval" and config.checkpoint is not None:
                config, taken = adopt(config, facts, allowed)
                facts |= taken
            resolved = plain(config)
            check(resolved, allowed=allowed)
            resolved = settled(resolved)
            status.write(directory, "running", **facts, config=resolved)
            execute(resolved, directory, facts, allowed, stop)
        except Stopped as stopped:
            _end(directory, "interrupted", str(stopped), stopped.exit_code)
            grid = facts["family"] is not None
            where = f"hydra.sweep.dir={directory.parent}" if grid else f"hydra.run.dir={directory}"
            again = f"{where} resume=true"
            _tell(f"{stopped}; the same command with {again} goes on.")
            raise SystemExit(stopped.exit_code) from stopped
        except KeyboardInterrupt:
            code = 128 + (stop.signum or signal.SIGINT)
            _end(directory, "interrupted", "stopped at once", code)
            _tell(f"stopped at once; what was saved last is in {directory}.")
            raise SystemExit(code) from None
        except Exception as error:
            code = _fail(directory, error, before)
        else:
            _show(directory)
    if stop.signum is not None and facts["family"] is not None:
        raise SystemExit(128 + stop.signum)  # it came too late for this job, not for the next
    return code


def _fail(directory: Path, error: Exception, before: Mapping[str, Any]) -> int:
    """A wrong input or a foreseen failure is one sentence; anything else also its traceback.

    A finished run keeps its status when a wrong command is pointed at it. Returns the exit code.
    """
    log.info("the job failed", exc_info=error)  # to the log file of the run, not to the terminal
    code = INVALID if isinstance(error, WRONG_INPUT) else FAILED
    message = str(error) if isinstance(error, FORESEEN) else f"{type(error).__name__}: {error}"
    _end(directory, "invalid" if code == INVALID else "failed", message, code)
    if code == INVALID and before.get("state") == "done":
        write_json(directory / status.FILE, before)
    _tell(message)
    if not isinstance(error, FORESEEN) or os.environ.get("ADVTRAIN_TRACEBACK"):
        traceback.print_exception(error)
    return code


def _end(directory: Path, state: str, error: str | None, code: int) -> None:
    try:
        status.write(directory, state, error, exit_code=code)
    except OSError as failure:
        _tell(f"{directory} cannot be written ({failure.strerror}).")


def _show(directory: Path) -> None:
    """The table of the run, on standard output, and where the rest is."""
    with unread_output():
        if (directory / "results.json").exists():
            print_run(report_of([read_run(directory)]))
        print(directory / "report.html", flush=True)


def _tell(message: str) -> None:
    print(f"advtrain: {message}", file=sys.stderr, flush=True)

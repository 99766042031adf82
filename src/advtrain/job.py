"""One job from start to end: what it leaves in its directory, and its exit code, come what may."""

import logging
import os
import signal
import traceback
from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from hydra.errors import HydraException
from omegaconf import DictConfig

from advtrain import determinism, mishaps, status
from advtrain.adopt import adopt
from advtrain.checkpoints import CheckpointError
from advtrain.config import ConfigError, check, plain, settled
from advtrain.crew import Crew, Failure, joined
from advtrain.data.errors import DataError
from advtrain.evaluation import EvaluationFailed
from advtrain.exchange import of_leader
from advtrain.files import remove_leftovers
from advtrain.foreign import printable
from advtrain.lock import locked
from advtrain.memory import keep_freed
from advtrain.newest import CheckpointLost
from advtrain.program import execute
from advtrain.ranges import RangeError
from advtrain.reporting.reading import read_run
from advtrain.reporting.report import report_of
from advtrain.reporting.terminal import print_run, unread_output
from advtrain.stopping import Stopped, listening
from advtrain.telling import tell
from advtrain.training import TrainingFailed, TrainingRefused
from advtrain.world import leads

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
FORESEEN = (*WRONG_INPUT, TrainingFailed, EvaluationFailed, CheckpointLost, OSError)
FOLDERS = (".", "checkpoints", "plots", "predict", "wandb")  # in which a run writes
BEHIND = 60.0  # seconds that the process of a grid that was killed may take to save its state


def run_job(
    config: DictConfig, directory: Path, facts: dict[str, Any], allowed: tuple[str, ...]
) -> int:
    """Do the job; the exit code. Failures become a status and a sentence: a grid goes on.

    `facts`: choices, overrides, family (the grid), config_dir (of the command line).
    SystemExit: the job was asked to stop; its state is saved, and a grid ends with it.
    """
    keep_freed()
    logging.raiseExceptions = False  # a log that cannot be written has nothing to add to the error
    with joined(str(config.device), partial(_abandon, directory)) as crew, ExitStack() as stack:
        try:
            of_leader(partial(_occupy, directory, stack, patient=facts["family"] is not None))
        except BlockingIOError:
            _tell(f"hydra.run.dir={directory}: another process is at work there. Choose another.")
            return INVALID
        return _run(config, directory, facts, allowed, crew)


def _occupy(directory: Path, stack: ExitStack, *, patient: bool) -> None:
    """Hold the directory until `stack` closes. BlockingIOError: another process does.

    `patient`: of a grid that holds its folder, where such a process is about to end.
    """
    stack.enter_context(locked(directory / ".lock", wait=BEHIND if patient else 0))
    remove_leftovers(*(directory / each for each in FOLDERS))


def _run(
    config: DictConfig,
    directory: Path,
    facts: dict[str, Any],
    allowed: tuple[str, ...],
    crew: Crew,
) -> int:
    before, code = status.read(directory), DONE
    grid = facts["family"] is not None
    where = f"hydra.sweep.dir={directory.parent}" if grid else f"hydra.run.dir={directory}"
    again = f"the same command with {where} resume=true goes on."
    _note(directory, "running", **facts)
    with listening() as stop:
        try:
            if config.job == "eval" and config.checkpoint is not None:
                config, taken = adopt(config, facts, allowed)
                facts |= taken
            resolved = plain(config)
            check(resolved, allowed=allowed)
            resolved = settled(resolved)
            _note(directory, "running", **facts, config=resolved)
            execute(resolved, directory, facts, allowed, stop)
        except Stopped as stopped:
            _end(directory, "interrupted", str(stopped), stopped.exit_code)
            _tell(f"{stopped}; {again}")
            raise SystemExit(stopped.exit_code) from stopped
        except KeyboardInterrupt:
            code = 128 + (stop.signum or signal.SIGINT)
            _end(directory, "interrupted", "stopped at once", code)
            _tell(f"stopped at once; what was saved last is in {directory}.")
            raise SystemExit(code) from None
        except Exception as error:
            code = _fail(directory, error, before, crew, again)
        else:
            _show(directory)
    if stop.signum is not None and grid:
        raise SystemExit(128 + stop.signum)  # it came too late for this job, not for the next
    return code


def _fail(
    directory: Path, error: Exception, before: Mapping[str, Any], crew: Crew, again: str
) -> int:
    """A wrong input or a foreseen failure is one sentence; anything else also its traceback.

    Of several processes the first that failed is the one to blame. A finished run keeps its status
    when a wrong command is pointed at it. Returns the exit code.
    """
    log.info("the job failed", exc_info=error)  # to the log file of the run, not to the terminal
    if lacks := determinism.missing(error):
        has = f"torch has no such kernel for {lacks} here"
        error = ConfigError(f"deterministic=true: {has}. Use deterministic=false.")
    code = INVALID if isinstance(error, WRONG_INPUT) else FAILED
    mishap = mishaps.told(error)
    foreseen = mishap is not None or isinstance(error, FORESEEN)
    message = str(error) if foreseen else f"{type(error).__name__}: {error}"
    message = f"{mishap} Then {again}" if mishap else message
    failure = crew.first(message, code)
    code = failure.code
    told = message if failure.message == message else failure.told
    _end(directory, "invalid" if code == INVALID else "failed", told, code)
    if leads() and code == INVALID and before.get("state") == "done":
        status.put(directory, before)
    _tell(told)
    own = failure.rank == crew.world.rank
    if (own and not foreseen) or os.environ.get("ADVTRAIN_TRACEBACK"):
        traceback.print_exception(error)
    return code


def _abandon(directory: Path, failure: Failure) -> None:
    """The last words of a run of which another process failed, where this one waits for it."""
    _end(directory, "failed", failure.told, failure.code)
    _tell(failure.told)


def _note(directory: Path, state: str, error: str | None = None, **facts: Any) -> None:
    if leads():
        status.write(directory, state, error, **facts)


def _end(directory: Path, state: str, error: str | None, code: int) -> None:
    try:
        _note(directory, state, error, exit_code=code)
    except OSError as failure:
        log.info("%s cannot be written (%s)", directory, failure.strerror)


def _show(directory: Path) -> None:
    """The table of the run, on standard output, and where the rest is."""
    if not leads():
        return
    with unread_output():
        if (directory / "results.json").exists():
            print_run(report_of([read_run(directory)]))
        print(directory / "report.html", flush=True)


def _tell(message: str) -> None:
    if leads():
        tell(f"advtrain: {printable(message)}")

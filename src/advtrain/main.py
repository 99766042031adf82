"""The command: Hydra around `program.execute`, and what became of it as an exit code.

Composition, help and errors in the configuration never import torch; a job does.
"""

import argparse
import os
import sys
from contextlib import nullcontext, suppress
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from advtrain import config as configuration
from advtrain import ledger, status
from advtrain.adopt import recorded
from advtrain.checking import checked, packages, refuse_unread, require_known_code
from advtrain.complaints import explain
from advtrain.config import ConfigError
from advtrain.config_source import read_within_bounds
from advtrain.ending import end
from advtrain.engines import require_engines
from advtrain.expansion import single
from advtrain.files import FULL
from advtrain.foreign import printable
from advtrain.grid import SWEEPER, Locate, choices, composed, parse
from advtrain.lock import locked
from advtrain.places import facts
from advtrain.telling import flush, tell
from advtrain.together import together
from advtrain.world import speaks

DONE, FAILED, INVALID = 0, 1, 2


def main() -> None:
    """Entry point of `advtrain` and `python -m advtrain`; ends the process with an exit code."""
    traceback_wanted = os.environ.get("HYDRA_FULL_ERROR") == "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then hands its errors over instead of printing
    # Threads that wait for work spin; by default so long that on busy cores small networks train
    # ten times slower. This many turns cost nothing on free ones.
    os.environ.setdefault("GOMP_SPINCOUNT", "30000")
    code = FAILED  # where an error goes through
    try:
        sys.argv[1:] = of_table(sys.argv[1:])
        parsed = parse(sys.argv[1:])
        refuse_flags(parsed)
        read_within_bounds()
        if not (parsed.multirun or parsed.help or parsed.hydra_help):
            sys.argv[1:1] = of_checkpoint(parsed.overrides)
            parsed = parse(sys.argv[1:])
        asked = parsed.help, parsed.hydra_help, parsed.cfg, parsed.info, parsed.shell_completion
        if any(asked):
            with suppress(BrokenPipeError):
                app()
            code = DONE
        elif "job=plan" in parsed.overrides:
            from advtrain.estimates import estimate

            code = estimate(parsed) if speaks() else DONE
        else:
            validate(parsed)
            sys.argv[1:] += together(parsed)
            app()
            code = _code_of_runs()
    except (ConfigError, HydraException, OmegaConfBaseException) as error:
        if traceback_wanted:
            raise
        message = str(error) if isinstance(error, ConfigError) else _retell(error)
        if speaks():
            tell(f"advtrain: {printable(message)}")
        code = INVALID
    except BrokenPipeError:
        code = FAILED
    except OSError as error:  # of the run directory; those of a job end in its status
        tell(
            f"advtrain: {error.filename or 'the run directory'} cannot be written "
            f"({error.strerror}); choose another hydra.run.dir= or hydra.sweep.dir=."
        )
        code = FAILED if error.errno in FULL else INVALID
    except KeyboardInterrupt:
        code = 130
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else FAILED
    finally:
        try:
            if Locate.sweep is not None and ledger.codes(Locate.sweep):
                _report_grid(Locate.sweep, whole=code in (DONE, FAILED))
        except KeyboardInterrupt:
            code = 130
        flush()
    end(code)


def refuse_flags(parsed: argparse.Namespace) -> None:
    """ConfigError: a flag of Hydra that reads what is not checked here before it is obeyed."""
    if parsed.experimental_rerun is not None:
        raise ConfigError(
            f"--experimental-rerun={parsed.experimental_rerun} would open a pickle, which can run "
            "code of whoever wrote it. Give the run's overrides again; .hydra/overrides.yaml lists "
            "them."
        )
    if parsed.config_name is not None or parsed.config_path is not None:
        raise ConfigError(
            "--config-name and --config-path are refused: advtrain has one configuration. Add "
            "options to its groups by --config-dir."
        )


def validate(parsed: argparse.Namespace) -> None:
    """Raise ConfigError, or Hydra's own error, if what this line asks for could not run here.

    Of a grid only what its jobs share is looked at: its sweeper checks each of them.
    """
    overrides = single(parsed.overrides) if parsed.multirun else parsed.overrides
    with composed(overrides, parsed.config_dir) as config:
        grid = parsed.multirun or config.hydra.mode == RunMode.MULTIRUN
        if grid:
            require_engines(config, parsed.overrides)
            require_known_code(config, packages(config, overrides))
        elif (Path(config.hydra.run.dir) / "multirun.yaml").exists():
            raise ConfigError(
                f"hydra.run.dir={config.hydra.run.dir} is the folder of a grid; choose another for "
                "a single run."
            )
        if not grid or config.hydra.sweeper.get("_target_") != SWEEPER:
            resolved, vain = checked(config, overrides)
            refuse_unread([] if grid else [vain])
        if not grid and speaks():
            _refuse_occupied(Path(config.hydra.run.dir))
            mine = ledger.identity(configuration.settled(resolved), choices(config))
            _refuse_other_job(Path(config.hydra.run.dir), mine)


def _refuse_occupied(directory: Path) -> None:
    """ConfigError: a job is at work there; Hydra would write this line's `.hydra` over its own."""
    lock = directory / ".lock"
    try:
        with locked(lock, wait=0) if os.path.lexists(lock) else nullcontext():
            pass
    except BlockingIOError as error:
        raise ConfigError(
            f"hydra.run.dir={directory}: another process is at work there. Choose another."
        ) from error


def _refuse_other_job(directory: Path, identity: str) -> None:
    """ConfigError: another job of a grid lies there, which would take these results for its own."""
    if status.read(directory).get("identity", identity) != identity:
        raise ConfigError(
            f"hydra.run.dir={directory} is the folder of a job of a grid, and this line asks for "
            "something else than that job. Choose another."
        )


def of_table(arguments: list[str]) -> list[str]:
    """`arguments` with `row=NAME` as the option EXPERIMENT/NAME of that group."""
    given = dict(argument.partition("=")[::2] for argument in arguments)
    table = given.get("experiment", "null")
    if table == "null" or "row" not in given:
        return arguments
    names = [
        name if "/" in name or name == "null" else f"{table}/{name}"
        for name in given["row"].split(",")
    ]
    return ["row=" + ",".join(names) if each.startswith("row=") else each for each in arguments]


def of_checkpoint(overrides: list[str]) -> list[str]:
    """Of an evaluation, or a plan of one: the choices of the run at `checkpoint=`."""
    given = dict(override.partition("=")[::2] for override in overrides)
    job = given.get("plan.job") if given.get("job") == "plan" else given.get("job")
    if job != "eval" or not given.get("checkpoint"):
        return []
    return recorded(given["checkpoint"].strip("'\""), overrides)


@hydra.main(version_base="1.3", config_path=str(configuration.conf_dir()), config_name="config")
def app(config: DictConfig) -> float | None:
    """One job, in the run directory that Hydra has made; what a search is to maximise."""
    here = HydraConfig.instance().cfg.hydra  # type: ignore[union-attr]
    known = facts(config, here)
    from advtrain.job import run_job

    directory = Path(here.runtime.output_dir)
    code = run_job(config, directory, known, packages(config, known["overrides"]))
    Locate.codes[directory] = code
    return merit(directory) if code == DONE else None


def merit(directory: Path) -> float | None:
    """The best accuracy of a training on its validation images: under attack, where it was asked.

    Never of test images: a search that saw them would report its own luck.
    """
    from advtrain.reporting.reading import read_metrics

    reports = read_metrics(directory)
    for metric in ("val_adv_acc", "val_acc"):
        if found := [report[metric] for report in reports if metric in report]:
            return max(found)
    return None


def _code_of_runs() -> int:
    codes = list(Locate.codes.values())
    if Locate.sweep is not None:  # whose launcher may have run its jobs in other processes
        return FAILED if any(codes) or any(ledger.codes(Locate.sweep)) else DONE
    return codes[-1] if codes else DONE


def _report_grid(sweep: Path, *, whole: bool) -> None:
    """The table of a grid; mirrored unless it was stopped, when its end is awaited."""
    from advtrain.reporting.terminal import print_set, unread_output
    from advtrain.reporting.writing import write_set

    try:
        ledger.close(sweep)
        report = write_set([sweep], sweep)
        with unread_output():
            print_set(report)
            print(sweep / "report.html", flush=True)
        if whole:
            from advtrain.mirror import mirror

            mirror(sweep, report)
    except (OSError, ValueError) as error:
        tell(f"advtrain: no table of {sweep}: {error}")


def _retell(error: Exception) -> str:
    """One sentence for an error of composition, with the names that would have been right."""
    parsed = parse(sys.argv[1:])
    overrides = list(parsed.overrides)
    chosen = [each for each in overrides if "." not in each.partition("=")[0]]
    with suppress(HydraException):
        chosen = single(chosen)
    for context in (chosen, []):
        try:
            with composed(context, parsed.config_dir) as base:
                return explain(error, overrides, base)
        except ConfigError as another:  # of the choice alone, without the values
            return str(another)
        except (HydraException, OmegaConfBaseException):
            continue
    return explain(error, overrides, None)

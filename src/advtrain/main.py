"""The command: Hydra around `program.execute`, and what became of it as an exit code.

Composition, help and errors in the configuration never import torch; a job does.
"""

import os
import sys
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from advtrain import config as configuration
from advtrain import status
from advtrain.adopt import recorded
from advtrain.complaints import causes, explain, unread
from advtrain.config import ConfigError
from advtrain.grid import Locate, choices, composed, jobs, ours, parse
from advtrain.resolvers import register_resolvers

DONE, FAILED, INVALID = 0, 1, 2


def main() -> None:
    """Entry point of `advtrain` and `python -m advtrain`; ends the process with an exit code."""
    traceback_wanted = os.environ.get("HYDRA_FULL_ERROR") == "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then hands its errors over instead of printing
    # Threads that wait for work spin; by default so long that on busy cores small networks train
    # ten times slower. This many turns cost nothing on free ones.
    os.environ.setdefault("GOMP_SPINCOUNT", "30000")
    register_resolvers()
    try:
        sys.argv[1:] = of_table(sys.argv[1:])
        parsed = parse(sys.argv[1:])
        if not (parsed.multirun or parsed.help or parsed.hydra_help):
            sys.argv[1:1] = of_checkpoint(parsed.overrides)
            parsed = parse(sys.argv[1:])
        if not (
            parsed.help or parsed.hydra_help or parsed.cfg or parsed.info or parsed.shell_completion
        ):
            validate(jobs(parsed), parsed.config_dir)
        app()
        code = _code_of_runs()
    except (ConfigError, HydraException, OmegaConfBaseException) as error:
        if traceback_wanted:
            raise
        message = str(error) if isinstance(error, ConfigError) else _retell(error)
        print(f"advtrain: {message}", file=sys.stderr)
        code = INVALID
    except BrokenPipeError:
        code = DONE
    except OSError as error:  # of the run directory; those of a job end in its status
        print(
            f"advtrain: {error.filename} cannot be written ({error.strerror}); choose another "
            "hydra.run.dir= or hydra.sweep.dir=.",
            file=sys.stderr,
        )
        code = INVALID
    except KeyboardInterrupt:
        code = 130
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else FAILED
    finally:
        if Locate.sweep is not None and Locate.sweep.is_dir():
            _report_grid(Locate.sweep)
    sys.exit(code)


def validate(grid: list[list[str]], config_dir: str | None = None) -> None:
    """Raise ConfigError, or Hydra's own error, if a job of this grid could not be built.

    A key that one job does not read is fine as long as another one does.
    """
    vain: list[set[str]] = []
    for overrides in grid:
        with composed(overrides, config_dir) as config:
            chosen = ours(config)
            resolved, allowed = configuration.plain(chosen), packages(chosen, overrides)
            configuration.refuse(causes(configuration.problems(resolved, allowed=allowed), chosen))
            vain.append(unread(chosen, overrides))
    for override in sorted(set.intersection(*vain)) if vain else []:
        raise ConfigError(
            f"{override}: nothing in this run reads it; leave it out. (job=eval trains nothing, "
            "job=train evaluates nothing, and some defenses train without an attack.)"
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
    """With job=eval, the choices that the run at `checkpoint=` was trained with."""
    given = dict(override.partition("=")[::2] for override in overrides)
    if given.get("job") != "eval" or not given.get("checkpoint"):
        return []
    return recorded(given["checkpoint"].strip("'\""), overrides)


def packages(config: DictConfig, overrides: list[str]) -> tuple[str, ...]:
    """The packages beside advtrain that the command line itself names."""
    given = [(key.lstrip("+"), value) for key, _, value in (o.partition("=") for o in overrides)]
    named = [
        value.strip("'\"").split(".")[0]
        for key, value in given
        if key.endswith(("_target_", "model.factory"))
    ]
    listed = config.packages if any(key == "packages" for key, _ in given) else []
    return (*named, *(str(each) for each in listed))


@hydra.main(version_base="1.3", config_path=str(configuration.conf_dir()), config_name="config")
def app(config: DictConfig) -> None:
    """One job, in the run directory that Hydra has made."""
    here = HydraConfig.get()
    task = OmegaConf.to_container(here.overrides.task, resolve=False)
    overrides = [str(each) for each in task] if isinstance(task, list) else []
    sources = here.runtime.config_sources
    facts: dict[str, Any] = {
        "choices": choices(OmegaConf.create({"hydra": here})),
        "overrides": overrides,
        "family": Locate.sweep.name if Locate.sweep is not None else None,
        "config_dir": next((s.path for s in sources if s.provider == "command-line"), None),
    }
    from advtrain.job import run_job

    directory = Path(here.runtime.output_dir)
    Locate.codes[directory] = run_job(config, directory, facts, packages(config, overrides))


def _code_of_runs() -> int:
    codes = list(Locate.codes.values())
    if Locate.sweep is not None:  # whose launcher may have run its jobs in other processes
        found = (status.read(path.parent) for path in Locate.sweep.glob(f"*/{status.FILE}"))
        codes += [int(each.get("exit_code", FAILED)) for each in found]
        return FAILED if any(codes) else DONE
    return codes[-1] if codes else DONE


def _report_grid(sweep: Path) -> None:
    from advtrain.reporting.terminal import print_set, unread_output
    from advtrain.reporting.writing import write_set

    try:
        report = write_set([sweep], sweep)
        with unread_output():
            print_set(report)
            print(sweep / "report.html", flush=True)
    except (OSError, ValueError) as error:
        print(f"advtrain: no table of {sweep}: {error}", file=sys.stderr)


def _retell(error: Exception) -> str:
    """One sentence for an error of composition, with the names that would have been right."""
    parsed = parse(sys.argv[1:])
    overrides = list(parsed.overrides)
    chosen = [each for each in overrides if "." not in each.partition("=")[0]]
    for context in (chosen, []):
        try:
            with composed(context, parsed.config_dir) as base:
                return explain(error, overrides, base)
        except (HydraException, OmegaConfBaseException):
            continue
    return explain(error, overrides, None)

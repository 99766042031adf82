"""A grid from its line to the launcher: expanded, checked, and held against what is done already.

Every job is composed and checked before the first one starts. Jobs that are finished in the folder
are left out, interrupted ones go on where they are, and a folder is never shared by two grids.
"""

import signal
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from types import FrameType

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError  # type: ignore[import-untyped]

from advtrain import status
from advtrain.checking import checked, refuse_unread
from advtrain.complaints import explain, no_word, no_yaml
from advtrain.composing import Composer
from advtrain.config import ConfigError, settled
from advtrain.expansion import expand, twin
from advtrain.files import remove_leftovers
from advtrain.grid import Locate, choices
from advtrain.ledger import Place, await_others, identity, survey
from advtrain.places import SUBDIR, free_name, is_numbered
from advtrain.telling import tell


@dataclass(frozen=True)
class Job:
    """One job of a grid: its overrides, and what it computes by name, with its seed and without.

    `anew`: with resume=false, for which nothing counts as done.
    """

    overrides: tuple[str, ...]
    identity: str
    seedless: str
    anew: bool


def jobs(config: DictConfig, context: HydraContext, arguments: Sequence[str]) -> list[Job]:
    """The jobs of a grid, each once. `config`: of the whole grid. ConfigError: one cannot run."""
    sweeper, loader = config.hydra.sweeper, context.config_loader
    assert isinstance(loader, ConfigLoaderImpl)
    rows = sweeper.rows
    rows = OmegaConf.to_container(rows) if OmegaConf.is_config(rows) else rows
    lines = expand(arguments, sweeper.params, rows, loader)
    composer, top = Composer(loader, config), str(config.hydra.sweep.dir)
    found: dict[str, Job] = {}
    vain: list[set[str]] = []
    alike: list[tuple[Sequence[str], Sequence[str]]] = []
    before = HydraConfig.instance().cfg
    try:
        for line in lines:
            job = _composed(composer, line)
            HydraConfig.instance().set_config(job)
            if str(job.hydra.sweep.dir) != top:
                raise ConfigError(
                    f"hydra.sweep.dir={job.hydra.sweep.dir} of one job, and {top} of the grid: all "
                    "its jobs lie in one folder. Name what differs in hydra.sweep.subdir."
                )
            resolved, unread = checked(job, line)
            plain, chosen = settled(resolved), choices(job)
            name = identity(plain, chosen)
            seedless = identity({**plain, "seed": 0}, chosen)
            mine = Job(tuple(line), name, seedless, not plain["resume"])
            alike.append((found.setdefault(name, mine).overrides, mine.overrides))
            vain.append(unread)
    finally:
        HydraConfig.instance().cfg = before
    refuse_unread(vain)
    if repeated := len(lines) - len(found):
        which = next(filter(None, (twin(*pair) for pair in alike)), "the same line")
        same = f"{repeated} of {len(lines)} jobs compute what another does"
        tell(f"advtrain: {same} ({which}): left out.")
    return list(found.values())


def sweep(
    config: DictConfig, context: HydraContext, launcher: Launcher, arguments: Sequence[str]
) -> None:
    """Do the jobs of a grid that are not done yet, through `launcher`.

    ConfigError: a job could not be built, or the folder is another grid's; nothing has begun.
    """
    wanted = jobs(config, context, arguments)
    folder = Path(config.hydra.sweep.dir)
    Locate.hold(folder)
    known = survey(folder)
    remove_leftovers(folder, folder / "plots")
    todo, told = left(wanted, known, retry=config.hydra.sweeper.retry_failed)
    names = _named(todo, known, config, context)
    lines = [
        [*job.overrides, f"{SUBDIR}={QuotedString(name, Quote.single).with_quotes()}"]
        for job, name in zip(todo, names, strict=True)
    ]
    Locate.sweep = folder
    if told:
        tell(f"advtrain: {told} in {folder}.")
    OmegaConf.save(config, folder / "multirun.yaml")
    if lines:
        _launch(launcher, lines, [folder / name for name in names])


def _launch(launcher: Launcher, lines: Sequence[Sequence[str]], folders: Sequence[Path]) -> None:
    """SystemExit: SIGTERM has come between jobs, or to a launcher that knows no signals."""
    before = signal.signal(signal.SIGTERM, _leave)
    try:
        found = launcher.launch(lines, initial_job_idx=0)
    except (ConfigError, OSError, HydraException):
        raise
    except Exception as error:  # engines that give up at the first job whose process is gone
        what = next(iter(str(error).splitlines()), type(error).__name__)
        tell(f"advtrain: the launcher gave up at a job ({what}); the others go on.")
        await_others(folders)
        waiting = [each for each in folders if not status.read(each)]
        if waiting:
            count = f"{len(waiting)} of {len(lines)} jobs"
            tell(f"advtrain: {count} have not begun; the same command goes on.")
            raise SystemExit(1) from error
    else:
        for each in found:
            _ = each.return_value  # raises what a job could not tell itself: a folder not to write
    finally:
        signal.signal(signal.SIGTERM, before)


def _leave(signum: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + signum)


def _composed(composer: Composer, line: Sequence[str]) -> DictConfig:
    try:
        return composer(line)
    except (HydraException, OmegaConfBaseException) as error:
        base, chosen = None, [each for each in line if "." not in each.partition("=")[0]]
        for context in ((), chosen):
            with suppress(HydraException, OmegaConfBaseException):
                base = composer(context)
        raise ConfigError(explain(error, line, base)) from error
    except YAMLError as error:
        raise ConfigError(no_yaml(error)) from error
    except ValueError as error:
        raise ConfigError(no_word(error, line)) from error


def left(
    wanted: Sequence[Job], known: Mapping[str, Place], *, retry: bool
) -> tuple[list[Job], str]:
    """The jobs to do, and what is said of the others."""
    states = {job: known[job.identity].state for job in wanted if job.identity in known}
    done = [job for job, state in states.items() if state == "done" and not job.anew]
    failed = [job for job, state in states.items() if state in ("failed", "invalid")]
    left_out = [*done, *([] if retry else failed)]
    told = [f"{len(done)} of {len(wanted)} jobs are finished"] if done else []
    if failed and not retry:
        told.append(f"{len(failed)} have failed and are left so (hydra.sweeper.retry_failed=false)")
    return [job for job in wanted if job not in left_out], ", ".join(told)


def _named(
    todo: Sequence[Job], known: Mapping[str, Place], config: DictConfig, context: HydraContext
) -> list[str]:
    """The folder of each job: the one that it has, else a new one.

    ConfigError: two jobs would share it, or it would not be found again.
    """
    loader, before = context.config_loader, HydraConfig.instance().cfg
    assert isinstance(loader, ConfigLoaderImpl)
    composer, numbers = Composer(loader, config), count()
    taken = {place.folder.name for place in known.values()}
    names: list[str] = []
    try:
        for job in todo:
            if job.identity in known:
                name = known[job.identity].folder.name
            elif is_numbered(config):
                name = next(str(number) for number in numbers if str(number) not in taken)
            else:
                name = free_name(composer(job.overrides), numbers, taken)
            taken.add(name)
            names.append(name)
    finally:
        HydraConfig.instance().cfg = before
    return names

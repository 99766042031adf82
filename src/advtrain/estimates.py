"""job=plan: how many jobs, hours and gigabytes a line stands for, before anything starts."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hydra import initialize_config_dir
from hydra._internal.callbacks import Callbacks
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.hydra import Hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig, open_dict

from advtrain import config as configuration
from advtrain.checking import packages
from advtrain.composing import Composer
from advtrain.config import ConfigError, conf_dir
from advtrain.grid import SWEEPER, ours
from advtrain.ledger import survey
from advtrain.reporting.screen import fit, new_table, say, screen
from advtrain.reporting.wording import duration
from advtrain.slots import environments
from advtrain.sweeping import Job, jobs, left

if TYPE_CHECKING:
    from rich.table import Table

    from advtrain.forecast import Forecast

DONE, FAILED = 0, 1


@dataclass(frozen=True)
class Estimate:
    """Jobs that differ in their seed alone: what they are called, how many, and what each takes.

    `found` None: it could not be measured, for the reason in `error`.
    """

    label: str
    jobs: int
    found: "Forecast | None"
    error: str = ""


def estimate(parsed: argparse.Namespace) -> int:
    """Measure each configuration of a line, and print what it all takes; the exit code.

    ConfigError, Hydra's errors: the line could not run.
    """
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        config = _master(hydra, parsed)
        context = HydraContext(config_loader=hydra.config_loader, callbacks=Callbacks())
        wanted = jobs(config, context, [str(each) for each in config.hydra.overrides.task])
        known = survey(Path(config.hydra.sweep.dir)) if parsed.multirun else {}
        wanted, told = left(wanted, known, retry=config.hydra.sweeper.retry_failed)
        if told:
            print(f"advtrain: {told}; what is left is planned.", file=sys.stderr, flush=True)
        if not wanted:
            return DONE
        slots = _slots(config, len(wanted))
        loader = hydra.config_loader
        assert isinstance(loader, ConfigLoaderImpl)
        found = _estimates(config, Composer(loader, config), wanted, slots)
    _print(found, len(slots))
    return DONE if all(each.found is not None for each in found) else FAILED


def _master(hydra: Hydra, parsed: argparse.Namespace) -> DictConfig:
    """The configuration of the line as a grid; without -m it is a grid of one job."""
    extra = [f"hydra.searchpath=[file://{parsed.config_dir}]"] if parsed.config_dir else []
    config: DictConfig = hydra.compose_config(
        "config",
        [*parsed.overrides, *extra],
        run_mode=RunMode.MULTIRUN if parsed.multirun else RunMode.RUN,
        with_log_configuration=False,
    )
    if config.hydra.sweeper.get("_target_") != SWEEPER:
        raise ConfigError(
            "job=plan counts the jobs of hydra/sweeper=grid; a search decides as it goes. Plan one "
            "of its jobs, without -m."
        )
    with open_dict(config):
        if not (parsed.multirun or config.hydra.mode == RunMode.MULTIRUN):
            config.hydra.sweeper.params, config.hydra.sweeper.rows = {}, None
    return config


def _slots(config: DictConfig, count: int) -> list[dict[str, str]]:
    """The slots of the pool; one where jobs run in this process."""
    launcher = config.hydra.launcher
    return environments(launcher.slots, count) if "slots" in launcher else [{}]


def _estimates(
    config: DictConfig, composer: Composer, wanted: Sequence[Job], slots: Sequence[dict[str, str]]
) -> list[Estimate]:
    import torch

    from advtrain.forecast import forecast
    from advtrain.job import FORESEEN
    from advtrain.portions import TooLarge

    if threads := slots[0].get("OMP_NUM_THREADS"):
        torch.set_num_threads(int(threads))
    groups: dict[str, list[Job]] = {}
    for job in wanted:
        groups.setdefault(job.seedless, []).append(job)
    names = labels([group[0].overrides for group in groups.values()])
    found = []
    for number, (name, group) in enumerate(zip(names, groups.values(), strict=True), start=1):
        if len(groups) > 1:
            print(f"advtrain: measuring {number} of {len(groups)}: {name}", file=sys.stderr)
        try:
            composed = composer(group[0].overrides)
            HydraConfig.instance().set_config(composed)
            mine = ours(composed)
            plain = configuration.settled(configuration.plain(mine))
            allowed = packages(mine, group[0].overrides)
            plan = configuration.make(plain["plan"], path="plan", allowed=allowed)
            found.append(Estimate(name, len(group), forecast(plain, plan, allowed)))
        except (*FORESEEN, TooLarge) as error:
            found.append(Estimate(name, len(group), None, str(error)))
    return found


def labels(lines: Sequence[Sequence[str]]) -> list[str]:
    """What tells lines apart: their overrides without seeds and without those that all have."""
    common = set.intersection(*(set(line) for line in lines))
    told = [
        " ".join(each for each in line if each not in common and not each.startswith("seed="))
        for line in lines
    ]
    return [name or "as given" for name in told]


def _print(found: Sequence[Estimate], slots: int) -> None:
    console = screen()
    fit(console, [_table(found)])
    for each in found:
        if each.error:
            say(console, f"{each.label}: {each.error}", "red")
    measured = [each for each in found if each.found is not None]
    seconds = sum(each.jobs * each.found.seconds for each in measured if each.found)
    longest = max((each.found.seconds for each in measured if each.found), default=0.0)
    disk = sum(each.jobs * each.found.disk for each in measured if each.found)
    count = sum(each.jobs for each in found)
    memory = max((each.found.memory for each in measured if each.found), default=0)
    total = f"{count} job{'s' if count > 1 else ''}: about {hours(seconds)} of work"
    if slots > 1:
        total += f", {hours(max(seconds / slots, longest))} in {slots} slots"
    total += f"; {size(disk)} of checkpoints, {size(memory)} of memory a job"
    say(console, f"{total}." if len(measured) == len(found) else f"{total}, without those in red.")
    missing = dict.fromkeys(text for each in measured if each.found for text in each.found.missing)
    always = ("starting processes", "reports", "loggers", "pictures")
    say(console, f"Not measured: {'; '.join([*missing, ', '.join(always)])}.", "dim")


def _table(found: Sequence[Estimate]) -> "Table":
    from rich.text import Text

    table = new_table()
    table.add_column("configuration", no_wrap=True)
    for name in ("jobs", "steps", "a step", "training", "evaluation", "all jobs", "disk", "memory"):
        table.add_column(name, justify="right", no_wrap=True)
    for each in found:
        cells = [each.label, str(each.jobs)]
        if each.found is not None:
            one = each.found
            cells += [str(one.steps), f"{1000 * one.per_step:.1f} ms"]
            cells += [hours(one.training), hours(one.evaluation), hours(each.jobs * one.seconds)]
            cells += [size(each.jobs * one.disk), size(one.memory)]
        table.add_row(*[Text(cell) for cell in cells])
    return table


def hours(seconds: float) -> str:
    """As `duration` has it, and in hours where it is more than two of them."""
    return f"{seconds / 3600:.1f} h" if seconds > 7200 else duration(seconds)


def size(count: float) -> str:
    """Bytes as kB, MB or GB."""
    if count < 1e6:
        return f"{count / 1e3:.0f} kB"
    return f"{count / 1e6:.0f} MB" if count < 1e9 else f"{count / 1e9:.1f} GB"

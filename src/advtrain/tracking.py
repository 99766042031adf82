"""Mirrors of a run: Weights & Biases, or none. The run directory stays the source of truth.

A tracker never fails a run and never stops it: whatever it meets is told in one warning line, and
the run goes on without. W&B is imported in one function, beside a run that starts: nothing waits
for it before there is something to log.
"""

import logging
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from netrc import NetrcParseError, netrc
from pathlib import Path
from types import ModuleType
from typing import Any, Generic, Literal, NamedTuple, Protocol, TypeVar
from urllib.parse import urlparse
from uuid import uuid4

from advtrain.ending import Beside
from advtrain.files import write_text
from advtrain.foreign import content
from advtrain.sheets import COLUMNS, ROW_COLUMNS, accuracy_rows, at, flat_rows, of_csv

log = logging.getLogger(__name__)

MODES = ("online", "offline", "disabled")
Value = TypeVar("Value")
IDENTITY_FILE = "advtrain-id.txt"
IDENTITY = re.compile(r"([a-z0-9]{1,32}) ([0-9]{1,6})\s*")
"""Of a run in W&B, and how many segments it has: names of folders are made of it."""
PATIENCE = 120.0  # seconds that a silent server may hold up a run, at its start and at its end


class Tracker(Protocol):
    """Where numbers and pictures of a run are mirrored. No method raises, and none waits long."""

    def log(self, metrics: Mapping[str, Any], step: int) -> None:
        """Scalars of one epoch; `step` is the epoch where `metrics` does not name one."""

    def table(self, results: Mapping[str, Any]) -> None:
        """The accuracy table of one `results.json`, given as its content."""

    def sheet(self, name: str, text: str) -> None:
        """A table of a grid, given as CSV."""

    def images(self, paths: Sequence[Path]) -> None:
        """PNG files, named by their stems."""

    def finish(self, exit_code: int) -> None:
        """The end, with the exit code of the run; call it always, last."""


class NullTracker:
    """Mirrors nothing."""

    def log(self, metrics: Mapping[str, Any], step: int) -> None: ...

    def table(self, results: Mapping[str, Any]) -> None: ...

    def sheet(self, name: str, text: str) -> None: ...

    def images(self, paths: Sequence[Path]) -> None: ...

    def finish(self, exit_code: int) -> None: ...


def null_tracker(
    config: Mapping[str, Any],
    directory: Path,
    name: str,
    family: str | None = None,
    labels: Sequence[str] = (),
) -> Tracker:
    """No tracker."""
    return NullTracker()


def wandb_tracker(
    config: Mapping[str, Any],
    directory: Path,
    name: str,
    family: str | None = None,
    labels: Sequence[str] = (),
    *,
    project: str,
    group: str | None,
    tags: Sequence[str],
    mode: Literal["auto", "offline", "online", "disabled"],
) -> Tracker:
    """A W&B run in `directory`/wandb, or, where that cannot be had, one warning and no tracker.

    config: the resolved configuration, plain containers. family: the name of the grid, which is
    the group unless `group` says otherwise. labels: more tags. A run that is resumed continues
    under the id in `wandb/advtrain-id.txt`; offline, where W&B cannot continue a run, as a further
    run of the same group, `_r1`, `_r2` behind its id.
    """
    chosen = _mode(mode)
    if chosen == "disabled":
        return NullTracker()
    try:
        identity = _identity(directory, chosen == "online")
    except OSError as error:
        _unavailable(error)
        return NullTracker()
    arguments = {
        "project": project,
        "group": group or family or name,
        "name": name,
        "job_type": str(config.get("job", "")) or None,
        "tags": [tag[:64] for tag in dict.fromkeys([*tags, *labels]) if tag],
        "config": dict(config),
        "dir": str(directory),
        "id": identity,
        "mode": chosen,
        "resume": "allow" if chosen == "online" else None,
        "reinit": "finish_previous",
    }
    return WandbTracker(Later(partial(_begun, arguments)))


class Begun(NamedTuple):
    """W&B, and a run of it."""

    wandb: ModuleType
    run: Any


def _begun(arguments: Mapping[str, Any]) -> Begun | None:
    """A W&B run, or a warning and none."""
    wanted = {
        "console": "off",
        "silent": True,
        "init_timeout": PATIENCE / 4,
        "login_timeout": PATIENCE / 4,
        "finish_timeout": PATIENCE,  # also holds for W&B's own hook at the end of the process
    }
    try:
        wandb = _wandb()
        known = getattr(wandb.Settings, "model_fields", wanted)
        settings = wandb.Settings(**{k: v for k, v in wanted.items() if k in known})
        run = wandb.init(**arguments, settings=settings)
        run.define_metric("epoch")
        run.define_metric("*", step_metric="epoch")
    except Exception as error:
        _unavailable(error)
        return None
    return Begun(wandb, run)


class WandbTracker:
    """Passes everything to a W&B run, which begins while the training does.

    After the first failure only `finish` still does anything.
    """

    def __init__(self, begun: "Later[Begun | None]") -> None:
        self.begun = begun
        self.broken = False

    def log(self, metrics: Mapping[str, Any], step: int) -> None:
        def send(to: Begun) -> None:
            scalars = {metric_name(key): _scalar(value) for key, value in metrics.items()}
            to.run.log({"epoch": step} | {k: v for k, v in scalars.items() if v is not None})

        self._attempt(send)

    def table(self, results: Mapping[str, Any]) -> None:
        def send(to: Begun) -> None:
            wide = [[row.get(c) for c in COLUMNS] for row in accuracy_rows(results)]
            long = [[row.get(c) for c in ROW_COLUMNS] for row in flat_rows(results)]
            summary = {
                f"test/{row['name']}{at(row)}/acc": row["accuracy"]
                for row in flat_rows(results)
                if "accuracy" in row
            }
            to.run.log(
                {
                    "eval/accuracy": to.wandb.Table(columns=list(COLUMNS), data=wide),
                    "eval/rows": to.wandb.Table(columns=list(ROW_COLUMNS), data=long),
                    **summary,
                }
            )

        self._attempt(send)

    def sheet(self, name: str, text: str) -> None:
        def send(to: Begun) -> None:
            columns, rows = of_csv(text)
            to.run.log({f"grid/{name}": to.wandb.Table(columns=columns, data=rows)})

        self._attempt(send)

    def images(self, paths: Sequence[Path]) -> None:
        def send(to: Begun) -> None:
            pictures = {f"plots/{p.stem}": to.wandb.Image(str(p)) for p in paths if p.is_file()}
            if pictures:
                to.run.log(pictures)

        self._attempt(send)

    def finish(self, exit_code: int) -> None:
        to = self._begun()
        if to is None:
            return
        try:
            Later(lambda: to.run.finish(exit_code=exit_code)).get(PATIENCE)
        except Exception as error:
            if not self.broken:
                self.broken = True
                log.warning("W&B did not finish (%s); its files may lack the end.", _short(error))

    def _begun(self) -> Begun | None:
        """The run, once it has begun; None if it has not in time, which is told once."""
        try:
            return self.begun.get(0.0 if self.broken else PATIENCE / 2)
        except TimeoutError as error:
            if not self.broken:
                self.broken = True
                _unavailable(error)
            return None

    def _attempt(self, send: Callable[[Begun], None]) -> None:
        to = None if self.broken else self._begun()
        if to is None:
            return
        try:
            send(to)
        except Exception as error:
            self.broken = True
            log.warning("W&B stopped (%s); the run goes on without it.", _short(error))


def metric_name(key: str) -> str:
    """The W&B name of a key of `metrics.jsonl`: `val_acc` is `val/acc`, `lr` is `train/lr`."""
    head, _, tail = key.partition("_")
    if key in ("epoch", "step") or "/" in key:
        return key
    return f"{head}/{tail}" if head in ("train", "val", "test") and tail else f"train/{key}"


def _wandb() -> ModuleType:
    import wandb

    return wandb


def _mode(asked: str) -> str:
    environment = os.environ.get("WANDB_MODE", "").strip().lower()
    if environment in ("dryrun", *MODES):
        return "offline" if environment == "dryrun" else environment
    if asked == "online" and not _login_found():
        log.warning("No W&B login is found; its files stay in the run directory (`wandb sync`).")
        return "offline"
    if asked != "auto":
        return asked
    return "online" if _login_found() else "offline"


def _login_found() -> bool:
    """Whether W&B would find a key without asking: in the environment, or in the netrc file."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    base = os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai"
    places = [Path(os.environ["NETRC"])] if os.environ.get("NETRC") else []
    places += [Path("~/.netrc").expanduser(), Path("~/_netrc").expanduser()]
    for place in places:
        with suppress(OSError, NetrcParseError, UnicodeDecodeError):
            return netrc(str(place)).authenticators(urlparse(base).hostname or "") is not None
    return False


def _identity(directory: Path, continues: bool) -> str:
    """The id of this run directory; of its n-th segment where a run cannot be continued."""
    path = directory / "wandb" / IDENTITY_FILE
    try:
        found = IDENTITY.fullmatch(content(path, 100).decode("utf-8"))
    except (OSError, ValueError):  # none, or not ours
        found = None
    base, segment = (found[1], int(found[2]) + 1) if found else (uuid4().hex[:8], 0)
    write_text(path, f"{base} {segment}\n")
    return base if continues or segment == 0 else f"{base}_r{segment}"


def _scalar(value: Any) -> float | None:
    """A finite or non-finite number out of a number or a tensor of one; None for anything else."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def _short(error: Exception) -> str:
    first = next(iter(str(error).strip().splitlines()), "")
    return f"{type(error).__name__}: {first}"[:200]


def _unavailable(error: Exception) -> None:
    log.warning("W&B is not available (%s); the run goes on without it.", _short(error))


class Later(Generic[Value]):
    """What `action` returns, which a thread of its own finds out meanwhile."""

    def __init__(self, action: Callable[[], Value]) -> None:
        self.action = action
        self.values: list[Value] = []
        self.failure: BaseException | None = None
        self.thread = Beside(self._work, "wandb")
        self.thread.start()

    def get(self, seconds: float) -> Value:
        """The value, or what the action raised; TimeoutError when it is not there in time."""
        self.thread.join(seconds if math.isfinite(seconds) else None)
        if self.failure is not None:
            raise self.failure
        if not self.values:
            raise TimeoutError(f"no answer within {seconds:g} s")
        return self.values[0]

    def _work(self) -> None:
        try:
            self.values.append(self.action())
        except BaseException as error:
            self.failure = error

"""Mirrors of a run: Weights & Biases, or none. The run directory stays the source of truth.

A tracker never fails a run and never stops it: whatever it meets is told in one warning line, and
the run goes on without. W&B is imported in one function, when a run starts.
"""

import logging
import math
import os
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from netrc import NetrcParseError, netrc
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, Protocol
from urllib.parse import urlparse
from uuid import uuid4

from advtrain.files import write_text
from advtrain.foreign import content
from advtrain.sheets import COLUMNS, ROW_COLUMNS, accuracy_rows, at, flat_rows, of_csv

log = logging.getLogger(__name__)

MODES = ("online", "offline", "disabled")
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
        wandb = _wandb()
        wanted = {
            "console": "off",
            "silent": True,
            "init_timeout": PATIENCE / 4,
            "login_timeout": PATIENCE / 4,
            "finish_timeout": PATIENCE,  # also holds for W&B's own hook at the end of the process
        }
        known = getattr(wandb.Settings, "model_fields", wanted)
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
            "settings": wandb.Settings(**{k: v for k, v in wanted.items() if k in known}),
        }
        run = _within(PATIENCE / 2, lambda: wandb.init(**arguments))
        run.define_metric("epoch")
        run.define_metric("*", step_metric="epoch")
    except Exception as error:
        log.warning("W&B is not available (%s); the run goes on without it.", _short(error))
        return NullTracker()
    return WandbTracker(wandb, run)


class WandbTracker:
    """Passes everything to a W&B run; after the first failure only `finish` still does."""

    def __init__(self, wandb: ModuleType, run: Any) -> None:
        self.wandb = wandb
        self.run = run
        self.broken = False

    def log(self, metrics: Mapping[str, Any], step: int) -> None:
        def send() -> None:
            scalars = {metric_name(key): _scalar(value) for key, value in metrics.items()}
            self.run.log({"epoch": step} | {k: v for k, v in scalars.items() if v is not None})

        self._attempt(send)

    def table(self, results: Mapping[str, Any]) -> None:
        def send() -> None:
            wide = [[row.get(c) for c in COLUMNS] for row in accuracy_rows(results)]
            long = [[row.get(c) for c in ROW_COLUMNS] for row in flat_rows(results)]
            summary = {
                f"test/{row['name']}{at(row)}/acc": row["accuracy"]
                for row in flat_rows(results)
                if "accuracy" in row
            }
            self.run.log(
                {
                    "eval/accuracy": self.wandb.Table(columns=list(COLUMNS), data=wide),
                    "eval/rows": self.wandb.Table(columns=list(ROW_COLUMNS), data=long),
                    **summary,
                }
            )

        self._attempt(send)

    def sheet(self, name: str, text: str) -> None:
        def send() -> None:
            columns, rows = of_csv(text)
            self.run.log({f"grid/{name}": self.wandb.Table(columns=columns, data=rows)})

        self._attempt(send)

    def images(self, paths: Sequence[Path]) -> None:
        def send() -> None:
            pictures = {f"plots/{p.stem}": self.wandb.Image(str(p)) for p in paths if p.is_file()}
            if pictures:
                self.run.log(pictures)

        self._attempt(send)

    def finish(self, exit_code: int) -> None:
        try:
            _within(PATIENCE, lambda: self.run.finish(exit_code=exit_code))
        except Exception as error:
            if not self.broken:
                self.broken = True
                log.warning("W&B did not finish (%s); its files may lack the end.", _short(error))

    def _attempt(self, send: Callable[[], None]) -> None:
        if self.broken:
            return
        try:
            send()
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
    path = directory / "wandb" / "advtrain-id.txt"
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


def _within(seconds: float, action: Callable[[], Any]) -> Any:
    """The value of `action`, or TimeoutError when it has not answered in time."""
    outcome: list[Any] = []
    failure: list[BaseException] = []

    def work() -> None:
        try:
            outcome.append(action())
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=work, name="wandb", daemon=True)
    thread.start()
    thread.join(seconds if math.isfinite(seconds) else None)
    if failure:
        raise failure[0]
    if not outcome:
        raise TimeoutError(f"no answer within {seconds:g} s")
    return outcome[0]

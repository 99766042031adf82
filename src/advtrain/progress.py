"""Progress: bars on a terminal, plain lines elsewhere.

Cheap enough for every step: values are only looked at when the display is drawn anew, a few times
a second and in the caller's thread, so that a tensor on a device is rarely waited for, and never
where nobody looks. Of several processes the leader shows it.
"""

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TextIO

from advtrain.telling import tell
from advtrain.world import leads

if TYPE_CHECKING:
    from rich.progress import Progress as Bars

REFRESH = 0.25  # seconds between two drawings


class Progress:
    """Counts to `total` in `unit`; on a terminal a bar, with the latest fields behind it.

    with Progress(images, "train", "img") as bar:
        bar.advance(len(x), step=step, loss=loss)
        bar.say(report)

    total may be None when it is not known. done: what an earlier run did already, which is in the
    bar and not in the speed. stream: standard error unless given.
    """

    def __init__(
        self,
        total: int | None,
        description: str,
        unit: str = "steps",
        *,
        done: float = 0,
        stream: TextIO | None = None,
    ) -> None:
        self.total = total
        self.description = description
        self.unit = unit
        self.stream: TextIO = stream or sys.stderr
        self.bars: Bars | None = None
        self.done = done
        self.fields: dict[str, Any] = {}
        self.drawn = 0.0

    def __enter__(self) -> Self:
        self.bars = _bars(self.stream) if leads() else None
        if self.bars is not None:
            self.bars.start()
            self.task = self.bars.add_task(
                _plain(self.description),
                total=self.total,
                completed=int(self.done),
                unit=self.unit,
                told="",
            )
            self._draw()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.bars is None:
            return
        self._draw()
        self.bars.stop()
        self.bars = None

    def advance(self, n: float = 1, **fields: Any) -> None:
        """Count `n` more; `fields` (numbers or tensors of one) are kept, and read when drawn."""
        if self.bars is None:
            return
        self.done += n
        self.fields.update(fields)
        if time.monotonic() - self.drawn >= REFRESH:
            self._draw()

    def say(self, text: str) -> None:
        """One line that stays: above the bars on a terminal, plainly elsewhere."""
        if not leads():
            return
        if self.bars is None:
            tell(text, self.stream)
        else:
            self.bars.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _draw(self) -> None:
        if self.bars is not None:
            told = "  ".join(f"{key} {number(value)}" for key, value in self.fields.items())
            self.bars.update(self.task, completed=self.done, told=_plain(told), refresh=True)
            self.drawn = time.monotonic()


def number(value: Any) -> str:
    """Four digits of a number or of a tensor of one; other things as they are."""
    if isinstance(value, str | int):
        return str(value)
    try:
        return f"{float(value):.4g}"
    except (TypeError, ValueError):
        return str(value)


def _plain(text: str) -> str:
    from rich.markup import escape

    return escape(text)


def _bars(stream: TextIO) -> "Bars | None":
    """Rich's bars for a terminal that can move its cursor; None for everything else."""
    if not stream.isatty():
        return None
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        ProgressColumn,
        Task,
        TextColumn,
        TimeRemainingColumn,
    )
    from rich.progress import Progress as Bars
    from rich.text import Text

    class Speed(ProgressColumn):
        """Units per second over the last half minute."""

        def render(self, task: Task) -> Text:
            speed = task.finished_speed or task.speed
            digits = 0 if speed is None or speed >= 10 else 2
            words = f"{speed:,.{digits}f} {task.fields['unit']}/s" if speed is not None else ""
            return Text(words, "cyan")

    console = Console(file=stream)
    if console.is_dumb_terminal:
        return None
    return Bars(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        Speed(),
        TimeRemainingColumn(compact=True),
        TextColumn("[dim]{task.fields[told]}"),
        console=console,
        auto_refresh=False,
    )

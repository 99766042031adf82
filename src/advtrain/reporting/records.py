"""What is known of a run directory, as values; None and "" stand for what was not told."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Stage:
    """One attack of a row that is several: `accuracy` of all examples after it, `n` attacked."""

    name: str
    accuracy: float
    n: int | None = None
    forward_passes: int | None = None
    backward_passes: int | None = None
    seconds: float | None = None


@dataclass(frozen=True)
class Draws:
    """Accuracies of `n` single draws of a stochastic network: their mean and standard deviation."""

    n: int
    mean: float
    sd: float | None = None


@dataclass(frozen=True)
class Row:
    """One accuracy, a fraction of `n` examples.

    `standing` has one character per example, 1 where it is right without and with the attack;
    empty where the file does not say so, or contradicts the accuracy. `configuration` is a name for
    all arguments of the attack: equal names, equal attacks. `through`: the view whose gradients it
    follows, if another than `view`. `draws`: what single draws say of the same proposals.
    """

    name: str
    view: str
    accuracy: float
    n: int | None = None
    low: float | None = None
    high: float | None = None
    norm: str | None = None
    eps: float | None = None
    steps: int | None = None
    restarts: int | None = None
    version: str = ""
    queries: int | None = None
    forward_passes: int | None = None
    backward_passes: int | None = None
    seconds: float | None = None
    attack: str = ""
    step_size: float | None = None
    keep: str = ""
    loss: str = ""
    objective: str = ""
    start: str = ""
    configuration: str = ""
    selected_on: str = ""
    stages: tuple[Stage, ...] = ()
    standing: str = ""
    through: str = ""
    draws: Draws | None = None


@dataclass(frozen=True)
class Certified:
    """What smoothing certified; `at_radius` maps a radius to the accuracy proven there."""

    accuracy: float | None
    acr: float | None
    at_radius: dict[float, float]
    sigma: float | None = None
    n0: int | None = None
    n: int | None = None
    alpha: float | None = None
    examples: int | None = None
    abstain: float | None = None


@dataclass(frozen=True)
class Note:
    """A warning: what raised it, the row and view that it concerns (or None), what it says."""

    check: str
    row: str | None
    message: str
    view: str | None = None


@dataclass(frozen=True)
class Run:
    """One run directory. `state` is done, running, failed, interrupted, invalid or unreadable.

    `examples` names the examples of the evaluation: equal names, equal examples.
    """

    directory: Path
    name: str
    state: str
    error: str = ""
    seed: int | None = None
    dataset: str = ""
    split: str = ""
    examples: str = ""
    model: str = ""
    parameters: int | None = None
    defense: str = ""
    norm: str = ""
    eps: float | None = None
    checkpoint: str = ""
    selected_on: str = ""
    rows: tuple[Row, ...] = ()
    worst_case: dict[str, float] = field(default_factory=dict)
    worst_by_view: dict[str, dict[str, float]] = field(default_factory=dict)
    certified: Certified | None = None
    notes: tuple[Note, ...] = ()
    published: dict[str, float] = field(default_factory=dict)
    choices: dict[str, str] = field(default_factory=dict)
    overrides: tuple[str, ...] = ()
    config: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    seconds: float | None = None

    @property
    def views(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(row.view for row in self.rows))

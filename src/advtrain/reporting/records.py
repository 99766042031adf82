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
    `confusion`: examples by class (rows) and answer (columns), square; empty if not told.
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
    confusion: tuple[tuple[int, ...], ...] = ()


@dataclass(frozen=True)
class Broken:
    """An example that an attack broke inside its certified radius.

    `answer`: what the smoothed classifier returns at `distance`, where `predict` was certified.
    """

    index: int | None = None
    label: int | None = None
    predict: int | None = None
    radius: float | None = None
    distance: float | None = None
    answer: int | None = None
    p_value: float | None = None


@dataclass(frozen=True)
class Soundness:
    """`examples` certificates were attacked by `attack`, each inside its radius."""

    attack: str
    examples: int | None
    broken: tuple[Broken, ...] = ()


@dataclass(frozen=True)
class Certified:
    """What smoothing certified; `at_radius` maps a radius to the accuracy proven there.

    `high` maps radii to what of it holds with high probability. `asked`: the radii that were asked
    for, where draws ended as soon as that was answered; `draws`, how many it took on average.
    """

    accuracy: float | None
    acr: float | None
    at_radius: dict[float, float]
    sigma: float | None = None
    n0: int | None = None
    n: int | None = None
    alpha: float | None = None
    examples: int | None = None
    abstain: float | None = None
    norm: str = "l2"
    noise: str = "gaussian"
    precision: str = "fp32"
    view: str = "identity"
    asked: tuple[float, ...] = ()
    draws: float | None = None
    high: dict[float, float] = field(default_factory=dict)
    soundness: Soundness | None = None


@dataclass(frozen=True)
class Exact:
    """What is true of a linear model without any noise: accuracy by radius, and its ACR."""

    norm: str
    at_radius: dict[float, float]
    accuracy: float | None = None
    acr: float | None = None


@dataclass(frozen=True)
class Answers:
    """PREDICT with `n` draws: fractions of examples in the five categories."""

    n: int
    correct_accurate: float
    correct_inaccurate: float
    incorrect_accurate: float
    incorrect_inaccurate: float
    abstain: float
    seconds: float | None = None


@dataclass(frozen=True)
class Study:
    """PREDICT for several n; accurate is what agrees with the top class of `gold_draws`."""

    sigma: float | None
    alpha: float | None
    gold_draws: int | None
    examples: int | None
    rows: tuple[Answers, ...]
    view: str = "identity"


@dataclass(frozen=True)
class Note:
    """A warning: what raised it, the row and view that it concerns (or None), what it says."""

    check: str
    row: str | None
    message: str
    view: str | None = None


@dataclass(frozen=True)
class Paper:
    """What the configuration of a run says of the paper whose figures stand beside its own.

    `setting`: choices, or values at dotted keys, that the figures are of. `given`: keys that the
    command line may set without leaving it. `remarks`: sentences by measure, or by `table`, of all
    its rows, and `row`.
    """

    source: str = ""
    setting: dict[str, str] = field(default_factory=dict)
    given: tuple[str, ...] = ()
    remarks: dict[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Run:
    """One run directory. `state` is done, running, failed, interrupted, invalid or unreadable.

    `examples` names the examples of the evaluation: equal names, equal examples. `overrides` are
    bounded lines, `arguments` those of the command to the letter; None: not known, or not to be
    shown whole.
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
    train_acc: float | None = None
    train_images: int | None = None
    rows: tuple[Row, ...] = ()
    worst_case: dict[str, float] = field(default_factory=dict)
    worst_by_view: dict[str, dict[str, float]] = field(default_factory=dict)
    certified: Certified | None = None
    study: Study | None = None
    exact: tuple[Exact, ...] = ()
    notes: tuple[Note, ...] = ()
    published: dict[str, float] = field(default_factory=dict)
    paper: Paper = Paper()
    choices: dict[str, str] = field(default_factory=dict)
    overrides: tuple[str, ...] = ()
    arguments: tuple[str, ...] | None = None
    config: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    seconds: float | None = None

    @property
    def views(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(row.view for row in self.rows))

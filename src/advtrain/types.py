"""The vocabulary: the roles that the parts of the project play for each other.

Shapes: B images in a batch, C channels, H by W pixels, K classes. Images lie in [0, 1].
Everything here is a protocol or a frozen value; no role has code of its own.
"""

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

from torch import Tensor, nn
from torch.optim import Optimizer

Classifier = Callable[[Tensor], Tensor]
"""Images in [0, 1], shape (B, C, H, W) or (B, D), to logits, shape (B, K)."""

Logs = dict[str, Tensor]
"""Detached scalars that a loss reports; read by the tracker, never in the step."""

View = Callable[[nn.Module], nn.Module]
"""A network to a plain classifier of images with that network inside."""

Gain = Callable[[Tensor], Tensor]
"""Perturbed images to the quantity that an attack ascends, one per example, shape (B,)."""


class Threat(Protocol):
    """A set of perturbations around an image; it owns the geometry of its norm."""

    @property
    def eps(self) -> float:
        """Radius, in pixel units of [0, 1]."""

    @property
    def norm(self) -> str:
        """The name of the norm: `linf`, `l2` or `l1`."""

    @property
    def low(self) -> float:
        """The least value of a pixel; -inf without a box."""

    @property
    def high(self) -> float:
        """The largest value of a pixel."""

    def project(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """A point of the ball around `x` and of the box; points of both sets stay."""

    def around(self, x: Tensor) -> Callable[[Tensor], Tensor]:
        """`project` with its centre bound, so that a loop computes bounds once."""

    def steepest(self, gradient: Tensor) -> Tensor:
        """The direction of unit norm along which `gradient` rises fastest; 0 where it is 0."""

    def sample(self, x: Tensor, generator: Any = None) -> Tensor:
        """Uniform in the ball around `x`, then clipped to the box."""

    def distance(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """The norm of `x_adv - x` per example, shape (B,)."""

    def reach(self, x: Tensor, w: Tensor, gap: Tensor) -> Tensor:
        """The nearest point to `x` in the box at which <w, .> has grown by `gap`, (N,)."""

    def support(self, w: Tensor) -> Tensor:
        """max of <w, d> over the ball, per row of `w` (N, D): eps times the dual norm, (N,)."""


class Objective(Protocol):
    """Binds a classifier and a batch to the gain that an attack ascends."""

    def __call__(self, model: Classifier, x: Tensor, y: Tensor) -> Gain: ...


class Start(Protocol):
    """Chooses the point from which an attack sets out."""

    def __call__(self, x: Tensor, threat: Threat, generator: Any = None) -> Tensor: ...


class Attack(Protocol):
    """`(model, x, y) -> x_adv`, configuration bound: pure, detached, in the set and the box.

    Keeps the batch whole and in order. Touches neither modes nor `requires_grad` nor `.grad`.
    Guided attacks also accept `objective=` and `start=` at the call.
    """

    def __call__(self, model: Classifier, x: Tensor, y: Tensor, **overrides: Any) -> Tensor: ...


@runtime_checkable
class Rotation(Protocol):
    """Several attacks, of which training uses one at a time."""

    def at(self, now: "Moment") -> Attack:
        """The attack of this moment."""

    def members(self) -> tuple[Attack, ...]:
        """All of them."""


TrainingAttack = Attack | Rotation
"""What a defense crafts with."""


@runtime_checkable
class Combination(Protocol):
    """An attack that is several: each runs on the examples that those before it left standing."""

    @property
    def threat(self) -> Threat:
        """The set that all of them search."""

    def members(self, classes: int) -> Mapping[str, Attack]:
        """The attacks in their order, against a model of so many classes."""


@runtime_checkable
class Corruption(Protocol):
    """A change of images that nobody chooses against the network, such as noise; also an Attack.

    It knows neither set nor box, and is judged by the accuracy on the changed images alone: an
    example that is wrong as it is may be right with it.
    """

    def corrupted(self, x: Tensor) -> Tensor:
        """The changed images."""


@dataclass(frozen=True)
class Moment:
    """All that a method may know about time: the same for every run of the same length.

    step: weight updates so far. epoch: fractional, from 0. progress: in [0, 1), share of the run.
    last: the logs of the step before, tensors on the device; empty at the first step. batch: the
    index of this batch in its epoch, from 0.
    """

    step: int
    epoch: float
    progress: float
    last: Mapping[str, Tensor] = field(default_factory=dict)
    batch: int = 0


Schedule = Callable[[Moment], float]
"""A pure function of the moment; for rates, radii and weights of terms. Keeps no state."""


class Defense(Protocol):
    """What a training method builds from a batch, and what it minimises on that.

    `loss` is a function of the weights alone, given the parcel: it may be evaluated any number
    of times (weight perturbation does), so it runs no attack, draws no data, steps nothing.
    """

    craft_mode: Literal["eval", "train"]  # the mode of the model while crafting
    judged_by: str  # the validation metric that chooses the best checkpoint

    @property
    def views(self) -> Mapping[str, View]:
        """What the network is validated through, the metrics being the means; empty: itself."""

    def requires(self, model: nn.Module) -> None:
        """Raise ValueError if `model` cannot be trained so; asked once, before the first step."""

    def checks(self) -> Mapping[str, Attack]:
        """What else validation images are put through, by the metric that it gives."""

    def craft(self, model: nn.Module, x: Tensor, y: Tensor, now: Moment) -> Any:
        """Build from the batch what is then held fixed: the parcel. Weights are frozen here."""

    def loss(self, model: nn.Module, parcel: Any) -> tuple[Tensor, Logs]:
        """The scalar to minimise on the parcel, and detached scalars to report."""

    def attacked(self, model: nn.Module) -> nn.Module:
        """What the attack of a validation works on, for verdicts on `model`: itself, or a copy."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


Penalty = Callable[[nn.Module], Tensor]
"""A scalar term in the weights of a model, added to the loss of any defense."""


@runtime_checkable
class Watching(Protocol):
    """A penalty that also depends on what layers see: it is called inside of its own block."""

    def watching(self, model: nn.Module) -> AbstractContextManager[None]:
        """Around the passes of a loss. ValueError: there is nothing to watch in `model`."""

    def __call__(self, model: nn.Module) -> Tensor: ...


Evaluate = Callable[[], tuple[Tensor, Logs]]
"""Loss and logs at the current weights, on the parcel of this step."""


class Descent(Protocol):
    """How a loss becomes a change of weights; may call `evaluate` more than once, steps once."""

    def __call__(
        self, model: nn.Module, optimizer: Optimizer, evaluate: Evaluate, now: Moment
    ) -> tuple[Tensor, Logs]: ...


class Average(Protocol):
    """Which weights are judged."""

    @property
    def model(self) -> nn.Module:
        """The network to evaluate; with no averaging, the trained network itself."""

    def update(self, model: nn.Module) -> None:
        """Take in the weights after one optimizer step."""

    def prepare(self, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Before an evaluation; `batches` are training images, for running statistics."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...

"""The training loop: craft, loss, descent, average, in a line; it knows no method by name.

Every draw of a step comes from the stream (seed, step), so a run that was interrupted anywhere
goes on as if it had not been: bit for bit where the device computes the same twice, as CPUs do.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from advtrain.exchange import averaged, follow, follow_buffers, of_all
from advtrain.freezing import Freezing
from advtrain.modes import crafting, frozen_statistics
from advtrain.portions import TooLarge, out_of_memory
from advtrain.sharing import sharing, weight
from advtrain.strided import sooner
from advtrain.types import (
    Average,
    Defense,
    Descent,
    Evaluate,
    Logs,
    Moment,
    Penalty,
    Schedule,
    Watching,
)
from advtrain.world import here

ADVICE = (
    "Checkpoints of earlier epochs are kept; a smaller optimizer.lr or descent.clip_norm usually "
    "helps."
)

DRIFT = 1e-4  # of their length that weights of processes differ by after an epoch of rounding


class TrainingFailed(RuntimeError):
    """Training cannot go on; the message says at which step and why."""


class TrainingRefused(ValueError):
    """The method cannot train this network on this data; the message says what does not fit."""


class Minibatches(Protocol):
    """What the loop needs of a loader; `skip` counts steps."""

    def __len__(self) -> int: ...

    def images(self, step: int) -> int:
        """Images of the minibatch at `step` of an epoch, those of all processes."""

    def epoch(self, index: int, skip: int = 0) -> Iterator[tuple[Tensor, Tensor]]: ...


@dataclass
class Meter:
    """Running means over the examples of an epoch, kept on the device; nothing is read here."""

    sums: dict[str, Tensor] = field(default_factory=dict)
    examples: int = 0
    seconds: float = 0.0

    def add(self, logs: Mapping[str, Tensor], examples: int) -> None:
        for name, value in logs.items():
            term = value.detach().float() * examples
            self.sums[name] = self.sums[name] + term if name in self.sums else term
        self.examples += examples

    def means(self) -> dict[str, float]:
        return {name: float(total) / self.examples for name, total in self.sums.items()}


@dataclass
class TrainState:
    """Everything that training changes. `last`: the logs of the step before."""

    model: nn.Module
    optimizer: Optimizer
    average: Average
    defense: Defense
    step: int = 0
    last: Logs = field(default_factory=dict)
    meter: Meter = field(default_factory=Meter)

    def state_dict(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average.state_dict(),
            "defense": self.defense.state_dict(),
            "step": self.step,
            "last": dict(self.last),
            "meter": vars(self.meter).copy(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.average.load_state_dict(state["average"])
        self.defense.load_state_dict(state["defense"])
        self.step = state["step"]
        self.last = dict(state["last"])
        self.meter = Meter(**state["meter"])


@dataclass(frozen=True)
class Method:
    """How this run trains, apart from its defense: fixed for the whole run."""

    descent: Descent
    penalties: Mapping[str, Penalty]
    rates: Mapping[str, Schedule]
    seed: int
    freezing: Freezing | None = None


def total_loss(
    model: nn.Module, defense: Defense, penalties: Mapping[str, Penalty], parcel: Any
) -> tuple[Tensor, Logs]:
    if not penalties:
        return defense.loss(model, parcel)
    with ExitStack() as stack:
        for penalty in penalties.values():
            if isinstance(penalty, Watching):
                stack.enter_context(penalty.watching(model))
        loss, logs = defense.loss(model, parcel)
        with frozen_statistics(model):  # norms followed by the power method stay where they are
            terms = {name: penalty(model) for name, penalty in penalties.items()}
    loss = sum(terms.values(), start=loss)
    return loss, {**logs, **{name: term.detach() for name, term in terms.items()}}


def weighed(evaluate: Evaluate, part: float) -> tuple[Tensor, Logs]:
    """The loss times `part`: those of all processes add up to that of the whole minibatch."""
    loss, logs = evaluate()
    return part * loss, logs


def train_step(state: TrainState, x: Tensor, y: Tensor, now: Moment, method: Method) -> Logs:
    """One update of the weights from the images `x` (B, C, H, W) and labels `y` (B,)."""
    rates = {name: schedule(now) for name, schedule in method.rates.items()}
    for group in state.optimizer.param_groups:  # every group: a drop must reach norms and biases
        group.update(rates)
        if "lr" in rates:
            group["lr"] *= group.get("factor", 1.0)  # of `optimizer.rates`
    with crafting(state.model, state.defense.craft_mode):
        parcel = state.defense.craft(state.model, x, y, now)
    evaluate = partial(total_loss, state.model, state.defense, method.penalties, parcel)
    part = weight()
    if part < 1:
        evaluate = partial(weighed, evaluate, part)
    loss, logs = method.descent(state.model, state.optimizer, evaluate, now)
    follow_buffers(state.model)
    state.average.update(state.model)
    state.step += 1
    return averaged({"loss": loss.detach() / part, **logs}, part)


def epochs(
    state: TrainState,
    batches: Minibatches,
    method: Method,
    *,
    total: int,
    stop: Callable[[], None],
    watch: Callable[[Logs, int], None],
    check_every: int,
) -> Iterator[dict[str, float]]:
    """Train from where `state` stands to the end of epoch `total`; yields after each epoch.

    The report holds `epoch` (1 for the first), the means of the logs as `train_*`, `lr`, `seconds`
    and `examples_per_second`. `stop` is called between steps and may raise; the state is then
    complete and may be saved. Raises TrainingFailed when a loss is not finite: losses are looked
    at every `check_every` steps, so that the host need not wait for the device at each;
    TrainingRefused where a part of the method raises ValueError;
    TooLarge where memory does not hold a step.
    """
    steps = len(batches)
    unchecked: dict[int, Tensor] = {}
    while state.step < total * steps:
        index, done = divmod(state.step, steps)
        if done == 0:
            state.meter = Meter()
        if method.freezing is not None:
            method.freezing.at(index)
        state.model.train()
        started = time.perf_counter()
        with sooner(state.model):
            for x, y in batches.epoch(index, skip=done):
                stop()
                now = Moment(
                    step=state.step,
                    epoch=state.step / steps,
                    progress=state.step / (total * steps),
                    last=dict(state.last),
                    batch=state.step - index * steps,
                )
                images = batches.images(now.batch) if here().size > 1 else len(y)
                try:
                    with sharing(images, x.device, method.seed, "step", state.step):
                        state.last = train_step(state, x, y, now, method)
                except ValueError as error:
                    raise TrainingRefused(str(error)) from error
                except Exception as error:
                    if not out_of_memory(error):
                        raise
                    raise TooLarge(
                        f"a training step of {len(x)} images is too large for the memory of "
                        f"{x.device}. Use a smaller batch_size, batch_size=auto, or precision=bf16."
                    ) from error
                state.meter.add(state.last, images)
                unchecked[state.step] = state.last["loss"]
                watch(state.last, images)
                if state.step % check_every == 0:
                    require_finite(unchecked)
        require_finite(unchecked)  # waits for the device, so the time below is that of the work
        state.meter.seconds += time.perf_counter() - started
        yield _report(state, index + 1)


def require_finite(losses: dict[int, Tensor]) -> None:
    """Raise TrainingFailed at the first step whose loss is NaN or infinite; forget the rest."""
    if losses:
        finite = torch.isfinite(torch.stack(list(losses.values()))).tolist()
        for (step, loss), good in zip(losses.items(), finite, strict=True):
            if not good:
                raise TrainingFailed(f"the loss is {float(loss)} at step {step}. {ADVICE}")
        losses.clear()


@torch.no_grad()
def require_finite_weights(state: TrainState) -> None:
    """Raise TrainingFailed if weights, trained or judged, are not finite: not to be saved."""
    tensors = [*state.model.state_dict().values(), *state.average.model.state_dict().values()]
    finite = [torch.isfinite(tensor).all() for tensor in tensors if tensor.is_floating_point()]
    if not bool(torch.stack(finite).all()):
        raise TrainingFailed(f"weights are not finite after step {state.step}. {ADVICE}")


@torch.no_grad()
def require_same_weights(state: TrainState) -> None:
    """Give all processes the leader's weights, their averages and the optimizer's moments, which
    theirs are but for rounding.

    TrainingFailed: they are others, as a descent makes them that follows gradients of its own.
    """
    if here().size == 1:
        return
    networks = {id(each): each for each in (state.model, state.average.model)}.values()
    mine = [each for network in networks for each in network.parameters()]
    before = [each.clone() for each in mine]
    follow(mine)
    apart = torch.stack([(a - b).float().norm() for a, b in zip(before, mine, strict=True)]).norm()
    length = torch.stack([each.float().norm() for each in mine]).norm()
    follow(_moments(state.optimizer))
    drift = max(of_all(lambda: float(apart / length)))
    if drift > DRIFT:
        raise TrainingFailed(
            f"the weights of the processes differ by {drift:.1g} of their length after step "
            f"{state.step}: a descent must sum gradients, by exchange.sum_gradients."
        )


def _moments(optimizer: Optimizer) -> list[Tensor]:
    kept = (each for known in optimizer.state.values() for each in known.values())
    return [each for each in kept if isinstance(each, Tensor) and each.is_floating_point()]


def _report(state: TrainState, epoch: int) -> dict[str, float]:
    means = {f"train_{name}": value for name, value in state.meter.means().items()}
    seconds = state.meter.seconds
    group = state.optimizer.param_groups[0]
    rate = group["lr"] / group.get("factor", 1.0)
    return {
        "epoch": epoch,
        **means,
        "lr": rate,
        "seconds": seconds,
        "examples_per_second": state.meter.examples / max(seconds, 1e-9),
    }

"""What a network's outputs show on a few images: signs that it is no plain function of an image.

AutoAttack looks for these (Croce and Hein 2020, https://arxiv.org/abs/2003.01690, and the flags of
their code): probabilities in place of logits, random draws, derivatives inside; and Pintor et al.
2022 (https://arxiv.org/abs/2106.09947) for gradients that are missing. Beside them: an answer that
hangs on the mode or on the rest of the batch. A network that raises an error is told in a sentence.

Differs: AutoAttack finds derivatives inside by tracing the names of functions, here by the tensors
that a backward pass takes up; and draws also by the generator they move, however small they are.
"""

import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from advtrain.chance import by_luck, expected
from advtrain.portions import TooLarge, out_of_memory
from advtrain.types import Classifier

DRAWS = 20  # whose worst shows what choosing among the steps of an attack gains by itself
ROUNDING = 1e-3  # of the length of the logits, far above what kernels differ by
APART = 1e-4  # AutoAttack's bound on the distance of two outputs of length 1
WITHIN = {
    "torch.autograd": "the model fails in a backward pass",
    "torch.nn.modules.module": "a network that the attack brings fails in a forward pass",
}
"""What an error comes from that has passed through a module of torch."""


class ModelFailed(ValueError):
    """A network raised an error; the message says in which pass, on what images, and which."""


@contextmanager
def asking(x: Tensor) -> Iterator[None]:
    """Whatever the network raises when it is asked about `x` inside becomes ModelFailed.

    But what is about memory.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, TooLarge) or out_of_memory(error):
            raise
        how = "with" if torch.is_grad_enabled() else "without"
        raise _failed(f"the model fails in a forward pass {how} gradients", x, error) from error


@contextmanager
def attacking(x: Tensor) -> Iterator[None]:
    """Errors of backward passes inside, and of networks that are not `asked`, become ModelFailed.

    `x`: the images that are attacked. Other errors, which networks have no part in, pass, and so
    do those about memory.
    """
    try:
        yield
    except (ModelFailed, TooLarge):
        raise
    except Exception as error:
        if out_of_memory(error):
            raise
        frames = (frame for frame, _ in traceback.walk_tb(error.__traceback__))
        names = (frame.f_globals.get("__name__") for frame in frames)
        what = next((WITHIN[name] for name in names if name in WITHIN), None)
        if what is None:
            raise
        raise _failed(what, x, error) from error


def asked(model: Classifier, x: Tensor) -> Tensor:
    """`model(x)`. ModelFailed: it raised an error."""
    with asking(x):
        return model(x)


def _failed(what: str, x: Tensor, error: Exception) -> ModelFailed:
    first = next(iter(str(error).splitlines()), "")
    return ModelFailed(
        f"{what} on images of shape {tuple(x.shape)}: {type(error).__name__}: {first}"
    )


@dataclass(frozen=True)
class Answers:
    """Logits (N, K) of the same images, and what happened while they were computed.

    logits, again: three times the same way, without gradients. attached: with gradients on.
    differentiable: the latter carried a graph. drawn: random numbers of the global generator were
    used. moved: buffers that changed. differentiates: the network itself took derivatives.
    """

    model: nn.Module
    x: Tensor
    y: Tensor
    classes: int
    logits: Tensor
    again: tuple[Tensor, Tensor]
    attached: Tensor
    differentiable: bool
    drawn: bool
    moved: tuple[str, ...]
    differentiates: bool


def ask(model: nn.Module, x: Tensor, y: Tensor, classes: int) -> Answers:
    """Four forward passes. ValueError for logits that are not (N, K), not finite, too few.

    ModelFailed: the network raised an error.
    """
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    states = generators(x)
    with torch.no_grad():
        logits = asked(model, x)
        require_logits(logits, x, classes)
        again = asked(model, x), asked(model, x)
    with asking(x):
        attached, differentiates = watched(model, x)
    drawn = any(not torch.equal(*pair) for pair in zip(states, generators(x), strict=True))
    after = dict(model.named_buffers())
    moved = tuple(name for name, value in buffers.items() if not torch.equal(value, after[name]))
    return Answers(
        model=model,
        x=x,
        y=y,
        classes=classes,
        logits=logits,
        again=again,
        attached=attached.detach(),
        differentiable=attached.requires_grad,
        drawn=drawn,
        moved=moved,
        differentiates=differentiates,
    )


def require_logits(logits: object, x: Tensor, classes: int) -> None:
    """Raise ValueError where no attack could say anything about a model of these logits."""
    shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(x):
        raise ValueError(
            f"the model returns {shape} for {len(x)} images; an evaluation needs logits of shape "
            f"({len(x)}, {classes}). Wrap the model so that it returns these alone."
        )
    if logits.shape[1] < classes:
        raise ValueError(
            f"the model returns {logits.shape[1]} logits, and the data have {classes} classes. "
            "Use the data that it was trained on, or a model with a logit for each class."
        )
    broken = int((~torch.isfinite(logits).all(1)).sum())
    if broken:
        raise ValueError(
            f"the logits of {broken} of {len(x)} images are not finite without any attack; no "
            "robust accuracy would mean anything. Look at the weights and at the normalisation."
        )


def watched(model: nn.Module, x: Tensor) -> tuple[Tensor, bool]:
    """Logits with gradients on, and whether a derivative was taken on the way to them."""
    taken: list[bool] = []

    def unpack(saved: Tensor) -> Tensor:
        taken.append(True)
        return saved

    leaf = x.detach().requires_grad_()
    try:
        with saved_tensors_hooks(lambda saved: saved, unpack):
            logits: Tensor = model(leaf)
    except RuntimeError as error:
        if "saved tensor hooks" not in str(error):  # torch.func takes none, and says so
            raise
        return model(leaf), True
    return logits, bool(taken)


def generators(x: Tensor) -> list[Tensor]:
    """The states of the global generators that a network on the device of `x` may draw from."""
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state(x.device)] if x.is_cuda else [])]


def signs(seen: Answers) -> Iterator[tuple[str, str]]:
    """Names of the checks that find something, and what each says."""
    for name, check in CHECKS.items():
        message = check(seen)
        if message is not None:
            yield name, message


def chance(seen: Answers) -> str | None:
    n, answers = len(seen.y), seen.logits.argmax(1)
    if not by_luck(answers, seen.y):
        return None
    right, lucky = int((answers == seen.y).sum()), expected(answers, seen.y)
    said = (
        f"The network answers class {int(answers[0])} to all {n} images: it has learned nothing"
        if bool((answers == answers[0]).all())
        else f"{right} of {n} images are right, and {lucky:.0f} would be with its answers "
        "shuffled: no sign that it has learned anything"
    )
    return (
        f"{said}. What its rows leave standing is luck, and no robustness; whether gradients are "
        "masked cannot be told. Look at data, normalisation and training."
    )


def surplus(seen: Answers) -> str | None:
    width = seen.logits.shape[1]
    if width == seen.classes:
        return None
    return (
        f"The model returns {width} logits, and the data have {seen.classes} classes: attacks may "
        "aim at classes that are no answer. Cut the last layer down to the classes."
    )


def no_gradient(seen: Answers) -> str | None:
    if seen.differentiable:
        return None
    return (
        "The logits carry no gradient to the images, so attacks by gradients cannot run. Evaluate "
        "a version that detaches and converts nothing, or judge by square."
    )


def probabilities(seen: Answers) -> str | None:
    logits = seen.logits
    sums = (logits.sum(1) - 1).abs()
    if logits.max() > 1 + 1e-5 or logits.min() < -1e-5 or sums.max() > 1e-5:
        return None
    return (
        f"The outputs for {len(logits)} images lie in [0, 1] and sum to 1: they are probabilities, "
        "on which a second softmax flattens what attacks ascend. Return logits."
    )


def stochastic(seen: Answers) -> str | None:
    draws = (seen.logits, *seen.again)
    differs = max(float((unit(draw) - unit(draws[0])).norm(dim=1).max()) for draw in draws[1:])
    right = [draw.argmax(1) == seen.y for draw in draws]
    alike = all(torch.equal(draw, draws[0]) for draw in draws[1:])
    same = len({int(hits.sum()) for hits in right}) == 1
    if alike or (not seen.drawn and same and differs <= APART):
        return None
    with torch.no_grad():
        right += [asked(seen.model, seen.x).argmax(1) == seen.y for _ in range(DRAWS - len(draws))]
    hits = torch.stack(right).float()
    mean, worst = 100 * float(hits.mean()), 100 * float(hits.amin(0).mean())
    return (
        f"Answers for the same {len(seen.y)} images differ by up to {differs:.1g} of their length. "
        f"One draw is right on {mean:.1f} %, all of {DRAWS} draws on {worst:.1f} %: without any "
        f"attack, choosing the worst of {DRAWS} looks costs {mean - worst:.1f} points. Average "
        "gradients over draws, judge by fresh draws, and attack the network with its noise fixed."
    )


def batch_dependent(seen: Answers) -> str | None:
    n = len(seen.x)
    if n < 2 or not steady(seen):
        return None
    with torch.no_grad():
        parts = [asked(seen.model, part) for part in seen.x.flip(0).split((n + 1) // 2)]
    differs = distance(torch.cat(parts).flip(0), seen.logits)
    if differs <= ROUNDING:
        return None
    return (
        f"Logits of the same {n} images differ by {differs:.1g} of their length when the batch is "
        "halved and reversed: an answer hangs on the other images. Normalise with running "
        "statistics."
    )


def mode_dependent(seen: Answers) -> str | None:
    parts = dict(seen.model.named_modules())
    training = [name or "the model itself" for name, part in parts.items() if part.training]
    if training:
        return (
            f"{len(training)} of {len(parts)} modules are in training mode during an evaluation, "
            f"{training[0]} first. Call eval(), and let train(False) reach every module."
        )
    if seen.moved:
        return (
            f"A forward pass in evaluation mode changes {len(seen.moved)} buffers, "
            f"{seen.moved[0]} first: an answer hangs on what was asked before. Let buffers move "
            "in training mode only."
        )
    differs = distance(seen.attached, seen.logits)
    if differs <= ROUNDING or not steady(seen):
        return None
    return (
        f"Logits of the same {len(seen.x)} images differ by {differs:.1g} of their length with "
        "gradients on and off: attacks see another network than the one that is judged. Compute "
        "the same in both."
    )


def dynamic(seen: Answers) -> str | None:
    if not seen.differentiates:
        return None
    return (
        "The model takes derivatives inside its forward pass, as defenses do that optimise at test "
        "time: gradients through that are wrong or missing. Attack it end to end, and judge by "
        "square and transfer."
    )


CHECKS: Mapping[str, Callable[[Answers], str | None]] = {
    "chance": chance,
    "classes": surplus,
    "no_gradient": no_gradient,
    "probabilities": probabilities,
    "stochastic": stochastic,
    "batch_dependent": batch_dependent,
    "mode_dependent": mode_dependent,
    "dynamic": dynamic,
}


def steady(seen: Answers) -> bool:
    """Whether the same question had the same answer, up to rounding."""
    return all(distance(draw, seen.logits) <= ROUNDING / 10 for draw in seen.again)


def distance(first: Tensor, second: Tensor) -> float:
    """The largest distance of two rows of the same place, over the mean length of a row."""
    return float((first - second).norm(dim=1).max() / second.norm(dim=1).mean().clamp_min(1e-30))


def unit(logits: Tensor) -> Tensor:
    return logits / logits.norm(dim=1, keepdim=True).clamp_min(1e-10)

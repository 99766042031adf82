"""What an evaluation proves, beside its rows: exact distances, the PREDICT study, certificates."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from advtrain import affine
from advtrain.certification.linear import Distances, distances, summary
from advtrain.modes import crafting
from advtrain.plans import Evaluation
from advtrain.precision import full_precision
from advtrain.rooms import Rooms
from advtrain.run_certification import certify
from advtrain.run_prediction import study
from advtrain.run_soundness import soundness
from advtrain.runs import Setting

ABSENT: Mapping[str, Any] = {"exact": None, "predict_study": None, "certified": None}
"""The entries of results.json of an evaluation that asks for none of them."""


def guarantees(
    model: nn.Module,
    setting: Setting,
    plan: Evaluation,
    seen: str,
    stop: Callable[[], None],
    rooms: Rooms,
) -> Iterator[dict[str, Any]]:
    """Entries of results.json, each as soon as it is known, of `model`: the first view.

    `seen` names network and examples; `rooms`: for how many images there is memory.
    """
    view = next(iter(plan.views))
    if plan.exact is not None:
        yield {"exact": exact(model, setting, plan)}
    if plan.predict is not None:
        studied = study(model, setting, plan.predict, seen, stop, rooms.noise)
        yield {"predict_study": {"view": view, **studied}}
    if plan.certify is not None:
        found = certify(model, setting, plan.certify, seen, stop, rooms.noise)
        certified = {"view": view, **found, "soundness": None}
        yield {"certified": certified}
        if plan.certify.attack is not None:
            attacked = soundness(model, setting, plan.certify, seen, stop, rooms)
            yield {"certified": {**certified, "soundness": attacked}}


def require_provable(model: nn.Module, setting: Setting, plan: Evaluation) -> None:
    """ValueError: the plan asks for exact distances of a model that is not linear."""
    if plan.exact is not None:
        linear(model, setting, plan)


def linear(model: nn.Module, setting: Setting, plan: Evaluation) -> affine.Affine:
    """Weights and constants of a linear model. ValueError: it is none on the first batch."""
    first = slice(0, min(len(setting.data.test), plan.at_once))
    with full_precision(model), crafting(model, "eval"):
        return affine.read(model, setting.data.test.batch(first)[0])


def exact(model: nn.Module, setting: Setting, plan: Evaluation) -> dict[str, Any]:
    """Exact certificates of a linear model, in the norms and at the radii of `plan.exact`."""
    assert plan.exact is not None
    examples, known = setting.data.test, linear(model, setting, plan)
    size = min(len(examples), plan.size or len(examples))

    def judged(norm: str) -> Iterator[tuple[Distances, Tensor]]:
        for start in range(0, size, plan.at_once):
            x, y = examples.batch(slice(start, min(start + plan.at_once, size)))
            yield distances(known, x, norm), y

    return {norm: dict(summary(judged(norm), radii)) for norm, radii in plan.exact.items()}

"""What attacks ascend: `(model, x, y) -> gain`, and `gain(x_adv)` of shape (B,), to be summed.

Binding comes first, so that what depends on the clean images is computed once. A gain calls the
model on its argument last; whether a point fools the model is read from those logits.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from advtrain import functional
from advtrain.ranges import Count, NonNegative, Range, require
from advtrain.types import Classifier, Gain, Objective


def cross_entropy(model: Classifier, x: Tensor, y: Tensor) -> Gain:
    """The loss of the label. Targeted: raises the probability of the label."""
    return lambda x_adv: functional.cross_entropy(model(x_adv), y)


def margin(model: Classifier, x: Tensor, y: Tensor) -> Gain:
    """The best other logit less that of the label, as Carlini and Wagner; it never saturates.

    Targeted: lifts the label over the best other class, and further once it has won.
    """
    return lambda x_adv: functional.margin(model(x_adv), y)


def dlr(model: Classifier, x: Tensor, y: Tensor) -> Gain:
    """The margin at a scale of its own, so that a temperature changes nothing. Three classes.

    No targeted form: descending may as well widen the scale as lift the label, and reaches a fifth
    of what margin does. (AutoAttack's targeted loss is another, with the true class in it.)
    """
    return lambda x_adv: functional.dlr(model(x_adv), y)


def kl_to_clean(model: Classifier, x: Tensor, y: Tensor) -> Gain:
    """KL(p(x) || p(x_adv)), the inner maximum of TRADES; ignores y, hence has no targeted form.

    The gradient is 0 at the clean image: start elsewhere.
    """
    with torch.no_grad():
        clean = model(x)
    return lambda x_adv: functional.kl(clean, model(x_adv))


def guided(*, distance: Callable[[Tensor], Tensor], weight: NonNegative) -> Objective:
    """Cross-entropy, and how far the logits Z of the batch are from the clean ones (NuAT).

    Sriramanan et al. 2021, https://openreview.net/forum?id=kuK2VARZGnI: the gains sum to that of
    the batch, sum_i CE_i + weight * distance(Z(x_adv) - Z(x)), by an equal share for each example.
    `distance` is one of `norms`; it couples the batch: results depend on who else is in it, and no
    example may be left out. Its gradient is 0 at the clean images: start elsewhere. Rows of logits
    that are not finite stay out of the distance. ValueError: a negative weight.

    Differs: the authors take Z(x) in training mode, with batch statistics; here one mode serves
    all. They divide a short last batch by the nominal batch size; here by its own.
    """
    require("weight", weight, Range(0))
    if not callable(distance):
        raise ValueError(
            f"distance is {distance!r}; allowed is a function of logit differences (B, K) to a "
            "scalar. Use advtrain.norms.nuclear_norm or frobenius_norm."
        )
    return partial(_guided, distance=distance, weight=weight)


def _guided(
    model: Classifier,
    x: Tensor,
    y: Tensor,
    *,
    distance: Callable[[Tensor], Tensor],
    weight: float,
) -> Gain:
    if weight == 0:
        return cross_entropy(model, x, y)
    with torch.no_grad():
        clean = model(x)
    share = weight / max(len(x), 1)

    def gain(x_adv: Tensor) -> Tensor:
        logits = model(x_adv)
        apart = logits - clean
        finite = torch.isfinite(apart).all(1, keepdim=True)
        return functional.cross_entropy(logits, y) + share * distance(apart.where(finite, 0.0))

    return gain


def expected(*, objective: Objective, samples: Count) -> Objective:
    """The mean of `objective` over draws of a stochastic model (Athalye et al. 2018).

    ValueError: samples below 1.
    """
    require("samples", samples, Range(1))
    return partial(_expected, objective=objective, samples=samples)


def _expected(
    model: Classifier, x: Tensor, y: Tensor, *, objective: Objective, samples: int
) -> Gain:
    gain = objective(model, x, y)
    return lambda x_adv: torch.stack([gain(x_adv) for _ in range(samples)]).mean(0)


def targeted(objective: Objective) -> Objective:
    """Descends instead, so that `y` is the label to reach.

    ValueError for dlr, kl_to_clean and guided, which have no targeted form.
    """
    bare = objective
    while isinstance(bare, partial):
        bare = bare.keywords.get("objective", bare.func)
    if bare in (dlr, kl_to_clean, _guided):
        raise ValueError(
            "targeted is true and the objective is dlr, kl_to_clean or guided, whose descent does "
            "not lead to a label. Use cross_entropy or margin."
        )

    def bind(model: Classifier, x: Tensor, y: Tensor) -> Gain:
        gain = objective(model, x, y)
        return lambda x_adv: -gain(x_adv)

    return bind

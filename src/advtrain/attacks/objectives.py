"""What attacks ascend: `(model, x, y) -> gain`, and `gain(x_adv)` of shape (B,), to be summed.

Binding comes first, so that what depends on the clean images is computed once. A gain calls the
model on its argument last; whether a point fools the model is read from those logits.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from advtrain import functional
from advtrain.ranges import Count, NonNegative, Range, require
from advtrain.sharing import whole
from advtrain.types import Classifier, Gain, Objective

Distance = Callable[[Tensor, Tensor], Tensor]
"""Logits of perturbed and of clean images to how far they are: per example, (B,), or one mean."""


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


def linearity_gap(model: Classifier, x: Tensor, y: Tensor) -> Gain:
    """How far cross-entropy is from its tangent at x: |l(x_adv) - l(x) - <x_adv - x, grad l(x)>|.

    The inner maximum of LLR (Qin et al. 2019, https://arxiv.org/abs/1907.02610). The tangent costs
    one forward and one backward pass, at binding. At the clean image the gap and its gradient are
    0: start elsewhere. No targeted form.
    """
    tangent = _tangent(model, x, y)
    return lambda x_adv: (functional.cross_entropy(model(x_adv), y) - tangent(x_adv)).abs()


def linearity_gap_by_loss(model: Classifier, x: Tensor, y: Tensor) -> Gain:
    """The same gap, with the tangent taken for a constant: its gradient is +- grad l(x_adv).

    So does the code of LLR. On networks for digits ten steps reach gaps that are 10 to 30 % wider:
    where the loss is nearly linear, the gap's own gradient says little.
    """
    tangent = _tangent(model, x, y)
    return lambda x_adv: (functional.cross_entropy(model(x_adv), y) - tangent(x_adv.detach())).abs()


def _tangent(model: Classifier, x: Tensor, y: Tensor) -> Gain:
    """Cross-entropy to first order around x, in which value and gradient are constants."""
    leaf = x.detach().requires_grad_()
    losses = functional.cross_entropy(model(leaf), y)
    (slope,) = torch.autograd.grad(losses.sum(), leaf)
    height = losses.detach()
    return lambda x_adv: height + ((x_adv - x) * slope).flatten(1).sum(1)


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

    def shared(logits: Tensor, clean: Tensor) -> Tensor:
        apart = whole(logits - clean)
        finite = torch.isfinite(apart).all(1, keepdim=True)
        return distance(apart.where(finite, 0.0)) / max(len(apart), 1)

    return away_from(clean, distance=shared, weight=weight)(model, x, y)


def away_from(reference: Tensor, *, distance: Distance, weight: float) -> Objective:
    """Cross-entropy, and `weight` times the distance of the logits from `reference`, (B, K).

    For a batch whose clean logits are at hand, in whatever mode they were taken.
    """
    return partial(_away, reference=reference, distance=distance, weight=weight)


def _away(
    model: Classifier,
    x: Tensor,
    y: Tensor,
    *,
    reference: Tensor,
    distance: Distance,
    weight: float,
) -> Gain:
    def gain(x_adv: Tensor) -> Tensor:
        logits = model(x_adv)
        return functional.cross_entropy(logits, y) + weight * distance(logits, reference)

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


def separate(objective: Objective) -> bool:
    """Whether the gain of an image needs its own logits and label alone, as far as is known.

    True for cross_entropy, margin and dlr, and for their means over draws.
    """
    return _bare(objective) in (cross_entropy, margin, dlr)


def _bare(objective: Objective) -> Any:
    """What is ascended, without its configuration and without a mean over draws."""
    bare: Any = objective
    while isinstance(bare, partial):
        bare = bare.keywords.get("objective", bare.func)
    return bare


def targeted(objective: Objective) -> Objective:
    """Descends instead, so that `y` is the label to reach.

    ValueError for dlr, kl_to_clean, linearity_gap, guided and away_from: no targeted form.
    """
    if _bare(objective) in (dlr, kl_to_clean, linearity_gap, linearity_gap_by_loss, _guided, _away):
        raise ValueError(
            "targeted is true and the objective is dlr, kl_to_clean, linearity_gap or guided, "
            "whose descent does not lead to a label. Use cross_entropy or margin."
        )

    def bind(model: Classifier, x: Tensor, y: Tensor) -> Gain:
        gain = objective(model, x, y)
        return lambda x_adv: -gain(x_adv)

    return bind

"""What attacks ascend: `(model, x, y) -> gain`, and `gain(x_adv)` of shape (B,), to be summed.

Binding comes first, so that what depends on the clean images is computed once. A gain calls the
model on its argument last; whether a point fools the model is read from those logits.
"""

from functools import partial

import torch
from torch import Tensor

from advtrain import functional
from advtrain.ranges import Count
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


def expected(*, objective: Objective, samples: Count) -> Objective:
    """The mean of `objective` over draws of a stochastic model (Athalye et al. 2018)."""

    def bind(model: Classifier, x: Tensor, y: Tensor) -> Gain:
        gain = objective(model, x, y)
        return lambda x_adv: torch.stack([gain(x_adv) for _ in range(samples)]).mean(0)

    return bind


def targeted(objective: Objective) -> Objective:
    """Descends instead, so that `y` is the label to reach.

    ValueError for dlr and kl_to_clean, which have no targeted form.
    """
    if (objective.func if isinstance(objective, partial) else objective) in (dlr, kl_to_clean):
        raise ValueError(
            "targeted is true and the objective is dlr or kl_to_clean, whose descent does not "
            "lead to a label. Use cross_entropy or margin."
        )

    def bind(model: Classifier, x: Tensor, y: Tensor) -> Gain:
        gain = objective(model, x, y)
        return lambda x_adv: -gain(x_adv)

    return bind

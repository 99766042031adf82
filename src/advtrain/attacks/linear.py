"""The exact worst case of a linear model, within the ball and the box (Kolter and Madry 2019,
https://adversarial-ml-tutorial.org/linear_models/).

Against each class j the gain z_j - z_y is linear in the perturbation, so its maximum over the
convex set is the support point of w_j - w_y; the adversary takes the best j. With two classes and
l-infinity that is x - y eps sign(theta), clipped to the box.
"""

from dataclasses import replace
from math import inf, isinf

from torch import Generator, Tensor

from advtrain import affine
from advtrain.attacks.guard import exact as precise
from advtrain.attacks.guard import guarded
from advtrain.functional import margin
from advtrain.rows import select
from advtrain.threat import Ball
from advtrain.types import Classifier, Threat

HALVINGS = 30  # of the gain, in float64: to its nine digits


@guarded
def exact(
    model: Classifier,
    x: Tensor,
    y: Tensor,
    *,
    threat: Threat,
    generator: Generator | None = None,
) -> Tensor:
    """Per example a point of the set with the largest max_j z_j - z_y; draws nothing.

    So an example stands exactly if no point of the set changes its label, up to rounding. `model`
    must be linear in the pixels, in float32 at least, and is read as `affine.read` does.
    ValueError: it is not.
    """
    if not len(x):
        return x.clone()
    with precise(model):
        weight, bias = affine.read(model, x)
    weight, bias, best = weight.double(), bias.double(), x

    def gain(x_adv: Tensor) -> Tensor:
        return margin(x_adv.double().flatten(1) @ weight.T + bias, y)

    for ahead in range(1, len(weight)):
        other = (y + ahead) % len(weight)
        proposal = farthest(x, (weight[other] - weight[y]).view_as(x), threat)
        best = select(gain(proposal) > gain(best), proposal, best)
    return best


def farthest(x: Tensor, w: Tensor, threat: Threat) -> Tensor:
    """The point of ball and box around `x` at which <w, .> is largest; `x` where w is 0.

    Without a box, or where pixels move independently (l-infinity), eps along the steepest
    direction. Else the shortest way to a gain, which grows with the gain: bisection finds the gain
    that takes all of eps; where the box leaves less, the result is its corner. x, w (N, ...).
    """
    if threat.norm == "linf" or isinf(threat.low):
        steepest = threat.steepest(w).to(x.dtype)
        return threat.project(x + threat.eps * steepest, x)
    wide, normal = x.double(), w.double()
    least, most = normal.new_zeros(len(x)), threat.support(normal.flatten(1))
    for _ in range(HALVINGS):
        middle = (least + most) / 2
        within = threat.distance(threat.reach(wide, normal, middle), wide) <= threat.eps
        least, most = middle.where(within, least), most.where(within, middle)
    return threat.project(threat.reach(wide, normal, least).to(x.dtype), x)


def unclipped(*, threat: Threat) -> Threat:
    """The ball of `threat` without the box: perturbed images may leave [0, 1].

    For rows that say so, as tables of linear models are printed; no camera takes such images.
    """
    assert isinstance(threat, Ball)
    return replace(threat, low=-inf, high=inf)

"""Are certificates true? Attacks on the smoothed classifier inside each certified radius.

A certificate says that the smoothed classifier g returns one class everywhere closer to the image
than R. So one point inside at which g returns another class refutes it: of the image, or of the
code that issued it. The search is an attack by gradients on the soft-smoothed view of the network
(Salman et al. 2019, https://arxiv.org/abs/1906.04584), in the ball of the certified radius and
without a box, since the guarantee needs none. A search that finds nothing proves nothing; one that
finds something is an error of whoever certified.

g at the point found is what fresh draws say: broken is a certificate only if a class other than
the certified one is the most probable there with a p-value of at most LEVEL, by the test of
PREDICT. LEVEL is for the judge alone: were all of 10,000 certificates true, chance would accuse any
of them with probability 0.01 at most. A certificate itself may be false with probability alpha over
its own noise, in which case breaking it is right: the warning says how many that may be.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import isfinite, isinf
from typing import Any

import torch
from torch import Tensor

from advtrain.certification.bounds import rank_p_value
from advtrain.certification.lines import Format, clock, columns, integer, seconds
from advtrain.certification.log import cut, require_classes
from advtrain.certification.smoothing import Smoothed
from advtrain.types import Attack, Classifier

LEVEL = 1e-6
LOOK = 1000  # draws that first ask whether the certified class is still on top
JUDGED = 10_000  # draws, at least, without which nothing is called broken
HEADER = "idx\tlabel\tpredict\tradius\tdistance\tanswer\tp_value\ttime"


@dataclass(frozen=True)
class Attempt:
    """What became of the certificate (`prediction` within `radius`) of image `index`.

    At a point `distance` away fresh draws say `answer` (-1: nothing, at LEVEL or for a first look
    at its own level), with `p_value`. A line of soundness.tsv.
    """

    index: int
    label: int
    prediction: int
    radius: float
    distance: float
    answer: int
    p_value: float
    seconds: float

    @property
    def broken(self) -> bool:
        within = self.distance < self.radius
        other = self.answer not in (-1, self.prediction)
        return within and other and self.p_value <= LEVEL

    @property
    def told(self) -> str:
        return f"radius {self.radius:g}, distance {self.distance:g}, answer {self.answer}"

    def line(self) -> str:
        told = (self.index, self.label, self.prediction, cut(self.radius))
        found = (repr(self.distance), self.answer, repr(self.p_value), clock(self.seconds))
        return "\t".join(map(str, (*told, *found)))


def parse(line: str) -> Attempt:
    """The attempt of one line without its newline. ValueError says what is wrong with it."""
    told = columns(line, 8)
    index, label, prediction, answer = (integer(told[i]) for i in (0, 1, 2, 5))
    radius, distance, p_value = (float(told[i]) for i in (3, 4, 6))
    require_classes(index, label, prediction)
    if prediction < 0 or answer < -1 or not 0 <= p_value <= 1:
        raise ValueError(f"predict {prediction}, answer {answer} or p_value {p_value} cannot be")
    if not all(isfinite(each) and each >= 0 for each in (radius, distance)):
        raise ValueError(f"radius {told[3]} or distance {told[4]} cannot be")
    return Attempt(index, label, prediction, radius, distance, answer, p_value, seconds(told[7]))


ATTEMPTS = Format(HEADER, parse, "a log of attacks on certificates", "attacked")


@dataclass(frozen=True)
class Rescaled:
    """`model` in coordinates in which `radius` is one unit of distance from the image `centre`.

    z stands for centre + radius (z - centre). So an attack within an l2 ball of eps < 1 around the
    image searches that share of the certified radius, whatever it is. centre (1, ...).
    """

    model: Classifier
    centre: Tensor
    radius: float

    def __call__(self, z: Tensor) -> Tensor:
        return self.model(self.place(z))

    def place(self, z: Tensor) -> Tensor:
        """The images that `z` (B, ...) stand for."""
        return torch.lerp(self.centre, z, self.radius)


def require_rescaled(attack: Attack) -> None:
    """ValueError unless `attack` searches an l2 ball of eps in (0, 1), without a box."""
    threat = attack.keywords.get("threat") if isinstance(attack, partial) else None
    if threat is None:
        raise ValueError(
            "attack is no single attack with a threat of its own, so what it searches cannot be "
            "held against a radius. Give pgd or apgd, as conf/eval/soundness.yaml does."
        )
    if threat.norm != "l2":
        raise ValueError(
            f"attack.threat is a ball in {threat.norm}, and Gaussian noise certifies l2 radii. Use "
            "advtrain.threat.L2 with eps=0.999."
        )
    if not 0 < threat.eps < 1 or not isinf(threat.low):
        raise ValueError(
            f"attack.threat has eps={threat.eps:g} and pixels from {threat.low:g}; its unit is the "
            "certified radius and its points are no images, so allowed are eps in (0, 1) and no "
            "box. Use eps=0.999 within advtrain.attacks.linear.unclipped."
        )


def challenge(
    g: Smoothed,
    view: Classifier,
    x: Tensor,
    prediction: int,
    radius: float,
    *,
    attack: Attack,
    draws: int,
    seeds: tuple[int, int],
) -> tuple[float, int, float]:
    """The distance of the point that `attack` finds from image x (1, ...), and what g says there.

    The attack leaves `prediction`, on `view`, which stands for `g`, one image at a time: `view`
    fills its batches with noise. Then g is asked with noise of the two seeds: a first look, of LOOK
    draws, and where that does not confirm the prediction at a level of 0.001, `draws` more, JUDGED
    at least. Returns distance (l2), the class counted most or -1, and the p-value that no other
    class is more probable. A point that is not finite, or at `radius` or beyond, is the image.

    The caller has the model in evaluation mode, its weights frozen, and vouches for x.
    """
    rescaled = Rescaled(view, x, radius)
    y = torch.tensor([prediction], device=x.device)
    x_adv = rescaled.place(attack(rescaled, x, y).detach())
    distance = float((x_adv.double() - x.double()).norm())
    if not distance < radius:  # nan too
        x_adv, distance = x, 0.0
    for number, level, seed in (
        (LOOK, 1e-3, seeds[0]),
        (max(draws, JUDGED), LEVEL, seeds[1]),
    ):
        counts = g.counts(x_adv, number, seeds=[seed])
        top, second = counts[0].topk(2).values.tolist()
        p_value = float(rank_p_value(top, second))
        answer = int(counts[0].argmax()) if p_value <= level else -1
        if answer == prediction:
            break
    return distance, answer, p_value


def report(attempts: Sequence[Attempt], attack: str, draws: int) -> dict[str, Any]:
    """`certified.soundness` of results.json. attack: in words; draws: of the view attacked."""
    return {
        "attack": attack,
        "draws": draws,
        "level": LEVEL,
        "examples": len(attempts),
        "broken": [
            {
                "idx": each.index,
                "label": each.label,
                "predict": each.prediction,
                "radius": each.radius,
                "distance": each.distance,
                "answer": each.answer,
                "p_value": each.p_value,
            }
            for each in attempts
            if each.broken
        ],
        "seconds": round(sum(each.seconds for each in attempts), 3),
    }


def unsound(certified: Mapping[str, Any] | None) -> list[dict[str, str]]:
    """A warning of results.json where `certified` holds certificates that were broken."""
    soundness = (certified or {}).get("soundness")
    if not certified or not soundness or not soundness["broken"]:
        return []
    broken, examples = soundness["broken"], soundness["examples"]
    first = broken[0]
    expected = certified["alpha"] * examples
    message = (
        f"{len(broken)} of {examples} certificates are broken: image {first['idx']} has class "
        f"{first['answer']} at distance {first['distance']:.4g}, where class {first['predict']} is "
        f"certified up to {first['radius']:.4g} (p-value {first['p_value']:.1g}). At most "
        f"{expected:.2g} false ones are to be expected at alpha = {certified['alpha']:g}. Trust no "
        "radius of this run; look for noise that is not the certified one, or a log of another "
        "network."
    )
    return [{"check": "unsound", "row": "certified", "message": message}]

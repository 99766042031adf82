"""What the nodes `validate` and `eval` of a configuration ask for; nonsense is refused unrun."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal

from advtrain.certification.bounds import draws_needed
from advtrain.certification.linear import require_norms
from advtrain.certification.noise import KINDS
from advtrain.certification.prediction import PredictStudy
from advtrain.certification.question import as_written, multiples, require_radii
from advtrain.certification.soundness import require_rescaled
from advtrain.models.views import identity
from advtrain.ranges import Count, NonNegative, Positive, Probability
from advtrain.types import Attack, Combination, View


@dataclass(frozen=True)
class Validation:
    """How each epoch is judged on the validation split, every `every` epochs and at the last."""

    attack: Attack
    every: Count
    size: Count


@dataclass(frozen=True)
class Certification:
    """The certified radius of the smoothed classifier (Cohen et al. 2019), on `size` examples.

    With `radii`, which of these is certified, on as few of the n draws as that takes; `width` asks
    for the multiples of a number, up to the largest that n draws can certify. `precision`: of the
    network that is certified, whatever it was trained in. `attack`, unless null, then tries to
    break each certificate: on the smoothed view of the network with `attack_draws` of noise, its
    threat in units of the certified radius.
    """

    sigma: Positive
    noise: Literal["gaussian", "uniform"]
    n0: Count
    n: Count
    alpha: Probability
    size: Count | None
    batch_size: Count
    precision: Literal["fp32", "bf16"]
    radii: list[NonNegative] | None
    width: Positive | None
    attack: Attack | None
    attack_draws: Count

    def __post_init__(self) -> None:
        if self.n < draws_needed(self.alpha):
            raise ValueError(
                f"n={self.n} draws certify nothing at alpha={self.alpha:g}, whatever they say; at "
                f"least {draws_needed(self.alpha)} are needed."
            )
        if self.radii is not None and self.width is not None:
            raise ValueError(f"radii={self.radii} and width={self.width:g}: give one, not both.")
        if self.asked is not None:
            needed = partial(KINDS[self.noise].rate, sigma=self.sigma)
            require_radii(self.asked, self.n, self.alpha, largest=self._largest(), needed=needed)
        if self.attack is not None:
            if self.noise != "gaussian":
                raise ValueError(
                    f"noise={self.noise} certifies radii in another norm than the l2 in which "
                    "`attack` searches. Use noise=gaussian, or attack=null."
                )
            require_rescaled(self.attack)

    @property
    def asked(self) -> list[float] | None:
        """The radii asked for, as certify.tsv tells them; None: no question but the radius."""
        if self.width is not None:
            return multiples(self.width, self._largest())
        return self.radii and as_written(self.radii)

    def _largest(self) -> float:
        return KINDS[self.noise].largest(self.sigma, self.n, self.alpha)


@dataclass(frozen=True)
class Evaluation:
    """The rows of an evaluation on the first `size` test examples (null: all).

    Each row runs under each of the `views`, by which the network is judged. Of a stochastic network
    so many single `draws` are asked about the proposals of each row besides; `naive` is the row
    whose single draws are the published kind of figure, to be held against the worst case.
    Certificates and the PREDICT study are of the first view, of no more than those examples, and of
    no more than sizes of their own. `batch_size: auto` is what fits into memory. `exact`: of a
    linear model, by norm, the radii at which to count exact certificates.
    """

    attacks: Mapping[str, Attack | Combination]
    certify: Certification | None
    size: Count | None
    batch_size: Count | Literal["auto"]
    predict: PredictStudy | None = None
    exact: Mapping[str, list[NonNegative]] | None = None
    views: Mapping[str, View] = field(default_factory=lambda: {"identity": identity})
    draws: Count = 10
    naive: str | None = None

    @property
    def at_once(self) -> int:
        """Examples in a batch; `fitting` has put a number in the place of `auto`."""
        assert self.batch_size != "auto"
        return self.batch_size

    def __post_init__(self) -> None:
        if not self.views:
            raise ValueError(
                "views is empty, so that no network is judged. Give one, such as identity: "
                "{_target_: advtrain.models.views.identity, _partial_: true}."
            )
        if self.naive is not None and self.naive not in self.attacks:
            raise ValueError(
                f"naive={self.naive} is no row; allowed are {', '.join(self.attacks) or 'none'} "
                "of `attacks`, or null to compare nothing."
            )
        if self.exact is not None:
            require_norms(self.exact)
        for name in ("certify", "predict"):
            part = getattr(self, name)
            if part is not None and self.size is not None:
                size = min(self.size, part.size or self.size)
                object.__setattr__(self, name, replace(part, size=size))

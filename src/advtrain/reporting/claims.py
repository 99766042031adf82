"""Certified accuracy as values: a claim per configuration or log, a table per norm of the radii.

Shares are fractions of all examples; how they look is the business of `claim_formats`.
"""

from dataclasses import dataclass, field

from advtrain.reporting.papers import Figure
from advtrain.reporting.records import Certified


@dataclass(frozen=True)
class Wanted:
    """What of certificates is shown: at `radii`, else every `step`; alpha of logs without one.

    `fractions`: accuracies as 0.43, as papers print them, not as 42.80 percent.
    """

    radii: tuple[float, ...] = ()
    step: float | None = None
    alpha: float | None = None
    fractions: bool = False


@dataclass(frozen=True)
class Claim:
    """What is certified of one configuration, or in one log, by radius; radius 0 included.

    `high`: what of it holds with high probability. `spread`: the standard deviation over seeds.
    `radii`: of each example of the first seed, -1 where the answer is wrong, empty if not known.
    `place` is that of the configuration, hence its colour; `data` names the images, if known.
    `published`: a paper's shares by radius, beside these; `paper`: where they are from.
    """

    label: str
    place: int
    norm: str
    shares: dict[float, float]
    high: dict[float, float]
    acr: float | None = None
    found: Certified | None = None
    examples: int | None = None
    abstain: float | None = None
    spread: dict[float, float] = field(default_factory=dict)
    acr_spread: float | None = None
    seeds: int = 1
    radii: tuple[float, ...] = ()
    data: str = ""
    source: str = ""
    published: dict[float, Figure] = field(default_factory=dict)
    paper: str = ""
    remarks: tuple[str, ...] = ()

    @property
    def is_exact(self) -> bool:
        return self.found is None

    @property
    def sigma(self) -> float | None:
        return None if self.found is None else self.found.sigma


@dataclass(frozen=True)
class Claims:
    """The claims in one norm at the radii of the columns; `notes` are sentences about all."""

    norm: str
    radii: tuple[float, ...]
    claims: tuple[Claim, ...]
    notes: tuple[str, ...] = ()
    fractions: bool = False

    @property
    def word(self) -> str:
        """The norm as part of the name of a file."""
        return "".join(filter(str.isalnum, self.norm))

    @property
    def has_high(self) -> bool:
        return any(claim.high and not claim.is_exact for claim in self.claims)

    def best(self, radius: float) -> float | None:
        """The largest share of a column; None where nothing is compared, as across data sets."""
        if len({claim.data for claim in self.claims if claim.data}) > 1:
            return None
        told = [claim.shares[radius] for claim in self.claims if radius in claim.shares]
        return max(told) if len(set(told)) > 1 else None

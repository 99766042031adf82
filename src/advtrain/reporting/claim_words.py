"""What tables and figures of certificates say in words: norm, settings, and what to be wary of."""

from collections.abc import Iterable, Iterator, Sequence

from advtrain.certification.shares import RHO
from advtrain.reporting.claims import Claim, Claims
from advtrain.reporting.paper_words import caption_words
from advtrain.reporting.records import Certified

SHOWN = 6
UNITS = "pixels in [0, 1]"
HIGH = "with high probability"


def heading(claims: Claims) -> str:
    """`Certified accuracy in l2`."""
    return f"Certified accuracy in {claims.norm}"


def axis(norm: str) -> str:
    """`radius in l2, pixels in [0, 1]`."""
    return f"radius in {norm}, {UNITS}"


def name(claim: Claim) -> str:
    """The label, and what sets this certificate apart from one of the network itself, of
    Gaussian noise, in fp32.
    """
    found = claim.found
    if found is None:
        return f"{claim.label} (exact)"
    told = [found.view] if found.view != "identity" else []
    told += [f"{found.noise} noise"] if found.noise != "gaussian" else []
    told += [found.precision] if found.precision != "fp32" else []
    return f"{claim.label} ({', '.join(told)})" if told else claim.label


def caption(claims: Claims) -> str:
    """What the numbers are."""
    unit = "as a fraction" if claims.fractions else "in percent"
    words = [
        f"{heading(claims)}, {unit} of all examples: the answer is right and proven within the "
        f"radius r ({UNITS}); abstentions count as wrong",
        "ACR: the average certified radius",
    ]
    if claims.has_high:
        words.append(
            f"{HIGH}: less what false certificates may make up (Cohen et al. 2019; rho = {RHO:g})"
        )
    if any(claim.is_exact for claim in claims.claims):
        words.append("exact: of the linear model itself, without noise or chance")
    if any(claim.seeds > 1 for claim in claims.claims):
        words.append("± the standard deviation over seeds")
    if any(claim.published for claim in claims.claims):
        figures = [figure for claim in claims.claims for figure in claim.published.values()]
        sources = list(dict.fromkeys(c.paper for c in claims.claims if c.published and c.paper))
        compared = any(figure.difference is not None for figure in figures)
        words.append(caption_words(sources, verdicts=compared))
    if any(claims.best(radius) is not None for radius in claims.radii):
        words.append("bold the best of a column")
    return f"{'; '.join(words)}."


def notes(claims: Claims) -> list[str]:
    """Sentences about the certificates: how they were made, and what they hold for."""
    told = [
        (claim, [f"{settings_of(claim.found, alone=True)}."])
        for claim in claims.claims
        if claim.found is not None and claim.found.n is not None
    ]
    told += [(claim, list(_provisos(claim.found))) for claim in claims.claims if claim.found]
    return _gathered(told, len(claims.claims))


def doubts(claims: Claims) -> list[str]:
    """Sentences about what the numbers may hide: lines that do not count, radii rounded up."""
    told = [(claim, claim.remarks) for claim in claims.claims]
    return [*_gathered(told, len(claims.claims)), *claims.notes]


def _gathered(told: Iterable[tuple[Claim, Sequence[str]]], whole: int) -> list[str]:
    """Each sentence once, with the names of the claims it is about, if not of all."""
    about: dict[str, list[str]] = {}
    for claim, sentences in told:
        for sentence in sentences:
            about.setdefault(sentence, []).append(name(claim))
    return [
        words if len(names) == whole else f"{_listed(names)}: {words}"
        for words, names in about.items()
        if words
    ]


def _listed(names: Sequence[str]) -> str:
    if len(names) > SHOWN:
        return f"{', '.join(names[:SHOWN])} and {len(names) - SHOWN} more"
    return ", ".join(names)


def settings_of(found: Certified, *, alone: bool = False) -> str:
    """`sigma = 0.25, n0 = 100, n = 1000, alpha = 0.001`; `alone`: without sigma."""
    told: dict[str, float | int | None] = {} if alone else {"sigma": found.sigma}
    told |= {"n0": found.n0, "n": found.n, "alpha": found.alpha}
    return ", ".join(f"{key} = {value}" for key, value in told.items() if value is not None)


def _provisos(found: Certified) -> Iterator[str]:
    if found.noise != "gaussian":
        yield f"{found.noise} noise, which certifies radii in {found.norm}."
    if found.precision != "fp32":
        yield f"the guarantee holds for the network in {found.precision}, not in fp32."
    if found.asked:
        asked = ", ".join(f"{radius:g}" for radius in found.asked)
        mean = "" if found.draws is None else f", {found.draws:,.0f} an example on average"
        limit = "" if found.n is None else f", at most {found.n:,}"
        yield (
            f"radii asked: {asked}. Draws ended when it was known which of them is certified"
            f"{limit}{mean}; a certificate is the largest radius asked that it reaches, so other "
            "radii count too little, and so would an ACR."
        )

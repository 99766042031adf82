"""What attacks inside certified radii found: an error where one is broken, else a calm line."""

from advtrain.reporting.records import Broken, Run
from advtrain.reporting.wording import DASH

SHOWN = 5


def failure(run: Run) -> str:
    """The error, where any certificate is broken; else nothing."""
    found = run.certified.soundness if run.certified is not None else None
    if run.certified is None or found is None or not found.broken:
        return ""
    number = len(found.broken)
    named = "; ".join(map(_told, found.broken[:SHOWN]))
    more = f"; and {number - SHOWN} more" if number > SHOWN else ""
    of = f" of {found.examples} attacked" if found.examples is not None else ""
    noun = "certificate" if number == 1 and not of else "certificates"
    return (
        f"{number}{of} {noun} {'is' if number == 1 else 'are'} BROKEN: inside the "
        f"certified radius, {found.attack} found where the smoothed classifier answers otherwise. "
        f"{named}{more}. Do not rely on these certificates.{_chance(run)}"
    )


def reassurance(run: Run) -> str:
    """`120 attacked inside their certified radius by pgd, none fell.`; else nothing."""
    found = run.certified.soundness if run.certified is not None else None
    if found is None or found.broken:
        return ""
    number = DASH if found.examples is None else found.examples
    return f"{number} attacked inside their certified radius by {found.attack}, none fell."


def _chance(run: Run) -> str:
    """How many certificates may be false by the luck of the draws, which alpha allows."""
    found = run.certified
    if found is None or found.alpha is None or found.soundness is None:
        return ""
    examples = found.soundness.examples
    if examples is None:
        return f" Chance may break a share of {found.alpha:g} of them."
    return f" Chance alone may break {found.alpha * examples:.2g} of {examples} (alpha)."


def _told(broken: Broken) -> str:
    def known(value: float | None, digits: str = "g") -> str:
        return "?" if value is None else format(value, digits)

    words = f"idx {known(broken.index)}: label {known(broken.label)}, certified "
    words += f"{known(broken.predict)} within {known(broken.radius, '.4g')}, but "
    words += f"{known(broken.answer)} at {known(broken.distance, '.4g')}"
    return words if broken.p_value is None else f"{words} (p = {broken.p_value:.2g})"

"""Parts of a network by their names: `body.layer1` is that module and all below it.

Names are PyTorch's, of modules and of parameters, as the keys of a state dict have them.
"""

from collections.abc import Iterable
from difflib import get_close_matches


def within(name: str, parts: Iterable[str]) -> bool:
    """Whether `name` is one of `parts`, or below one."""
    return any(name == part or name.startswith(f"{part}.") for part in parts)


def require_parts(key: str, parts: Iterable[str], names: Iterable[str]) -> None:
    """Raise ValueError, beginning with `key`, unless each of `parts` is or holds one of `names`.

    `names`: those of a network's parameters.
    """
    paths = [name.split(".") for name in names]
    known = list(dict.fromkeys(".".join(p[:n]) for p in paths for n in range(1, len(p) + 1)))
    tops = ", ".join(name for name in known if name.count(".") <= 1)
    for part in parts:
        if part not in known:
            ends = [name for name in known if name.endswith(f".{part}")]
            near = ends or get_close_matches(part, known, n=1, cutoff=0.5)
            hint = f" Did you mean {near[0]}?" if near else ""
            raise ValueError(
                f"{key}: this network has no weights called {part}.{hint} They are in {tops}."
            )

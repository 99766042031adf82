"""Values that a configuration computes: the resolvers of `${limit:...}` and the like."""

import re
from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

VIEW = "advtrain.models.views.at"
FRACTION = re.compile(r"\s*([+-]?\d{1,18})/(\d{1,18})\s*")


def register_resolvers() -> None:
    """`${limit:A,B}`: A, at most B where B is not null. `${step:EPS,STEPS}`: a step size.

    Of a list A its members, each at most B, and each once.

    `${times:A,B}` and `${plus:A,B}`: product and sum. `${pick:NAME,{A:1,B:2},C}`: what stands under
    NAME, else C. `${lambdas:[0,0.2,1]}`: views of a conditional network, `lambda=0` and so on;
    `${lambdas:[0,0.2,1],[0.5,1]}`: at each of these widths, `lambda=0,width=0.5` and so on.
    """
    OmegaConf.register_new_resolver("limit", _limit, replace=True)
    OmegaConf.register_new_resolver("step", _step, replace=True)
    OmegaConf.register_new_resolver("times", _times, replace=True)
    OmegaConf.register_new_resolver("plus", _plus, replace=True)
    OmegaConf.register_new_resolver("lambdas", _lambdas, replace=True)
    OmegaConf.register_new_resolver("pick", _pick, replace=True)


def _limit(value: Any, bound: Any) -> Any:
    if isinstance(value, list | ListConfig):
        return ListConfig(list(dict.fromkeys(_limit(member, bound) for member in value)))
    if value is None or bound is None:
        return bound if value is None else value
    numbers = number(value), number(bound)
    return min(value, bound) if None not in numbers else value


def _step(eps: Any, steps: Any) -> Any:
    """2.5 eps / steps, at most eps (2/255 for 8/255 in 10 steps): Madry et al. 2018's rule.

    Where that makes no sense, eps as it is: the check of eps and steps then says what is wrong.
    """
    radius, count = number(eps), number(steps)
    if radius is None or count is None or count < 1:
        return eps
    return min(2.5 * radius / count, radius)


def _pick(name: str | None, values: Mapping[str, Any], other: Any) -> Any:
    found = other if name is None else values.get(name, other)
    return ListConfig(found) if isinstance(found, list) else found


def _times(factor: Any, value: Any) -> Any:
    """The product; what is no number as it is, for the check to refuse."""
    numbers = number(factor), number(value)
    return value if None in numbers else numbers[0] * numbers[1]  # type: ignore[operator]


def _plus(value: Any, other: Any) -> Any:
    """The sum; what is no number as it is, for the check to refuse."""
    numbers = number(value), number(other)
    return value if None in numbers else numbers[0] + numbers[1]  # type: ignore[operator]


def _lambdas(values: Any, widths: Any = None) -> DictConfig:
    """Views by name; `views.at` refuses what is no lambda or width."""
    pairs = [(lam, width) for width in _listed(widths) or [None] for lam in _listed(values)]
    return DictConfig(dict(_at(*pair) for pair in pairs))


def _at(lam: Any, width: Any) -> tuple[str, dict[str, Any]]:
    name, view = f"lambda={lam}", {"_target_": VIEW, "_partial_": True, "lam": lam}
    return (name, view) if width is None else (f"{name},width={width}", {**view, "width": width})


def _listed(values: Any) -> list[Any]:
    return list(values) if isinstance(values, list | ListConfig) else [values]


def number(value: Any) -> float | None:
    """A number from 0.1, "0.1" or "8/255"; None if it is none, or none that a float holds."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    fraction = FRACTION.fullmatch(value) if isinstance(value, str) else None
    try:
        return int(fraction[1]) / int(fraction[2]) if fraction else float(value)
    except (ValueError, ArithmeticError):
        return None

"""Configurations: composed by Hydra, checked against the signatures of their targets, built.

A node with `_target_: package.module.name` is a call; with `_partial_: true`, the target with its
configuration bound. `check` reads signatures from source, so that a misspelt key, a wrong type or
an absurd value is refused in a moment; `build` imports and calls. `allowed` names the packages
beside advtrain whose code may be called: the person at the command line names them, never a file.
"""

import importlib
import inspect
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from advtrain import signatures
from advtrain.ranges import number
from advtrain.signatures import ANYTHING, Kind, Signature

PROGRAM = "advtrain.runs.Program"  # the fields of the root
MARKS = ("_target_", "_partial_")
BUILT = ("dataset", "model", "optimizer", "eval", "logger")
"""Nodes of the root that are built of data which the program has at hand."""
SUPPLIED = ("setting",)
"""Data that a target anywhere in the configuration is given, if it has a parameter of that name."""
FACTS = {
    "dataset": {
        **{"eps": "Mapping[str, NonNegative]", "mean": "list[float] | None"},
        **{"std": "list[Positive] | None", "epochs": "Count", "batch_size": "Count"},
        **{"replays": "Count", "warmup": "Unit"},
    }
}
"""Keys that a node holds for other nodes to refer to, beside the parameters of its target."""


class ConfigError(ValueError):
    """The configuration is wrong; the message names key, value and what is allowed."""


def conf_dir() -> Path:
    """Where the config groups are: inside an installed package, or at the top of a checkout."""
    package = Path(__file__).parent
    installed = package / "conf"
    return installed if (installed / "config.yaml").exists() else package.parents[1] / "conf"


def plain(config: DictConfig) -> dict[str, Any]:
    """The configuration as plain containers, interpolations resolved."""
    try:
        resolved = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise ConfigError(_resolution(error)) from error
    assert isinstance(resolved, dict)
    return {str(key): value for key, value in resolved.items()}


def _resolution(error: OmegaConfBaseException) -> str:
    """What went wrong where, of an interpolation or a value that is not given."""
    key = getattr(error, "full_key", None) or "a key"
    reason = (
        str(error)
        .splitlines()[0]
        .removeprefix(f"{ConfigError.__name__} raised while resolving interpolation: ")
    )
    if reason.startswith("Missing mandatory value"):
        return f"{key} is not given, and has no default."
    return f"{key}: {reason}"


def check(config: Mapping[str, Any], *, allowed: Iterable[str] = ()) -> None:
    """Refuse a configuration that could not be built: all its problems in one ConfigError."""
    refuse(problems(config, allowed=allowed))


def problems(config: Mapping[str, Any], *, allowed: Iterable[str] = ()) -> list[str]:
    """What is wrong with a configuration, each a sentence that begins with its key."""
    found = list(_problems({"_target_": PROGRAM, **config}, "", tuple(allowed)))
    if config.get("job") == "eval" and not config.get("eval", True):
        found.append("eval=none leaves job=eval nothing to do; choose eval=quick, say.")
    for key in BUILT:
        node = config.get(key)
        if isinstance(node, Mapping) and "_target_" not in node and (node or key != "eval"):
            found.append(
                f"{key}={_brief(dict(node))} has no _target_ to build; eval=none takes no keys."
                if key == "eval"
                else f"{key}={_brief(dict(node))} has no _target_ to build; choose an option of it."
            )
    return found


def refuse(found: Iterable[str]) -> None:
    """Raise ConfigError with the problems found, if there are any."""
    told = _unique(found)
    if told:
        raise ConfigError("\n".join(told[:8]))


def key_of(problem: str) -> str:
    """The key that a problem begins with."""
    return re.split("[= ]", problem, maxsplit=1)[0]


def _unique(found: Iterable[str]) -> list[str]:
    """One problem per cause: a node that others refer to is told once, at its shortest path."""
    told: dict[str, str] = {}
    for problem in sorted(found, key=lambda text: key_of(text).count(".")):
        key = key_of(problem)
        rest = problem.removeprefix(key)
        told.setdefault(
            f"{key.rpartition('.')[2]}{rest.partition('?')[0].rpartition('Did')[0] or rest}",
            problem,
        )
    return list(told.values())


def _problems(node: Any, path: str, allowed: tuple[str, ...]) -> Iterator[str]:
    if isinstance(node, Mapping) and "_target_" in node:
        yield from _target_problems(node, path, allowed)
    elif isinstance(node, Mapping):
        for key, value in node.items():
            yield from _problems(value, _join(path, key), allowed)
    elif isinstance(node, list):
        for index, value in enumerate(node):
            yield from _problems(value, f"{path}[{index}]", allowed)


def _target_problems(node: Mapping[str, Any], path: str, allowed: tuple[str, ...]) -> Iterator[str]:
    target = node["_target_"]
    try:
        signature = _signature(target, path, allowed)
    except ConfigError as error:
        yield str(error)
        return
    lacking = [name for name in signature.needed if name not in SUPPLIED]
    if lacking and "." in path and node.get("_partial_") is not True:  # at the root the program has
        yield (
            f"{path}._partial_ is missing; write _partial_: true, since {target} is called later, "
            f"with {', '.join(lacking)}."
        )
    facts = {key: signatures.kind(text) for key, text in FACTS.get(path, {}).items()}
    given = {key: value for key, value in node.items() if key not in (*MARKS, *facts)}
    for key in facts.keys() & node.keys():
        yield from _value_problems(node[key], _join(path, key), facts[key], allowed)
    for key, value in given.items():
        name = _join(path, key)
        if key not in signature.keys:
            yield _unknown(name, key, value, target, signature)
        else:
            yield from _value_problems(value, name, signature.keys[key].kind, allowed)
    for key, parameter in signature.keys.items():
        if parameter.required and key not in given:
            yield f"{_join(path, key)} is missing; {target} needs it: {parameter.kind}."


def _unknown(name: str, key: str, value: Any, target: str, signature: Signature) -> str:
    if key in signature.data:
        return f"{name}={value} cannot be configured: the program supplies it to {target}."
    guess = signature.nearest(key)
    hint = f" Did you mean {_join(name.rpartition('.')[0], guess)}?" if guess else ""
    owner = "advtrain" if target == PROGRAM else target
    return f"{name}={value}: there is no such key.{hint} {owner} takes {', '.join(signature.keys)}."


def _value_problems(value: Any, name: str, kind: Kind, allowed: tuple[str, ...]) -> Iterator[str]:
    if kind.name == "mapping" and kind.of and isinstance(value, Mapping):
        for key, member in value.items():
            yield from _value_problems(member, _join(name, key), kind.of[0], allowed)
    elif kind.name == "import" and isinstance(value, str) and value.split(".")[0] not in allowed:
        yield _foreign(name, value)
    elif not _accepts(kind, value):
        yield f"{name}={_brief(value)} is refused; allowed is {kind}."
    else:
        yield from _problems(value, name, allowed)


def _accepts(kind: Kind, value: Any) -> bool:
    match kind.name:
        case "any":
            return True
        case "none":
            return value is None
        case "union":
            return any(_accepts(member, value) for member in kind.of)
        case "choice":
            return any(value == choice and type(value) is type(choice) for choice in kind.choices)
        case "bool":
            return isinstance(value, bool)
        case "import":
            return isinstance(value, str) and "." in value
        case "str":
            return isinstance(value, str | int | float) and not isinstance(value, bool)
        case "int":
            whole = isinstance(value, int) and not isinstance(value, bool)
            return whole and (kind.allowed is None or value in kind.allowed)
        case "float":
            real = number(value)
            return real is not None and (kind.allowed is None or real in kind.allowed)
        case "list":
            fits = isinstance(value, list) and kind.length in (None, len(value))
            return fits and all(_accepts(member, v) for member in kind.of for v in value)
        case "mapping":
            members = value.values() if isinstance(value, Mapping) else [None]
            return isinstance(value, Mapping) and all(
                _accepts(m, v) for m in kind.of for v in members
            )
        case "node":
            return isinstance(value, Mapping) and "_target_" in value
    raise AssertionError(kind)


def settled(config: Mapping[str, Any]) -> dict[str, Any]:
    """A checked configuration with the values at its root of the types that they stand for."""
    keys = signatures.read(PROGRAM).keys
    return {key: _coerce(keys[key].kind, value) for key, value in config.items()}


def uniform(config: Mapping[str, Any]) -> dict[str, Any]:
    """A plain configuration with one spelling of each number: 6 for 6.0, and 0.4 for "2/5".

    Of code outside advtrain no signature is read: a fraction stays as it is there.
    """
    found: dict[str, Any] = _uniform({"_target_": PROGRAM, **config}, "")
    return {key: value for key, value in found.items() if key != "_target_"}


def _uniform(node: Any, path: str) -> Any:
    if isinstance(node, list):
        return [_uniform(value, f"{path}[{i}]") for i, value in enumerate(node)]
    if not isinstance(node, Mapping):
        return int(node) if isinstance(node, float) and node.is_integer() else node
    kinds = {key: signatures.kind(text) for key, text in FACTS.get(path, {}).items()}
    if str(node.get("_target_", "")).startswith("advtrain."):
        known = _signature(node["_target_"], path, ()).keys
        kinds |= {key: parameter.kind for key, parameter in known.items()}
    members = {}
    for key, value in node.items():
        kind = kinds.get(key, ANYTHING)
        stands_for = _coerce(kind, value) if _accepts(kind, value) else value
        members[key] = _uniform(stands_for, _join(path, key))
    return members


def confined(node: Any, package: str, path: str, allowed: Iterable[str] = ()) -> None:
    """Refuse a node out of a file if it calls code outside of `package` (and those `allowed`).

    Nor may it hold interpolations: what a file brings is resolved already.
    """
    if isinstance(node, Mapping):
        target = str(node.get("_target_", f"{package}."))
        if not target.startswith(f"{package}.") and target.split(".")[0] not in tuple(allowed):
            raise ConfigError(f"{path}._target_={target} is refused: a file may name {package}.")
        for key, value in node.items():
            confined(value, package, _join(path, key), allowed)
    elif isinstance(node, list):
        for value in node:
            confined(value, package, path, allowed)
    elif isinstance(node, str) and "${" in node:
        raise ConfigError(f"{path}={_brief(node)} is refused: a file may hold no interpolation.")


def build(
    node: Any,
    *data: Any,
    path: str = "",
    allowed: Iterable[str] = (),
    supplied: Mapping[str, Any] | None = None,
) -> Any:
    """Make what `node` describes; `data` goes before the star of the outermost target.

    `supplied`: values for the names in SUPPLIED, which go there wherever a target has them.
    ConfigError: a target that does not exist, or outside the packages of `allowed`.
    """
    roots, supplied = tuple(allowed), supplied or {}
    within = partial(build, allowed=roots, supplied=supplied)
    if isinstance(node, list):
        return [within(value, path=f"{path}[{i}]") for i, value in enumerate(node)]
    if not isinstance(node, Mapping):
        return node
    if "_target_" not in node:
        return {key: within(value, path=_join(path, key)) for key, value in node.items()}
    target = node["_target_"]
    signature = _signature(target, path, roots)
    data = (*data, *(supplied[name] for name in signature.data if name in supplied))
    bound = {
        key: _coerce(signature.keys[key].kind, within(value, path=_join(path, key)))
        for key, value in node.items()
        if key not in (*MARKS, *FACTS.get(path, ()))
    }
    for key, parameter in signature.keys.items():
        if parameter.kind.name == "import" and bound[key].split(".")[0] not in roots:
            raise ConfigError(_foreign(_join(path, key), bound[key]))
    module, _, name = target.rpartition(".")
    function = getattr(importlib.import_module(module), name)
    try:
        inspect.signature(function).bind_partial(*data, **bound)
        if node.get("_partial_"):
            return partial(function, *data, **bound)
        inspect.signature(function).bind(*data, **bound)
    except TypeError as error:  # of another role than the one that is played here
        raise ConfigError(f"{path or target}: {target} cannot be called here: {error}.") from error
    try:
        return function(*data, **bound)
    except ConfigError:
        raise
    except ValueError as error:  # values that only the target can judge, in its own words
        raise ConfigError(f"{path or target}: {error}") from error


def make(
    node: Any,
    *data: Any,
    path: str,
    allowed: Iterable[str] = (),
    supplied: Mapping[str, Any] | None = None,
) -> Any:
    """`build`, calling the outermost target now: for nodes whose data the program has at hand."""
    called = (
        {**node, "_partial_": False} if isinstance(node, Mapping) and "_target_" in node else node
    )
    return build(called, *data, path=path, allowed=allowed, supplied=supplied)


def _signature(target: Any, path: str, allowed: tuple[str, ...]) -> Signature:
    where = f"{path or 'the root'}._target_"
    if not isinstance(target, str) or target.split(".")[0] not in ("advtrain", *allowed):
        raise ConfigError(_foreign(where, target))
    try:
        return signatures.read(target)
    except LookupError as error:
        raise ConfigError(f"{where}={target} cannot be used: {error}.") from error


def _foreign(key: str, value: Any) -> str:
    return (
        f"{key}={value} is refused: code outside advtrain is called only where the command line "
        "names its package, as packages=[NAME] or with the key itself."
    )


def _coerce(kind: Kind, value: Any) -> Any:
    """Fractions and whole numbers become floats where the signature wants one."""
    if kind.name == "float":
        return number(value)
    if kind.name == "str":
        return str(value)
    if kind.name == "union":
        accepting = [member for member in kind.of if _accepts(member, value)]
        return _coerce(accepting[0], value) if accepting else value
    if kind.name == "list" and kind.of:
        return [_coerce(kind.of[0], member) for member in value]
    if kind.name == "mapping" and kind.of:
        return {key: _coerce(kind.of[0], member) for key, member in value.items()}
    return value


def _join(path: str, key: Any) -> str:
    return f"{path}.{key}" if path else str(key)


def _brief(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."

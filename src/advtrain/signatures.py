"""Signatures read from source code, so that a configuration is checked without importing torch.

The signature of a target is its schema: `def f(data, *, configuration)`, or the fields of a
dataclass. Only the text of the module is parsed, and of packages around it `__init__` runs.
"""

import ast
import difflib
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

from advtrain import ranges

ROLES = {
    *("Attack", "Average", "Combination", "Defense", "Descent", "Objective", "Penalty"),
    *("Network", "Schedule", "Start", "Threat", "TrainingAttack", "View"),
}
"""Protocols of `types` and the like: what plays one of these roles is described by a node."""


@dataclass(frozen=True)
class Kind:
    """What a parameter accepts. `of`, `length`: the kind of a container's members, their number."""

    name: str  # int float bool str choice list mapping node none any
    allowed: ranges.Range | None = None
    choices: tuple[Any, ...] = ()
    of: tuple["Kind", ...] = ()
    length: int | None = None

    def __str__(self) -> str:
        if self.name == "union":
            return " or ".join(str(kind) for kind in self.of)
        if self.name == "choice":
            return "one of " + ", ".join(str(choice) for choice in self.choices)
        if self.name == "mapping" and self.of:
            return f"a mapping, {{a: b}}, each b {self.of[0]}"
        if self.length is not None:
            return f"a list of {self.length}, each {self.of[0]}"
        if self.allowed is not None:
            text = str(self.allowed)
            return text.replace("a number", "a whole number", 1) if self.name == "int" else text
        return {
            "int": "a whole number",
            "float": "a number (8/255 is one)",
            "bool": "true or false",
            "str": "text",
            "list": "a list, [a, b]",
            "mapping": "a mapping, {a: b}",
            "node": "a node with _target_",
            "none": "null",
            "import": "the dotted name of a callable, package.module.name",
        }.get(self.name, self.name)


ANYTHING = Kind("any")


@dataclass(frozen=True)
class Parameter:
    kind: Kind
    required: bool


@dataclass(frozen=True)
class Signature:
    """`data`: parameters that the program supplies. `keys`: those of the configuration.

    `needed`: the data without a default.
    """

    data: tuple[str, ...]
    keys: dict[str, Parameter]
    needed: tuple[str, ...] = ()

    def nearest(self, word: str) -> str | None:
        return nearest(word, self.keys)


def nearest(word: str, known: Any) -> str | None:
    """The known name most like `word`, if any is like it at all."""
    found = difflib.get_close_matches(word, [str(name) for name in known], n=1, cutoff=0.5)
    return found[0] if found else None


@cache
def read(target: str) -> Signature:
    """The signature of `package.module.name`, from the text of its module.

    LookupError: there is no such module, or `name` is not defined in it (but imported, say).
    """
    module, _, name = target.rpartition(".")
    definition = _definitions(module).get(name)
    if isinstance(definition, ast.FunctionDef):
        return _of_function(definition, skip_self=False)
    if isinstance(definition, ast.ClassDef):
        return _of_class(module, definition)
    raise LookupError(f"there is no {name} in {module}")


@cache
def _definitions(module: str) -> dict[str, ast.stmt]:
    try:
        spec = importlib.util.find_spec(module) if module else None
    except (ImportError, ValueError):
        spec = None
    if spec is None:
        raise LookupError(f"there is no module {module or '(empty)'}")
    if spec.origin is None or not spec.origin.endswith(".py"):
        raise LookupError(f"{module} has no Python source to read a signature from")
    tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
    return dict(_named(tree.body))


def _named(body: list[ast.stmt]) -> Iterator[tuple[str, ast.stmt]]:
    for statement in body:
        if isinstance(statement, ast.FunctionDef | ast.ClassDef):
            yield statement.name, statement
        elif isinstance(statement, ast.ImportFrom) and statement.level == 0:
            for alias in statement.names:
                yield alias.asname or alias.name, statement


def _origin(module: str, name: str) -> str:
    """Where `name`, used in `module`, is defined."""
    statement = _definitions(module)[name]
    if not isinstance(statement, ast.ImportFrom):
        return f"{module}.{name}"
    return f"{statement.module}." + next(
        alias.name for alias in statement.names if (alias.asname or alias.name) == name
    )


def _of_function(function: ast.FunctionDef, *, skip_self: bool) -> Signature:
    arguments = function.args
    data = tuple(a.arg for a in [*arguments.posonlyargs, *arguments.args])[int(skip_self) :]
    keys = {
        argument.arg: Parameter(_kind(argument.annotation), default is None)
        for argument, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    }
    return Signature(data, keys, data[: len(data) - len(arguments.defaults)])


def _of_class(module: str, definition: ast.ClassDef) -> Signature:
    for statement in definition.body:
        if isinstance(statement, ast.FunctionDef) and statement.name == "__init__":
            return _of_function(statement, skip_self=True)
    keys: dict[str, Parameter] = {}
    for base in definition.bases:
        if isinstance(base, ast.Name) and base.id in _definitions(module):
            keys |= read(_origin(module, base.id)).keys
    for statement in definition.body:
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            name = statement.target.id
            if _is_field(statement):
                keys[name] = Parameter(_kind(statement.annotation), statement.value is None)
    return Signature((), keys)


def _is_field(statement: ast.AnnAssign) -> bool:
    if "ClassVar" in ast.dump(statement.annotation):
        return False
    hidden = ast.dump(ast.parse("field(init=False)", mode="eval").body.keywords[0])  # type: ignore[attr-defined]
    return not (
        isinstance(statement.value, ast.Call) and hidden in map(ast.dump, statement.value.keywords)
    )


def kind(annotation: str) -> Kind:
    """What an annotation, given as text, accepts."""
    return _kind(ast.parse(annotation, mode="eval").body)


def _kind(annotation: ast.expr | None) -> Kind:
    match annotation:
        case ast.Constant(value=None):
            return Kind("none")
        case ast.Constant(value=str(text)):
            return _kind(ast.parse(text, mode="eval").body)
        case ast.BinOp(op=ast.BitOr(), left=left, right=right):
            return Kind("union", of=(_kind(left), _kind(right)))
        case ast.Subscript(value=ast.Name(id="Literal"), slice=members):
            return Kind("choice", choices=tuple(_literals(members)))
        case ast.Subscript(
            value=ast.Name(id="dict" | "Mapping"), slice=ast.Tuple(elts=[_, member])
        ):
            return Kind("mapping", of=(_kind(member),))
        case ast.Subscript(value=ast.Name(id="list" | "Sequence"), slice=member):
            return Kind("list", of=(_kind(member),))
        case ast.Subscript(value=ast.Name(id="tuple"), slice=ast.Tuple(elts=[member, *rest])):
            open_end = any(isinstance(each, ast.Constant) for each in rest)  # tuple[float, ...]
            return Kind("list", of=(_kind(member),), length=None if open_end else 1 + len(rest))
        case ast.Name(id=name):
            return _named_kind(name)
    return ANYTHING


def _literals(node: ast.expr) -> Iterator[Any]:
    for element in node.elts if isinstance(node, ast.Tuple) else [node]:
        if isinstance(element, ast.Constant):
            yield element.value


def _named_kind(name: str) -> Kind:
    if name in ("int", "float", "bool", "str", "list"):
        return Kind(name)
    if name in ("dict", "Mapping"):
        return Kind("mapping")
    if name == "ImportPath":
        return Kind("import")
    if name in ROLES:
        return Kind("node")
    ranged = getattr(ranges, name, None)
    if get_origin(ranged) is Annotated:
        base, allowed = get_args(ranged)
        return replace(Kind(base.__name__), allowed=allowed)
    return ANYTHING

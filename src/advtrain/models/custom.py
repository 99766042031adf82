"""Anyone's network: an importable function or class that returns a `torch.nn.Module`."""

import os
import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from inspect import signature
from typing import Any

from torch import nn

from advtrain.ranges import ImportPath


def custom(
    shape: tuple[int, int, int],
    classes: int,
    *,
    factory: ImportPath,
    arguments: Mapping[str, Any],
) -> nn.Module:
    """What `factory`, as `package.module.name`, returns for `arguments`.

    The module must map images in [0, 1], shape (B, C, H, W), to logits, shape (B, K), and does its
    own normalisation. A factory with a parameter called `shape`, `classes` or `num_classes` is
    told the data's, unless `arguments` says otherwise.
    Raises ValueError when the factory cannot be imported or called, does not take the arguments,
    or returns something else; errors of its own pass through.
    """
    build = locate(factory)
    parameters = signature(build)
    known = {"shape": tuple(shape), "classes": classes, "num_classes": classes}
    told = {name: value for name, value in known.items() if name in parameters.parameters}
    given = told | dict(arguments)
    try:
        parameters.bind(**given)
    except TypeError as error:
        raise ValueError(
            f"model.factory={factory} cannot be called with {given}: {error}. "
            "Set its parameters under model.arguments."
        ) from error
    model = build(**given)
    if not isinstance(model, nn.Module):
        raise ValueError(
            f"model.factory={factory} returned a {type(model).__name__}; it must return a "
            "torch.nn.Module from images in [0, 1] to logits."
        )
    return model


def locate(path: str) -> Callable[..., object]:
    """The callable at `package.module.name`; the working directory is searched last."""
    module, _, name = path.rpartition(".")
    if not module:
        raise ValueError(f"model.factory is {path!r}; write it as package.module.function.")
    here = os.getcwd()
    if here not in sys.path:  # a console script, unlike `python -m`, leaves it out
        sys.path.append(here)
    try:
        found = getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"model.factory={path} cannot be imported: {error}. Its package must be installed, or "
            "lie in the working directory or on PYTHONPATH."
        ) from error
    if not callable(found):
        raise ValueError(
            f"model.factory={path} is of type {type(found).__name__}, which cannot be called; name "
            "a function or a class that returns a torch.nn.Module."
        )
    return found

"""How large a network would be, without the memory for it."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.modules import module as registry

from advtrain.foreign import Refused


def require_size(build: Callable[[], Any], most: int) -> None:
    """Refused: `build` makes no network, or one of more than `most` numbers, buffers included.

    Its tensors are made on the device `meta`, which has no memory, and building ends as soon as
    there are too many.
    """
    count = 0

    def counted(owner: nn.Module, name: str, tensor: Any) -> None:
        nonlocal count
        count += tensor.numel() if isinstance(tensor, torch.Tensor) else 0
        if count > most:
            raise Refused(f"its configuration describes a network of more than {most:,} numbers")

    hooks = [
        registry.register_module_parameter_registration_hook(counted),
        registry.register_module_buffer_registration_hook(counted),
    ]
    try:
        with torch.device("meta"), torch.random.fork_rng(devices=[]):
            made = build()
    except Refused:
        raise
    except (RuntimeError, TypeError, ArithmeticError, MemoryError) as error:
        first = next(iter(str(error).splitlines()), type(error).__name__)
        raise Refused(f"its configuration describes no network ({first[:100]})") from error
    finally:
        for hook in hooks:
            hook.remove()
    if not isinstance(made, nn.Module):
        raise Refused(f"its configuration describes a {type(made).__name__}, not a network")

"""Parts of a network that training leaves as they are, always or for its first epochs.

Their weights get no gradient. They stay in evaluation mode whoever asks for training, so batch norm
uses its running statistics and these stay, too, also while crafting in training mode and when an
average estimates its statistics anew.
"""

from collections.abc import Sequence
from types import MethodType

from torch import nn

from advtrain.parts import require_parts, within


class Freezing:
    """Holds the parts `names` of `model` in epochs 0 to `epochs` - 1; for good where that is None.

    Copies of the network made later, as averages are, follow: `held` is of all of them. What to do
    is a function of the epoch alone, so a run that goes on freezes as one that never stopped.
    Raises ValueError for a part that is not there, for a network left without any weights to
    train, and for `epochs` that hold nothing.
    """

    def __init__(self, model: nn.Module, names: Sequence[str], epochs: int | None) -> None:
        if epochs is not None and not names:
            raise ValueError(f"freeze_epochs is {epochs}, and freeze names nothing to hold.")
        named = dict(model.named_parameters())
        require_parts("freeze", names, named)
        wanted = {name: each for name, each in named.items() if each.requires_grad}
        self.weights = [each for name, each in wanted.items() if within(name, names)]
        if names and len(self.weights) == len(wanted):
            raise ValueError(f"freeze={list(names)} leaves no weights to train; name fewer parts.")
        self.epochs = epochs
        self.held = False
        for name, module in model.named_modules():
            if within(name, names):
                self._bind(module)

    def at(self, epoch: int) -> None:
        """Hold the parts in `epoch` (from 0), or let them go; call it before `model.train()`."""
        self.held = self.epochs is None or epoch < self.epochs
        for weight in self.weights:
            weight.requires_grad_(not self.held)

    def _bind(self, module: nn.Module) -> None:
        """Let this one module ask `held` before it changes; copies bind methods of their own."""

        def train(part: nn.Module, mode: bool = True) -> nn.Module:
            return type(part).train(part, mode and not self.held)

        def reset_running_stats(part: nn.Module) -> None:
            if not self.held:
                type(part).reset_running_stats(part)  # type: ignore[attr-defined]

        module.__dict__["train"] = MethodType(train, module)
        if hasattr(module, "reset_running_stats"):
            module.__dict__["reset_running_stats"] = MethodType(reset_running_stats, module)

"""Views: what a network is looked at through, as a plain classifier of images."""

from torch import Tensor, nn

from advtrain.conditions import Conditional, alike
from advtrain.ranges import Unit


class At(nn.Module):
    """A conditional network at one lambda, for all images alike."""

    def __init__(self, network: nn.Module, lam: float) -> None:
        super().__init__()
        self.network = network
        self.lam = lam
        self.training = network.training

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x, alike(self.lam, x))


def at(network: nn.Module, *, lam: Unit) -> nn.Module:
    """A conditional network (Once-for-all) at `lam`, 0 for standard to 1 for robust accuracy.

    Any lambda in [0, 1] will do, also between those of the training. ValueError: outside [0, 1], or
    a network that takes none.
    """
    if not isinstance(network, Conditional):
        raise ValueError(
            f"view=at({lam:g}) asks a conditional network, and {type(network).__name__} takes no "
            "lambda. Use a model=oat_..., or the view identity."
        )
    alike(lam, network.values)  # refuses a lambda outside [0, 1] before the first batch
    return At(network, lam)

"""Attacks through another view of the network: which one gradients are of, and which is judged.

A stochastic network is attacked adaptively so: through the mean
over draws (EOT: Athalye et al. 2018, https://arxiv.org/abs/1707.07397), at the temperature that it
was trained at, or without its noise (Tramer et al. 2020, https://arxiv.org/abs/2002.08347). And a
vote, which has no gradient, is attacked through the mean. Points are judged by whoever is asked
for a verdict, not by this view.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Generator, Tensor, nn

from advtrain.attacks.guard import guarded
from advtrain.averaged import single
from advtrain.types import Attack, Classifier, Combination, Threat, View


@guarded
def through(
    model: Classifier,
    x: Tensor,
    y: Tensor,
    *,
    threat: Threat,
    attack: Attack,
    view: View,
    generator: Generator | None = None,
    **overrides: Any,
) -> Tensor:
    """What `attack` makes of `view` of the network; where `model` takes several draws, of one.

    `attack` must search the set `threat` or a part of it, and takes `generator=`. Whatever it asks
    about points is answered by the view, too. Views nest: the mean over draws inside of another
    temperature is `through(attack=through(attack=pgd, view=mean_of), view=at_temperature)`.
    ValueError: `model` is a function, which no view can look into.
    """
    return attack(seen(model, view), x, y, generator=generator, **overrides)


@dataclass(frozen=True)
class Through:
    """A combination of attacks, each of them `through` the view."""

    attack: Combination
    view: View

    @property
    def threat(self) -> Threat:
        """The set that all members search."""
        return self.attack.threat

    def members(self, classes: int) -> Mapping[str, Attack]:
        return {
            name: partial(through, threat=self.threat, attack=member, view=self.view)
            for name, member in self.attack.members(classes).items()
        }


def seen(model: Classifier, view: View) -> Classifier:
    """`view` of the network behind `model`; what checks or counts its calls does so again."""
    if isinstance(model, nn.Module):
        return view(single(model))
    around, inner = getattr(model, "around", None), getattr(model, "model", None)
    if around is None or inner is None:
        raise ValueError(
            f"through needs a network, an nn.Module, to look at in another way, and got "
            f"{getattr(model, '__name__', type(model).__name__)}. Give it the network itself."
        )
    changed: Classifier = around(seen(inner, view))
    return changed

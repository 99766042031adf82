"""Views: a network seen as a plain classifier of images, `(network, *, configuration) -> network`.

Rows of an evaluation are judged under a view, and attacks may craft through another one (see
`attacks.through`). Of stochastic networks: the mean over draws and the majority of them, the
network at another temperature of its relaxed samples, and without noise. Of conditional networks:
the network at one lambda. Of any network: the mean over noisy copies of an image. The network
inside is found as a module, so modes, weights and precision reach it.
"""

from typing import Literal

import torch
from torch import Generator, Tensor, nn

from advtrain.averaged import Averaged, is_stochastic
from advtrain.conditions import UNIT, Conditional, Slimmable, alike
from advtrain.functional import log_mean, log_probabilities
from advtrain.models import lwta
from advtrain.ranges import Count, Natural, Positive, Range, Unit, require
from advtrain.types import Classifier


class Unfit(ValueError):
    """The network cannot be seen in this way; the message says why."""


def identity(network: nn.Module) -> nn.Module:
    """The network as it is; of a stochastic one a single draw."""
    return network


def mean_of(network: nn.Module, *, draws: Count) -> nn.Module:
    """Log of the mean of softmax over `draws` fresh passes; the network itself for one.

    Cross-entropy of that is -log mean_k p_y: every gradient attack on it averages over draws
    (Athalye et al. 2018, https://arxiv.org/abs/1707.07397), at `draws` times its passes.
    RangeError: draws below 1.
    """
    require("draws", draws, Range(1))
    return network if draws == 1 else Mean(network, draws)


def majority(network: nn.Module, *, draws: Count) -> nn.Module:
    """Log of the shares of votes of `draws` fresh passes; among classes of as many votes the mean
    probability decides. The network itself for one draw.

    Votes have no gradient: to attack it, craft through `mean_of`. RangeError: draws below 1.
    """
    require("draws", draws, Range(1))
    return network if draws == 1 else Majority(network, draws)


def at_temperature(network: nn.Module, *, tau: Positive | Literal["train", "test"]) -> nn.Module:
    """The network with its relaxed samples at temperature `tau`, a single draw; `train` and `test`
    are each layer's own.

    Unfit: no layer draws. RangeError: tau not positive.
    """
    if not isinstance(tau, str):
        require("tau", tau, Range(0, open_low=True))
    return AtTemperature(_drawing(network, "temperature"), tau)


def noise_free(network: nn.Module) -> nn.Module:
    """The network with the expected value of each draw in its place: deterministic.

    Unfit: no layer draws.
    """
    return NoiseFree(_drawing(network, "noise"))


def smoothed(
    model: Classifier, *, sigma: Positive, draws: Count, seed: Natural | None
) -> "SoftSmoothed":
    """log of the mean of softmax(model(x + e)) over `draws` Gaussian draws e of deviation sigma.

    The differentiable stand-in for the smoothed classifier, whose votes have no gradient (Salman et
    al. 2019, https://arxiv.org/abs/1906.04584, eq. 6). sigma in pixel units of [0, 1]; noise is not
    clipped.

    With a `seed`, the noise is the same at each call and for each image, so the view is a plain
    function of an image, whoever else is in its batch; results of an attack are reproducible, and
    restarts comparable. With null each call and image has fresh noise, from the global random
    state. ValueError: sigma not positive, draws below 1.
    """
    require("sigma", sigma, Range(0, open_low=True))
    require("draws", draws, Range(1))
    return SoftSmoothed(model, sigma, draws, seed)


def at(network: nn.Module, *, lam: Unit, width: float | None = None) -> nn.Module:
    """A conditional network (Once-for-all) at `lam`, 0 for standard to 1 for robust accuracy.

    Any lambda in [0, 1] will do, also between those of the training. `width`: one of those of a
    slimmable network, null: the full one. Unfit: a network that takes no lambda, or no width.
    RangeError: lambda outside [0, 1]. ValueError: another width.
    """
    require("lambda", lam, UNIT)
    if not isinstance(network, Conditional):
        raise Unfit(
            f"view=at({lam:g}) asks a conditional network, and {type(network).__name__} takes no "
            "lambda. Use a model=oat_..., or the view identity."
        )
    if width is None:
        return At(network, lam)
    if not isinstance(network, Slimmable):
        raise Unfit(
            f"view=at({lam:g}, width={width:g}) asks a slimmable network, and this one has no "
            "widths. Train one with model.widths=[0.5,0.75,1], or leave the width out."
        )
    return At(network.at_width(width), lam)


class At(nn.Module):
    """A conditional network at one lambda, for all images alike."""

    def __init__(self, network: nn.Module, lam: float) -> None:
        super().__init__()
        self.network = network
        self.lam = lam
        self.training = network.training

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(x, alike(self.lam, x))
        return logits


class Mean(Averaged):
    """Log of the mean probabilities of the draws, (B, K)."""

    def forward(self, x: Tensor) -> Tensor:
        return log_mean(self.answers(x))


class Majority(Averaged):
    """Log of the shares of votes, (B, K), in which the mean probability counts for half a vote."""

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled() and x.requires_grad:
            raise ValueError(
                f"majority(draws={self.draws}) counts votes, which have no gradient. Craft through "
                "the mean over draws: _target_: advtrain.attacks.through.through with "
                "view: advtrain.models.views.mean_of."
            )
        answers = self.answers(x).detach()
        first = answers.argmax(-1, keepdim=True)
        votes = torch.zeros_like(answers).scatter_(-1, first, 1.0).sum(0)
        score = votes + answers.exp().mean(0) / 2  # less than a vote: it decides ties alone
        shares = score / (self.draws + 0.5)
        return (
            shares.clamp_min(torch.finfo(shares.dtype).tiny)
            .log()
            .where(torch.isfinite(answers).all(0), torch.nan)
        )


class AtTemperature(nn.Module):
    """`network` with relaxed samples at the temperature `tau`."""

    def __init__(self, network: nn.Module, tau: float | lwta.Phase) -> None:
        super().__init__()
        self.network = network
        self.tau = tau
        self.training = network.training

    def forward(self, x: Tensor) -> Tensor:
        with lwta.temperature(self.network, self.tau):
            logits: Tensor = self.network(x)
        return logits


class NoiseFree(nn.Module):
    """`network` without its noise."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.training = network.training

    def forward(self, x: Tensor) -> Tensor:
        with lwta.noise_free(self.network):
            logits: Tensor = self.network(x)
        return logits


class SoftSmoothed(nn.Module):
    """See `smoothed`. A call makes one forward pass of draws x B images, (draws, B) flattened."""

    repeats = True

    def __init__(self, model: Classifier, sigma: float, draws: int, seed: int | None) -> None:
        super().__init__()
        self.model, self.sigma, self.draws, self.seed = model, sigma, draws, seed
        self.training = getattr(model, "training", False)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, K): logarithms of probabilities that sum to 1."""
        noisy = x + self.sigma * self._noise(x)
        logits = self.model(noisy.flatten(0, 1))
        return log_mean(log_probabilities(logits).unflatten(0, (self.draws, len(x))))

    def _noise(self, x: Tensor) -> Tensor:
        """(draws, 1, ...) with a seed, and (draws, B, ...) without."""
        if self.seed is None:
            return torch.randn((self.draws, *x.shape), dtype=x.dtype, device=x.device)
        generator = Generator(x.device).manual_seed(self.seed)
        shape = (self.draws, 1, *x.shape[1:])
        return torch.randn(shape, generator=generator, dtype=x.dtype, device=x.device)


def _drawing(network: nn.Module, what: str) -> nn.Module:
    if not is_stochastic(network):
        raise Unfit(
            f"no layer of the network says that it is stochastic, so there is no {what} to change. "
            "Views at_temperature and noise_free are for layers as those of models.lwta."
        )
    return network

"""Randomised smoothing (Cohen et al. 2019, https://arxiv.org/abs/1902.02918, section 3.2).

From a classifier f: g(x), the class that f returns most often on x + e with e ~ N(0, sigma^2 I),
or with uniform e, see `noise`. CERTIFY and PREDICT are claims about g, which is what must be
deployed, not about f: the network as given, in the precision that it computes in.

sigma is the standard deviation of the noise of a pixel; it and radii, in l2 under Gaussian noise
and in l1 under uniform, are in pixel units of [0, 1]. Noise is added to the pixels, before the
model's own normalisation, and not clipped: clipped noise would certify nothing.

A draw whose logits are not all finite counts as a trial and for no class, so it can only cost a
certificate, never give one.

Differs: the authors' code abstains where the bound is below 1/2, here where it is at most 1/2 (the
theorem needs more). There, noise comes from the global random state, one image at a time; here
each image has a stream of its own, and images share batches.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

import torch
from torch import Generator, Tensor

from advtrain.attacks.guard import modules_of
from advtrain.certification.bounds import (
    COUNT,
    LEVEL,
    POSITIVE,
    draws_needed,
    lower_bound,
    rank_p_value,
    require_draws,
)
from advtrain.certification.noise import GAUSSIAN, Noise
from advtrain.modes import crafting
from advtrain.portions import Room
from advtrain.ranges import Count, Positive, Probability, require
from advtrain.types import Classifier

ABSTAIN = -1

BLOCK, NUMBERS = 500, 2**24
"""Draws of one image per call of its generator, fewer where they would be more than so many
numbers. A function of its shape alone: a stream cut otherwise has other values, and results would
depend on the batch size."""


@dataclass(frozen=True)
class Smoothed:
    """The smoothed classifier g of `model`, whose logits have `num_classes` columns.

    `batch_size` is the number of noisy images in one forward pass, draws of several images
    together; it changes speed and memory, and results only as far as the rounding of `model`
    does with the size of its batch. `room`: for how many there is memory, as known; where it runs
    out, noise and passes follow it, with the same draws.

    Everywhere below: x is float32 or float64, (N, C, H, W) or (N, D), on the device of the model;
    results are on that device. Modules run in evaluation mode and have their modes back
    afterwards; those hidden in a closure are found by nobody, and are the caller's to set. The
    noise of image i is drawn from a generator seeded by `seeds[i]` alone, so an image gives the
    same result by itself as among others. Without `seeds`, they are drawn from `generator`, and
    the global random state is untouched; without both, from the global one.
    A model that draws numbers itself must draw them afresh for each row, and does so from
    wherever it likes: f is then random, and claims about g hold as before, over both.

    ValueError: sigma not positive; num_classes or batch_size < 1; n or n0 no whole number from 1;
    alpha outside (0, 1); x of another type; seeds not one per image, or with a generator; logits
    of another width than num_classes. TooLarge: memory does not hold one noisy image.
    """

    model: Classifier
    num_classes: Count
    sigma: Positive
    batch_size: Count = 1000
    noise: Noise = GAUSSIAN
    room: Room = field(default_factory=Room, compare=False)

    def __post_init__(self) -> None:
        require("Smoothed.num_classes", self.num_classes, COUNT)
        require("Smoothed.sigma", self.sigma, POSITIVE)
        require("Smoothed.batch_size", self.batch_size, COUNT)

    def certify(
        self,
        x: Tensor,
        n0: Count = 100,
        n: Count = 100_000,
        alpha: Probability = 0.001,
        *,
        seeds: Sequence[int] | None = None,
        generator: Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Classes and radii: CERTIFY, for each image.

        With probability at least 1 - alpha over the noise, for each image alone: either it is
        abstained on (class -1, radius 0), or g returns the class given at every point closer to
        the image than the radius, points outside the box included.

        The class is guessed from `n0` draws and its rate bounded from `n` fresh ones. Returns
        int64 (N,) and float64 (N,). Radii are at most `noise.largest(sigma, n, alpha)`.

        ValueError: n so small that even n equal answers certify nothing, alpha^(1/n) <= 1/2.
        """
        require("alpha", alpha, LEVEL)
        require_draws("n0", n0)
        require_draws("n", n)
        if n < draws_needed(alpha):
            raise ValueError(
                f"n is {n}, too few for any certificate at alpha = {alpha:g}, which needs "
                f"alpha^(1/n) > 1/2. Use n >= {draws_needed(alpha)}."
            )
        streams = streams_of(x, seeds, generator)
        guesses = self.tally(x, [n0] * len(x), streams)[:, :-1].argmax(1)
        # Fresh draws: the streams go on where the selection left them.
        hits = self.tally(x, [n] * len(x), streams)[:, :-1].gather(1, guesses[:, None])[:, 0]
        p_low = lower_bound(hits.cpu().numpy(), n, alpha)
        radii = torch.from_numpy(self.noise.radius(p_low, self.sigma)).to(x.device)
        certain = radii > 0
        return guesses.where(certain, ABSTAIN), radii

    def predict(
        self,
        x: Tensor,
        n: Count = 1000,
        alpha: Probability = 0.001,
        *,
        seeds: Sequence[int] | None = None,
        generator: Generator | None = None,
    ) -> Tensor:
        """Classes, or -1 for abstained: PREDICT, for each image. int64 (N,).

        With probability at least 1 - alpha over the noise, for each image alone: either it is
        abstained on, or the class is g's. Draws with non-finite logits compete as one class
        more, which is never returned.
        """
        require("alpha", alpha, LEVEL)
        require_draws("n", n)
        counts = self.tally(x, [n] * len(x), streams_of(x, seeds, generator))
        top, second = counts.topk(2).values.cpu().numpy().T
        sure = torch.from_numpy(rank_p_value(top, second) <= alpha).to(x.device)
        winners = counts.argmax(1)
        return winners.where(sure & (winners < self.num_classes), ABSTAIN)

    def counts(
        self,
        x: Tensor,
        n: Count,
        *,
        seeds: Sequence[int] | None = None,
        generator: Generator | None = None,
    ) -> Tensor:
        """How often f returned each class in `n` draws around each image, exactly; int64 (N, K).

        Rows sum to `n` less the draws whose logits were not finite.
        """
        require_draws("n", n)
        return self.tally(x, [n] * len(x), streams_of(x, seeds, generator))[:, :-1]

    def tally(self, x: Tensor, draws: Sequence[int], streams: Sequence[Generator]) -> Tensor:
        """Counts per image and class, (N, K + 1): the last column holds non-finite draws.

        Image i is drawn `draws[i]` times, from where its stream is. Nothing here waits for the
        device.
        """
        begun = [(stream, stream.get_state()) for stream in streams]

        def once() -> Tensor:
            for stream, state in begun:
                stream.set_state(state)
            return self._tally(x, draws, streams)

        return self.room.within(once, x)

    def _tally(self, x: Tensor, draws: Sequence[int], streams: Sequence[Generator]) -> Tensor:
        width = self.num_classes + 1
        counts = torch.zeros(len(x) * width, dtype=torch.int64, device=x.device)
        one = torch.ones(1, dtype=torch.int64, device=x.device)
        total = torch.tensor(draws, dtype=torch.int64).cumsum(0)
        ends = total.to(x.device, non_blocking=True)
        row = 0
        with ExitStack() as stack:
            for module in modules_of(self.model):
                stack.enter_context(crafting(module, mode="eval"))
            stack.enter_context(torch.inference_mode())
            for noisy in self._noisy(x, draws, streams):
                labels = self._labels(noisy)
                # Draws of image i fill the rows before ends[i]: the row's number tells the image.
                rows = torch.arange(row, row + len(noisy), device=x.device)
                owners = torch.searchsorted(ends, rows, right=True)
                counts.index_add_(0, owners * width + labels, one.expand(len(noisy)))
                row += len(noisy)
        return counts.view(len(x), width)

    def _labels(self, noisy: Tensor) -> Tensor:
        """Classes of a batch, (B,); `num_classes` where logits are not finite."""
        logits = self.room.ask(self.model, noisy)
        if logits.shape != (len(noisy), self.num_classes):
            raise ValueError(
                f"the model returned {tuple(logits.shape)} for {len(noisy)} images, where "
                f"num_classes = {self.num_classes} wants ({len(noisy)}, {self.num_classes}). "
                "Give Smoothed the number of classes of its model."
            )
        return logits.argmax(1).where(logits.isfinite().all(1), self.num_classes)

    def _noisy(
        self, x: Tensor, draws: Sequence[int], streams: Sequence[Generator]
    ) -> Iterator[Tensor]:
        """`draws[i]` noisy copies of each image i, in turn; in full batches but for the last.

        One buffer serves all batches: each is overwritten when the next is asked for. Another
        holds the draws of a block: fresh memory for each would cost a fifth of the time.
        """
        size = self.room.portion(min(self.batch_size, sum(draws)))
        buffer = x.new_empty((size, *x.shape[1:]))
        most = max(draws, default=1)
        rows = min(BLOCK, most, max(1, NUMBERS // x[:1].numel()) if len(x) else 1)
        block = x.new_empty((rows, *x.shape[1:]))
        filled = 0
        for image, n, stream in zip(x, draws, streams, strict=True):
            for drawn in range(0, n, rows):
                noise = block[: n - drawn]
                self.noise.fill(noise, stream)
                while len(noise):
                    piece, noise = noise[: size - filled], noise[size - filled :]
                    end = filled + len(piece)
                    torch.add(image, piece, alpha=self.sigma, out=buffer[filled:end])
                    filled = end % size
                    if filled == 0:
                        yield buffer
        if filled:
            yield buffer[:filled]


def streams_of(
    x: Tensor, seeds: Sequence[int] | None, generator: Generator | None
) -> list[Generator]:
    """One generator per image, on its device."""
    if x.dtype not in (torch.float32, torch.float64) or x.ndim < 2:
        raise ValueError(
            f"x has dtype {x.dtype} and shape {tuple(x.shape)}; smoothing takes float32 or float64 "
            "images, which noise is rounded to, of shape (N, C, H, W) or (N, D). Write x.float(), "
            "divided by 255 for bytes."
        )
    if seeds is not None and generator is not None:
        raise ValueError("seeds and generator were both given; give one, seeds fix all the noise.")
    if seeds is None:
        where = generator.device if generator is not None else None
        drawn = torch.randint(2**63 - 1, (len(x),), generator=generator, device=where)
        seeds = drawn.tolist()
    if len(seeds) != len(x):
        raise ValueError(f"{len(seeds)} seeds were given for {len(x)} images; give one per image.")
    return [Generator(x.device).manual_seed(int(seed)) for seed in seeds]

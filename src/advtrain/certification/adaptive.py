"""Which radius of a list is certified, on as few draws as that takes: `sequential`, on a network.

An image asks for draws until the test for its class is settled. Those of many images share forward
passes; one that is settled leaves its place to the next, so the device stays full.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Generator, Tensor

from advtrain.certification.bounds import require_draws
from advtrain.certification.question import require_radii
from advtrain.certification.sequential import FIRST, Plan, plan
from advtrain.certification.smoothing import ABSTAIN, Smoothed, streams_of
from advtrain.ranges import Count, Probability

FULL = 4
"""Batches that the images at work fill together at their first look; each look ends in a part of
one."""


class Answers(NamedTuple):
    """Of N images: classes, -1 where abstained on; certified radii; draws, the first n0 included.

    int64, float64 and int64, of shape (N,).
    """

    predictions: Tensor
    radii: Tensor
    draws: Tensor


def certify_radii(
    smoothed: Smoothed,
    x: Tensor,
    radii: Sequence[float],
    n0: Count = 100,
    n: Count = 100_000,
    alpha: Probability = 0.001,
    *,
    seeds: Sequence[int] | None = None,
    generator: Generator | None = None,
) -> Answers:
    """The largest of `radii` that is certified for each image, from at most n0 + n draws.

    With probability at least 1 - alpha over the noise, for each image alone: either it is
    abstained on (class -1, radius 0), or g returns the class given at every point closer to the
    image than the radius, points outside the box included. The radius is one of `radii`, or 0
    where the class is certain and none of them is: 0 always belongs to the list.

    The class is guessed from `n0` draws, the same as in `Smoothed.certify`, and its rate tested on
    fresh ones, see `sequential`. x, seeds, generator and devices are as in `Smoothed`; an image
    gives the same answer and number of draws alone as among others.

    ValueError: as `Smoothed.certify`; radii empty, negative, not in ascending order, or beyond
    what n draws can certify.
    """
    predictions = torch.full((len(x),), ABSTAIN, dtype=torch.int64, device=x.device)
    found = Answers(predictions, predictions.double(), predictions.clone())
    streams = streams_of(x, seeds, generator)
    for settled, answers in settle(smoothed, x, radii, n0, n, alpha, streams=streams):
        for whole, part in zip(found, answers, strict=True):
            whole[settled] = part
    return found


def settle(
    smoothed: Smoothed,
    x: Tensor,
    radii: Sequence[float],
    n0: int,
    n: int,
    alpha: float,
    *,
    streams: Sequence[Generator],
) -> Iterator[tuple[list[int], Answers]]:
    """`certify_radii`, as it comes: places of images, and the answers on these.

    After each look at the images at work, which is when the device is waited for; there may be
    none. `streams`: the noise of each image.
    """
    require_draws("n0", n0)
    needed = partial(smoothed.noise.rate, sigma=smoothed.sigma)
    largest = smoothed.noise.largest(smoothed.sigma, n, alpha)
    require_radii(radii, n, alpha, largest=largest, needed=needed)
    asked = np.array([0.0, *(each for each in radii if each > 0)])
    test = plan([needed(each) for each in asked.tolist()], n, alpha)
    pool = Pool(smoothed, x, streams, n0, test)
    while pool.fill(max(1, FULL * smoothed.batch_size // FIRST)):
        done, classes, claimed, draws = pool.advance()
        certain = torch.from_numpy(claimed > 0).to(x.device)
        reached = np.where(claimed > 0, asked[claimed - 1], 0.0)
        answers = Answers(
            classes.where(certain, ABSTAIN),
            torch.from_numpy(reached).to(x.device),
            torch.from_numpy(draws).to(x.device),
        )
        yield done, answers


class Pool:
    """Images that are drawn until `test` is settled for each; others wait for their places."""

    def __init__(
        self, smoothed: Smoothed, x: Tensor, streams: Sequence[Generator], n0: int, test: Plan
    ) -> None:
        self.smoothed, self.x, self.streams, self.test = smoothed, x, streams, test
        self.pieces = np.array([n0, *np.diff(test.looks, prepend=0)])
        """Draws before each look; the first is at the counts of all classes, for a guess."""
        self.guesses = torch.empty(len(x), dtype=torch.int64, device=x.device)
        self.look, self.hits, self.low = np.zeros((3, len(x)), dtype=np.int64)
        self.high = np.full(len(x), test.yes.shape[1])
        self.at_work = np.arange(0)
        self.begun = 0  # images that had a place so far

    def fill(self, places: int) -> int:
        """Give free places to those who wait; the number of images at work."""
        until = min(len(self.x), self.begun + places - len(self.at_work))
        self.at_work = np.append(self.at_work, np.arange(self.begun, until))
        self.begun = until
        return len(self.at_work)

    def advance(self) -> tuple[list[int], Tensor, np.ndarray, np.ndarray]:
        """Draw until the next look of each image at work.

        Those settled by it, which leave: their places in x, the classes guessed, how many
        thresholds are claimed, and all draws.
        """
        now = self.at_work
        looked = self.look[now] > 0  # others are guessed
        index = torch.from_numpy(now).to(self.x.device)
        streams = [self.streams[each] for each in now.tolist()]
        pieces = self.pieces[self.look[now]].tolist()
        counts = self.smoothed.tally(self.x[index], pieces, streams)[:, :-1]
        old = torch.from_numpy(looked).to(self.x.device)
        guesses = self.guesses[index].where(old, counts.argmax(1))
        self.guesses[index] = guesses
        fresh = counts.gather(1, guesses[:, None])[:, 0].cpu().numpy()  # waits for the device
        old_ones = now[looked]
        self.hits[old_ones] += fresh[looked]
        self.low[old_ones], self.high[old_ones] = self.test.settle(
            self.look[old_ones] - 1, self.hits[old_ones], self.low[old_ones], self.high[old_ones]
        )
        self.look[now] += 1
        settled = (self.low[now] >= self.high[now]) | (self.look[now] == len(self.pieces))
        done, self.at_work = now[settled], now[~settled]
        classes = self.guesses[torch.from_numpy(done).to(self.x.device)]
        return done.tolist(), classes, self.low[done], self.pieces.cumsum()[self.look[done] - 1]

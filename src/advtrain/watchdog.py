"""Training that goes wrong, seen after each epoch: catastrophic overfitting, divergence, no gain.

Single-step training may lose its robustness within an epoch and for good, while it goes on rising
against its own attack (Wong et al. 2020, https://arxiv.org/abs/2001.03994, sec. 5.4). Seen by
attacks of several steps on images held out: Andriushchenko and Flammarion 2020,
https://arxiv.org/abs/2007.02617.

Differs: Wong et al. attack the first training batch of each epoch, and compare with the epoch
before; here the validation images (`validate`), and the best epoch so far, so that a slow fall is
seen, too.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Literal

from advtrain.ranges import Count, Probability

CERTAIN = 3.0  # standard errors of the difference of two accuracies


@dataclass(frozen=True)
class Watchdog:
    """What to do when training goes wrong.

    A fall of adversarial accuracy by more than `drop`, or half of it where that is less, and by
    more than `CERTAIN` standard errors, below the best epoch is collapse; where clean accuracy
    falls as far, too, divergence; and so it is where clean accuracy is clearly below half of its
    best, however little robustness there was to lose. A method that does not aim at robustness can
    only diverge.
    Epochs with less than half of the best clean accuracy are no measure: a network at chance gives
    one class whatever is done to its images, and loses that robustness by learning.
    `action`: `warn` says so and trains on; `stop` ends training, the checkpoint of the best epoch
    being kept; `back` returns to the state of the best epoch and trains on from there, at most
    `attempts` times, then stops. Losses that are not finite end training with an error where the
    action is `warn`. `patience`: training also ends after so many judged epochs without a better
    one (null: never), which is the early stopping of Rice et al. 2020.
    """

    action: Literal["warn", "stop", "back"]
    drop: Probability
    attempts: Count
    patience: Count | None

    @property
    def needs_validation(self) -> bool:
        """Whether training without validation images could not do as it was told."""
        return self.action != "warn" or self.patience is not None

    def alarm(
        self, reports: Sequence[Mapping[str, float]], images: int, judged_by: str
    ) -> str | None:
        """What the newest of `reports` says against the best before it; None if nothing.

        `images`: how many each accuracy is of. `judged_by`: the accuracy that the method aims at;
        another one may fall as it likes.
        """
        judged = [report for report in reports if judged_by in report]
        if len(judged) < 2 or not images or judged[-1] is not reports[-1]:
            return None
        *before, now = judged
        peak = max(judged, key=lambda report: report[CLEAN])
        before = [report for report in before if report[CLEAN] >= peak[CLEAN] / 2]
        if not before:
            return None
        best = max(before, key=lambda report: report[judged_by])
        high, low = best[judged_by], now[judged_by]
        least = max(min(self.drop, high / 2), CERTAIN * _error(high, low, images))
        chance = CERTAIN * _error(peak[CLEAN], now[CLEAN], images)
        lost = peak[CLEAN] / 2 - now[CLEAN] > chance
        if high - low <= least:
            if not lost:
                return None
            best = peak
            high = best[judged_by]
        diverged = lost or best[CLEAN] - now[CLEAN] > least
        robust = (
            f"{AIMS.get(judged_by, judged_by)} {100 * high:.1f} % in epoch {best['epoch']:.0f} and "
            f"{100 * low:.1f} % now, "
        )
        return (
            f"{'training diverged' if diverged else 'robustness collapsed'} in epoch "
            f"{now['epoch']:.0f}: {robust if judged_by != CLEAN else ''}clean accuracy "
            f"{100 * best[CLEAN]:.1f} % and {100 * now[CLEAN]:.1f} %."
        )


CLEAN = "val_acc"
AIMS = {"val_adv_acc": "adversarial accuracy", "val_noise_acc": "accuracy under noise"}
"""Metrics that a method may aim at, in words."""


def _error(before: float, after: float, images: int) -> float:
    """The standard error of the difference of two accuracies, of `images` each."""
    return sqrt((before * (1 - before) + after * (1 - after)) / images)

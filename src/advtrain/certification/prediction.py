"""The PREDICT study: how often PREDICT answers, is right, and says what the smoothed classifier
says, for several numbers of draws (Cohen et al. 2019, https://arxiv.org/abs/1902.02918, table 5).

Of each image, PREDICT with n draws is correct if it returns the label, and accurate if it returns
g(x), the class that is most probable under noise. In place of g(x), which nobody knows, stands the
class counted most often in many further draws, which never abstains. So an image is in exactly one
of five categories: correct or incorrect, accurate or inaccurate, or abstained on.

Differs: the authors' script compares with PREDICT of 100,000 draws, which may abstain; then
no answer is accurate. Here as their text has it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypedDict

from advtrain.certification.lines import Format, clock, columns, integer, seconds
from advtrain.certification.log import PREDICT_HEADER, require_classes, require_correct
from advtrain.ranges import Count, Positive, Probability


@dataclass(frozen=True)
class PredictStudy:
    """PREDICT for each number of draws in `n`, on `size` examples (null: all of the evaluation).

    `gold_draws`: independent of those, how many decide what the smoothed classifier says.
    ValueError: no `n`, or not rising; gold_draws not above the largest.
    """

    sigma: Positive
    n: list[Count]
    alpha: Probability
    gold_draws: Count
    size: Count | None
    batch_size: Count

    def __post_init__(self) -> None:
        if not self.n or any(b <= a for a, b in zip(self.n, self.n[1:], strict=False)):
            raise ValueError(
                f"n={list(self.n)} is refused; allowed are one or more numbers of draws, each "
                "larger than the one before. Write n=[100,1000,10000]."
            )
        if self.gold_draws <= self.n[-1]:
            raise ValueError(
                f"gold_draws={self.gold_draws} is refused; what is accurate must be settled by "
                f"more draws than the n={self.n[-1]} that are judged by it. Use 100000."
            )


@dataclass(frozen=True)
class Prediction:
    """The class returned for image `index`; -1 where it was abstained on. A line of predict/."""

    index: int
    label: int
    prediction: int
    seconds: float

    @property
    def correct(self) -> bool:
        return self.prediction == self.label

    @property
    def told(self) -> str:
        return f"label {self.label}, predict {self.prediction}"

    def line(self) -> str:
        told = (self.index, self.label, self.prediction, int(self.correct))
        return "\t".join([*map(str, told), clock(self.seconds)])


def parse(line: str) -> Prediction:
    """The prediction of one line without its newline. ValueError says what is wrong with it."""
    told = columns(line, 5)
    index, label, prediction, correct = (integer(each) for each in told[:4])
    require_classes(index, label, prediction)
    require_correct(correct, label, prediction)
    return Prediction(index, label, prediction, seconds(told[4]))


PREDICTIONS = Format(PREDICT_HEADER, parse, "a log of predictions", "predicted")


class Shares(TypedDict):
    """How many of the examples are in which category, as fractions that sum to 1.

    seconds: that the predictions took, all together.
    """

    n: int
    correct_accurate: float
    correct_inaccurate: float
    incorrect_accurate: float
    incorrect_inaccurate: float
    abstain: float
    seconds: float


def categorise(n: int, predictions: Sequence[Prediction], gold: Mapping[int, int]) -> Shares:
    """The categories of predictions from `n` draws; `gold`: by index, the class of g there.

    ValueError: no predictions, or one of an image that `gold` lacks.
    """
    if not predictions or any(each.index not in gold for each in predictions):
        raise ValueError(
            f"{len(predictions)} predictions meet {len(gold)} classes to hold them against. Give "
            "at least one prediction, and the most probable class for each."
        )
    answered = [each for each in predictions if each.prediction != -1]

    def share(correct: bool, accurate: bool) -> float:
        hits = ((each.correct, each.prediction == gold[each.index]) for each in answered)
        return sum(hit == (correct, accurate) for hit in hits) / len(predictions)

    return Shares(
        n=n,
        correct_accurate=share(True, True),
        correct_inaccurate=share(True, False),
        incorrect_accurate=share(False, True),
        incorrect_inaccurate=share(False, False),
        abstain=(len(predictions) - len(answered)) / len(predictions),
        seconds=round(sum(each.seconds for each in predictions), 3),
    )

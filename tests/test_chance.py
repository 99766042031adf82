"""Agreement by luck: against every order of small samples, and of one answer to everything."""

from itertools import permutations
from math import sqrt

import pytest
import torch
from torch import Tensor

from advtrain.chance import CERTAIN, by_luck, expected


def drawn(n: int, classes: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(classes, (n,), generator=generator)


@pytest.mark.parametrize("seed", range(3))
def test_what_luck_gives_is_the_mean_over_all_orders(seed):
    answers, labels = drawn(6, 3, seed), drawn(6, 3, seed + 10)
    orders = torch.tensor(list(permutations(range(6))))
    right = (answers[orders] == labels).sum(1).double()
    assert expected(answers, labels) == pytest.approx(float(right.mean()))
    spread = sqrt(5 / 6) * float(right.std(correction=0))  # which the formula has over n, not n - 1
    for hits in range(7):
        ordered = next((answers[order] for order in orders[right == hits]), None)
        if ordered is not None:
            beyond = hits - float(right.mean()) > CERTAIN * spread
            assert by_luck(ordered, labels) != beyond


@pytest.mark.parametrize("answer", range(4))
def test_one_answer_to_everything_is_by_luck_however_common_its_label(answer):
    labels = torch.tensor([0] * 70 + [1] * 20 + [2] * 10)
    answers = torch.full_like(labels, answer)
    assert by_luck(answers, labels)
    assert expected(answers, labels) == pytest.approx(int((labels == answer).sum()))


def test_where_all_labels_are_the_same_nothing_can_be_said():
    assert not by_luck(torch.zeros(9, dtype=torch.int64), torch.zeros(9, dtype=torch.int64))
    empty = torch.zeros(0, dtype=torch.int64)
    assert not by_luck(empty, empty) and expected(empty, empty) == 0


def test_shuffled_answers_are_mostly_by_luck_and_right_ones_never():
    labels = drawn(128, 10, 0)
    lucky = [by_luck(drawn(128, 10, seed), labels) for seed in range(1, 201)]
    assert 0.93 <= sum(lucky) / 200 < 1
    assert not by_luck(labels, labels) and by_luck((labels + 1) % 10, labels)
    few = torch.arange(10)
    assert not by_luck(few, few)

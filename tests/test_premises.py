"""What certificates take for granted: networks that give no independent answers are told."""

from itertools import count

import pytest
import torch
from torch import nn

from advtrain.certification.premises import COPIES, doubts, shared_draws


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 3)).eval()


def masked(shape):
    """A linear network whose pixels are dropped by a mask of `shape`, given the batch."""
    inner = network()

    def model(x):
        return inner(x * (torch.rand(shape(x)) < 0.5))

    return model


def own(x):
    return x.shape


def shared(x):
    return x.shape[1:]


@pytest.mark.parametrize(("shape", "together"), [(own, False), (shared, True)])
def test_draws_of_a_batch_and_of_its_rows_are_told_apart(shape, together):
    x = torch.rand(1, 1, 4, 4)
    for seed in range(20):
        torch.manual_seed(seed)
        assert shared_draws(masked(shape), x) == together
    ((check, message),) = doubts(masked(shape), x, {"stochastic"})
    assert check == "stochastic"
    assert ("No certificate holds" in message) == together


def test_of_a_network_without_complaints_nothing_is_asked_and_nothing_said():
    def model(x):
        raise AssertionError

    assert list(doubts(model, torch.rand(1, 16), {"probabilities", "zero_gradient"})) == []


@pytest.mark.parametrize("check", ["batch_dependent", "mode_dependent"])
def test_answers_that_hang_on_others_or_on_the_mode_are_said_to_void_certificates(check):
    ((found, message),) = doubts(network(), torch.rand(1, 1, 4, 4), {check})
    assert found == check and "no certificate holds" in message.lower()


def test_batches_of_copies_are_small():
    sizes, draws = [], count()

    def model(x):
        sizes.append(len(x))
        return torch.full((len(x), 2), float(next(draws)))

    assert shared_draws(model, torch.rand(1, 4))
    assert sizes == [COPIES, COPIES]

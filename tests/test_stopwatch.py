"""Samples of a bounded time, by a clock that goes on where the test says so."""

import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from advtrain.stopwatch import Hurried, OutOfTime, Stopwatch

CPU = torch.device("cpu")


@pytest.fixture
def spend(monkeypatch: Any) -> Callable[[float], None]:
    """Lets so many seconds go by."""
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def go_on(seconds: float) -> None:
        now[0] += seconds

    return go_on


class Asked:
    """A network that takes a quarter of a second for an image, and `program` once for each size."""

    def __init__(self, spend: Callable[[float], None], program: float) -> None:
        self.spend, self.program = spend, program
        self.sizes: list[int] = []

    def __call__(self, x: Tensor) -> Tensor:
        self.spend(0.25 * len(x) + self.program * (len(x) not in self.sizes))
        self.sizes.append(len(x))
        return x


def passing(watch: Stopwatch, network: Asked, times: int) -> Callable[[int], None]:
    """What asks the network so many times about so many images."""

    def action(images: int) -> None:
        for _ in range(times):
            watch.room.ask(network, torch.zeros(images, 2))

    return action


@pytest.mark.parametrize("seconds, sizes", [(100.0, [8, 100]), (24.0, [8])])
def test_more_images_are_asked_about_where_there_is_time(seconds, sizes, spend):
    watch, network = Stopwatch(CPU, seconds, compiled=False), Asked(spend, program=0)
    assert watch.each(passing(watch, network, 1), 8, 100) == 0.25
    assert network.sizes == sizes and watch.compiling == 0


def test_of_a_compiled_network_programs_are_no_part_of_the_time(spend):
    watch, network = Stopwatch(CPU, 60.0, compiled=True), Asked(spend, program=500.0)
    assert watch.each(passing(watch, network, 2), 8, 80) == 0.5
    assert network.sizes == [8] * 4 + [80] * 4 and watch.compiling == 1000.0


@pytest.mark.parametrize("compiled", [False, True])
def test_without_time_for_the_first_images_nothing_is_known(compiled, spend):
    watch, network = Stopwatch(CPU, 10.0, compiled), Asked(spend, program=500.0)
    assert watch.each(passing(watch, network, 1000), 8, 80) is None
    assert len(network.sizes) == 7  # one that is not counted, five in 10 s, one that ends later


def test_a_larger_sample_that_takes_too_long_leaves_the_figure_of_the_smaller(spend):
    watch, network = Stopwatch(CPU, 25.0, compiled=False), Asked(spend, program=0)

    def growing(images: int) -> None:
        passing(watch, network, images)(images)

    assert watch.each(growing, 4, 20) == 1.0


def test_kinds_of_passes_are_told_apart_by_what_programs_are(spend):
    room, x = Hurried(), torch.zeros(4, 2)
    network = Asked(spend, program=0)
    room.hurry(0.5)
    with torch.no_grad():
        room.ask(network, x)
    room.ask(network, x)
    room.ask(network, x.clone().requires_grad_())
    room.ask(network, x)  # once more: a second goes by, and half of one was left
    with pytest.raises(OutOfTime):
        room.ask(network, x)

"""Restarts of PGD, MIM, Adam's steps and GAMA: who takes part in a run, and what comes back."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from math import inf, nan
from typing import Any

import pytest
import torch
from attack_cases import batch, between, generator, network
from conftest import Digits
from torch import Tensor, nn

from advtrain import norms, sharing
from advtrain.attacks import restarts as module
from advtrain.attacks import starts
from advtrain.attacks.adam import adam_pgd
from advtrain.attacks.apgd import apgd
from advtrain.attacks.best import Best
from advtrain.attacks.fab import fab
from advtrain.attacks.gama import gama_fw, gama_pgd
from advtrain.attacks.mim import mim
from advtrain.attacks.objectives import cross_entropy, expected, guided, kl_to_clean, margin
from advtrain.attacks.pgd import pgd
from advtrain.attacks.square import square
from advtrain.attacks.survivors import Rated, until_fooled_or_best
from advtrain.conditions import Condition
from advtrain.modes import crafting
from advtrain.sharing import Shared
from advtrain.threat import L2, Linf

Attack = Callable[..., Tensor]

SIZED: dict[str, Attack] = {
    "pgd": partial(pgd, step_size=0.05),
    "pgd_any": partial(pgd, step_size=0.05, keep="any", objective=partial(margin)),
    "pgd_l2": partial(pgd, threat=L2(0.7), step_size=0.3),
    "mim": partial(mim, step_size=0.05, decay=1.0, start=starts.uniform),
    "adam": partial(adam_pgd, step_size=0.05),
}
ATTACKS: dict[str, Attack] = {
    **SIZED,
    "targeted": partial(pgd, threat=Linf(0.25), step_size=0.1, targeted=True),
    "gama_pgd": gama_pgd,
    "gama_pgd_any": partial(gama_pgd, keep="any"),
    "gama_fw": gama_fw,
}
every_attack = pytest.mark.parametrize("name", ATTACKS)


class Seen(nn.Module):
    """A classifier that notes how many images each of its passes is of."""

    def __init__(self, inner: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.inner = inner
        self.sizes: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.sizes.append(len(x))
        return self.inner(x)


def half_right(images: int = 8, wrong: int = 5) -> tuple[Tensor, Tensor]:
    """Images of `network`; the labels of the first `wrong` are not what it answers."""
    x, _ = batch(images)
    y = network().eval()(x).argmax(1)
    y[:wrong] = (y[:wrong] + 1) % 4
    return x, y


@pytest.mark.parametrize("name", [*SIZED, "gama_pgd", "gama_pgd_any", "gama_fw"])
def test_later_runs_are_for_those_that_stand_in_full_batches(name: str) -> None:
    (x, y), model = half_right(), Seen(network()).eval()
    attack = partial(ATTACKS[name], threat=Linf(1e-6), steps=3)
    attack(model, x, y, restarts=5, generator=generator())
    clean = [8] if name.startswith("gama") else []  # for p(x)
    assert model.sizes == clean + [8] * 4 + [8] * 4 + [4] * 4  # 4 more runs of 3 images are 12 rows


@every_attack
def test_what_comes_back_is_as_if_all_images_were_in_all_runs(
    name: str, digits: Digits, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x = copy.deepcopy(digits.model).double(), digits.x[:60].double()  # rounding aside
    targeted = name == "targeted"
    y, found = (digits.y[:60] + targeted) % 10, []
    attack = partial(ATTACKS[name], **({"threat": Linf(0.12)} if name != "targeted" else {}))
    attack = partial(attack, model, x, y, steps=4)

    def stands(points: Tensor) -> Tensor:
        return (model(points).argmax(1) == y) != targeted

    for packed in (True, False):
        if not packed:
            monkeypatch.setattr(module, "_apart", lambda model, x: False)
        draws = generator()
        found.append((attack(restarts=4, generator=draws), draws.get_state()))
    assert torch.allclose(found[0][0], found[1][0], atol=1e-9)
    assert torch.equal(found[0][1], found[1][1])
    four, one = stands(found[0][0]), stands(attack(generator=generator()))
    assert not (four & ~one).any() and 0 < four.sum() < one.sum()


@pytest.mark.parametrize("name", [*SIZED, "targeted"])
def test_images_fare_alone_as_together(name: str, digits: Digits) -> None:
    model, x, y = copy.deepcopy(digits.model).double(), digits.x[:20].double(), digits.y[:20]
    attack = partial(ATTACKS[name], **({"threat": Linf(0.12)} if name != "targeted" else {}))

    def anew() -> Attack:
        """With starts by the number of the run alone."""
        draws = generator()

        def start(x: Tensor, threat: Any, generator: Any = None) -> Tensor:
            noise = torch.rand(x.shape[1:], generator=draws, dtype=x.dtype)
            return x + 0.24 * (noise - 0.5)

        return partial(attack, model, steps=3, restarts=4, start=start)

    together = anew()(x, y)
    alone = torch.cat([anew()(x[i : i + 1], y[i : i + 1]) for i in range(len(x))])
    assert torch.allclose(alone, together, atol=1e-9)


def told(model: nn.Module, x: Tensor, condition: Condition) -> Tensor:
    """As a conditional network, with a lambda for each row."""
    assert len(x) == len(condition.lambdas)
    return model(x)


def with_lambdas(model: nn.Module, images: int) -> Callable[[Tensor], Tensor]:
    return partial(told, model, condition=Condition(torch.linspace(0.1, 1, images), 0))


def test_images_that_fall_at_once_leave_the_draws_behind_them_as_they_are() -> None:
    (x, y), draws = half_right(8, wrong=8), []
    for model in (network().eval(), with_lambdas(network().eval(), 8)):  # packed, and not
        source = generator()
        gama_pgd(model, x, y, threat=Linf(1e-6), steps=1, restarts=3, generator=source)
        draws.append(source.get_state())
    assert torch.equal(*draws)


def own(model: Callable[[Tensor], Tensor], x: Tensor, y: Tensor) -> Callable[[Tensor], Tensor]:
    """An objective that nobody knows: it may couple the images."""
    return cross_entropy(model, x, y)


@contextmanager
def sharing_of_two(images: int) -> Iterator[None]:
    token = sharing._shared.set(Shared(2 * images, slice(0, None, 2), generator()))
    try:
        yield
    finally:
        sharing._shared.reset(token)


@pytest.mark.parametrize(
    "objective",
    [guided(distance=norms.nuclear_norm, weight=1.0), kl_to_clean, own, partial(own)],
    ids=["guided", "kl", "own", "partial of own"],
)
def test_runs_of_what_may_couple_images_are_for_all(objective: Any) -> None:
    (x, y), model = half_right(), Seen(network()).eval()
    pgd(model, x, y, threat=Linf(1e-6), steps=3, step_size=1e-7, restarts=3, objective=objective)
    assert set(model.sizes) == {8} and len(model.sizes) in (12, 13)


@pytest.mark.parametrize("case", ["in training mode", "with a lambda each", "of two processes"])
def test_runs_for_images_that_are_tied_to_their_batch_are_for_all(case: str) -> None:
    (x, y), model = half_right(), Seen(network()).train(case == "in training mode")
    asked = with_lambdas(model, 8) if case == "with a lambda each" else model
    keys = {"threat": Linf(1e-6), "steps": 3, "restarts": 3, "weight": 0.0}
    with sharing_of_two(8) if case == "of two processes" else nullcontext():
        gama_pgd(asked, x, y, **keys)
        with crafting(model, "train" if model.training else "eval"):
            gama_pgd(asked, x, y, **keys)
    assert model.sizes == [8] * 24


@pytest.mark.parametrize("attack", [apgd, partial(fab, targets=1), partial(square, queries=5)])
def test_attacks_that_pack_rows_anew_refuse_a_network_with_a_lambda_each(attack: Any) -> None:
    (x, y), model = half_right(), network().eval()
    keys: dict[str, Any] = {"threat": Linf(0.1)} | (
        {} if "queries" in getattr(attack, "keywords", {}) else {"steps": 2}
    )
    assert attack(partial(model), x, y, **keys).shape == x.shape
    with pytest.raises(ValueError, match=r"told a lambda for each row of the batch\. Use pgd"):
        attack(with_lambdas(model, 8), x, y, **keys)


def test_a_mean_over_draws_of_a_known_objective_is_known() -> None:
    (x, y), model = half_right(), Seen(network()).eval()
    mean = expected(objective=margin, samples=2)
    pgd(model, x, y, threat=Linf(1e-6), steps=1, step_size=1e-7, restarts=2, objective=mean)
    assert model.sizes == [8] * 4 + [3] * 4


# Low precision.


@pytest.mark.parametrize("targeted", [False, True])
def test_in_low_precision_a_choice_fools_where_it_does_in_float32(targeted: bool) -> None:
    model, x, exact, rounded = between()
    y = torch.arange(400) % 2
    best = Best(model, x, y, targeted=targeted)
    best.offer(x, torch.zeros(400), model(x))
    hit, true_hit = ((answers == y) == targeted for answers in (rounded, exact))
    assert torch.equal(best.certain(), hit & true_hit) and not best.fooled.any()


def test_in_low_precision_runs_go_on_for_those_that_only_rounding_fools() -> None:
    model, x, exact, rounded = between()
    wrong = torch.arange(400) < 100
    y, seen = torch.where(wrong, 1 - exact, exact), Seen(model).eval()
    keys = {"steps": 1, "step_size": 0.0, "restarts": 3, "start": starts.clean}
    pgd(seen, x, y, threat=Linf(0.0), **keys)
    hits = rounded != y
    fallen = int((wrong & hits).sum())
    asked = int(hits.sum()) + 2 * (int(hits.sum()) - fallen)  # in float32, about their hits
    assert sum(seen.sizes) == 2 * (400 + 2 * (400 - fallen)) + asked
    assert 0 < fallen < hits.sum()


# The choice.


def test_of_points_that_fool_nobody_the_first_of_highest_gain_is_kept() -> None:
    gains = torch.tensor([[1.0, 3.0, 3.0], [nan, -inf, nan], [inf, 0.0, 9.0], [0.0, inf, 2.0]])
    hits = torch.tensor([[False] * 3, [False] * 3, [False] * 3, [False, False, True]])

    def run(index: Tensor, number: Tensor) -> Rated:
        return Rated(number[:, None] + 1.0, hits[index, number], gains[index, number])

    nobody = torch.zeros(4, dtype=torch.bool)
    assert until_fooled_or_best(torch.zeros(4, 1), nobody, 3, run).flatten().tolist() == [
        2,
        0,
        1,
        3,
    ]


def test_several_runs_of_an_image_in_one_batch_are_compared() -> None:
    gains, fooled = torch.tensor([0.0, 2.0, 5.0, 5.0, 1.0]), torch.tensor([True, True, True, False])

    def run(index: Tensor, number: Tensor) -> Rated:
        none = torch.zeros_like(index, dtype=torch.bool)
        return Rated(number[:, None] + 1.0, none, gains[number])

    assert until_fooled_or_best(torch.zeros(4, 1), fooled, 5, run).flatten().tolist() == [
        0,
        0,
        0,
        3,
    ]

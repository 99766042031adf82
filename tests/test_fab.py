from copy import deepcopy
from functools import partial
from math import inf, nan
from typing import Any

import pytest
import torch
from attack_cases import batch, every_threat, generator, linear, network
from scipy.optimize import linprog
from test_attack_contract import HostReads
from torch import Tensor, nn

from advtrain.attacks import survivors
from advtrain.attacks.apgd import apgd
from advtrain.attacks.fab import closest, fab
from advtrain.attacks.pgd import pgd
from advtrain.modes import crafting
from advtrain.precision import low_precision
from advtrain.threat import L1, L2, Ball, Linf

FREE = [Linf(0.1, -inf, inf), L2(0.5, -inf, inf), L1(0.5, -inf, inf)]
either = pytest.mark.parametrize("targets", [None, 9], ids=["fab", "fab_t"])
every_free = pytest.mark.parametrize("threat", FREE, ids=lambda threat: threat.norm)


def labels(model: nn.Module, x: Tensor) -> Tensor:
    """Those that the model gives, so that no image is wrong already."""
    with torch.no_grad():
        return model(x).argmax(1)


def fooled(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return labels(model, x) != y


class Counted(nn.Module):
    """Counts the images that pass, and keeps them."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.seen: list[Tensor] = []
        self.backward_passes = 0

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x.detach().clone())
        logits = self.model(x)
        if logits.requires_grad:
            logits.register_hook(self._count)
        return logits

    def _count(self, gradient: Tensor) -> None:
        self.backward_passes += len(gradient)

    @property
    def forward_passes(self) -> int:
        return sum(len(x) for x in self.seen)


@either
@every_free
@pytest.mark.parametrize("classes", [2, 3, 5])
def test_on_a_linear_model_the_distance_is_the_margin_over_the_dual_norm(
    threat: Ball, classes: int, targets: int | None
) -> None:
    model, x = linear(classes=classes), torch.rand(20, 12, generator=generator())
    y, rows = labels(model, x), torch.arange(20)
    weight, logits = model.weight.detach(), model(x).detach()
    lead = logits[rows, y][:, None] - logits
    dual = torch.stack([threat.support(weight[y] - w) for w in weight], 1) / threat.eps
    least = (lead / dual.clamp_min(1e-9)).scatter(1, y[:, None], inf).min(1).values
    found = closest(model, x, y, threat=threat, steps=10, targets=targets)
    share = threat.distance(found, x) / least
    assert fooled(model, found, y).all()
    assert ((share >= 1 - 1e-4) & (share <= 1.02)).all()


@pytest.mark.parametrize(("targets", "classes"), [(None, 2), (9, 3)], ids=["fab", "fab_t"])
@pytest.mark.parametrize("threat", [Linf(0.3), L1(3.0)], ids=["linf", "l1"])
def test_at_the_faces_of_the_box_the_distance_is_that_of_a_linear_program(
    threat: Ball, targets: int | None, classes: int
) -> None:
    model = linear(classes=classes).double()
    x = (torch.rand(12, 12, generator=generator(2)) * 1.6 - 0.3).clamp(0, 1).double()
    y = labels(model, x)
    weight, logits = model.weight.detach(), model(x).detach()
    least = []
    for image, z, label in zip(x, logits, y.tolist(), strict=True):
        programs = [
            program(image, weight[rival] - weight[label], float(z[label] - z[rival]), threat.norm)
            for rival in range(classes)
            if rival != label
        ]
        least.append(min(programs))
    found = closest(model, x, y, threat=threat, steps=40, targets=targets)
    share = threat.distance(found, x) / torch.tensor(least)
    assert ((found >= 0) & (found <= 1)).all() and fooled(model, found, y).all()
    assert ((share >= 1 - 1e-4) & (share <= 1.02)).all()


def program(x: Tensor, w: Tensor, gap: float, norm: str) -> float:
    """The least norm of a move within the box that raises <w, x> by `gap`; inf if there is none."""
    count = 1 if norm == "linf" else len(x)  # of bounds on the lengths of pixels' moves
    room = torch.where(w > 0, 1 - x, x).tolist()
    eye = torch.eye(len(x))
    solved = linprog(
        [0.0] * len(x) + [1.0] * count,
        A_ub=torch.cat([eye, -eye if count > 1 else -torch.ones(len(x), 1)], 1).tolist(),
        b_ub=[0.0] * len(x),
        A_eq=[w.abs().tolist() + [0.0] * count],
        b_eq=[gap],
        bounds=[(0, most) for most in room] + [(0, None)] * count,
    )
    return float(solved.fun) if solved.success else inf


REFERENCE = {
    ("linf", None): [0.042955, 0.152498, 0.070245, 0.015337, 0.006036, 0.119100],
    ("linf", 1): [0.042955, 0.159606, 0.070245, 0.015337, 0.006036, 0.111168],
    ("l2", None): [0.203117, 0.632103, 0.305090, 0.068096, 0.025228, 0.508759],
    ("l2", 1): [0.203117, 0.675881, 0.305090, 0.068096, 0.025228, 0.489252],
    ("l1", None): [0.651018, 1.735822, 0.823442, 0.209008, 0.060222, 1.297391],
    ("l1", 1): [0.651018, 2.176814, 0.823442, 0.209008, 0.060222, 1.469214],
}


@every_threat
@pytest.mark.parametrize("targets", [None, 1])
def test_distances_are_those_of_the_authors_code(threat: Ball, targets: int | None) -> None:
    """FABAttack_PT of fra31/auto-attack: one run of 20 steps from the image, no restarts.

    Targeted at the class of second largest logit where `targets` is 1.
    """
    model, (x, _) = network().eval(), batch()
    found = closest(model, x, labels(model, x), threat=threat, steps=20, targets=targets)
    expected = torch.tensor(REFERENCE[threat.norm, targets])
    assert torch.allclose(threat.distance(found, x), expected, atol=1e-4)


@either
@every_threat
def test_verdicts_follow_from_the_distance(digits: Any, threat: Ball, targets: int | None) -> None:
    model, x, y = digits.model, digits.x[:40], digits.y[:40]
    nearest = closest(model, x, y, threat=threat, steps=15, targets=targets)
    share = threat.distance(nearest, x) / threat.eps
    fell = fooled(model, fab(model, x, y, threat=threat, steps=15, targets=targets), y)
    assert fell[share < 0.99].all()
    assert not fell[share > 1.1].any()  # between, a point may still fool once it is projected
    assert 0 < fell.float().mean() < 1


@either
def test_what_is_wrong_already_stays_as_it_is(targets: int | None) -> None:
    model, (x, y) = network().eval(), batch(12)
    wrong = fooled(model, x, y)
    assert wrong.any() and not wrong.all()
    for attack in (fab, closest):
        found = attack(model, x, y, threat=Linf(0.3), steps=10, targets=targets)
        assert torch.equal(found[wrong], x[wrong])
        assert not torch.isclose(found, x).flatten(1).all(1)[~wrong].any()


@every_threat
def test_what_stands_gets_the_nearest_point_projected(threat: Ball) -> None:
    model, (x, _) = network().eval(), batch()
    y, small = labels(model, x), type(threat)(threat.eps / 1000)
    nearest = closest(model, x, y, threat=small, steps=10)
    found = fab(model, x, y, threat=small, steps=10)
    assert torch.allclose(found, small.project(nearest, x), atol=1e-6)
    assert not fooled(model, found, y).any()


@either
def test_leaving_out_rows_changes_nothing(
    targets: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, (x, _) = network().eval(), batch(30)
    y = labels(model, x)
    attack = partial(fab, threat=Linf(0.1), steps=25, targets=targets)
    counted, whole = Counted(model).eval(), Counted(model).eval()
    with_drops = attack(counted, x, y)
    monkeypatch.setattr(survivors, "EVERY", 1000)
    without = attack(whole, x, y)
    assert counted.forward_passes < 0.95 * whole.forward_passes
    assert torch.equal(fooled(model, with_drops, y), fooled(model, without, y))
    alone = torch.cat([attack(model, x[i : i + 1], y[i : i + 1]) for i in range(4)])
    assert torch.equal(fooled(model, alone, y[:4]), fooled(model, without, y)[:4])


def test_targets_are_the_other_classes_of_largest_logit_and_no_more_than_there_are() -> None:
    model, (x, _) = network(3).eval(), batch()
    y, threat = labels(model, x), Linf(0.01)
    counted = [Counted(model).eval() for _ in range(3)]
    found = [
        fab(one, x, y, threat=threat, steps=4, targets=targets)
        for one, targets in zip(counted, (1, 2, 9), strict=True)
    ]
    assert torch.equal(found[1], found[2])
    assert counted[1].forward_passes == counted[2].forward_passes > counted[0].forward_passes
    distances = [
        threat.distance(closest(model, x, y, threat=threat, steps=9, targets=targets), x)
        for targets in (1, 2)
    ]
    assert (distances[1] <= distances[0]).all() and (distances[1] < distances[0]).any()


def test_two_classes_have_one_plane() -> None:
    model, (x, _) = network(2).eval(), batch()
    y = labels(model, x)
    every = closest(model, x, y, threat=L2(1.0), steps=10)
    assert torch.equal(every, closest(model, x, y, threat=L2(1.0), steps=10, targets=5))
    one = nn.Sequential(nn.Flatten(), nn.Linear(32, 1))
    assert torch.equal(fab(one, x, y * 0, threat=L2(1.0), steps=2), x)


@pytest.mark.parametrize(("targets", "runs", "planes"), [(None, 1, 3), (2, 2, 1), (9, 3, 1)])
def test_a_step_costs_two_forward_passes_and_one_backward_pass_per_plane(
    targets: int | None, runs: int, planes: int
) -> None:
    model, (x, _) = Counted(network()).eval(), batch()
    y = labels(model.model, x)
    fab(model, x, y, threat=Linf(1e-4), steps=5, targets=targets)
    assert model.forward_passes == 6 + runs * 6 * 2 * 5
    assert model.backward_passes == runs * 6 * planes * 5


@either
def test_no_step_makes_the_host_wait(targets: int | None) -> None:
    model, (x, _) = network(), batch()
    y, counts = labels(model.eval(), x), []
    for steps in (2, 8):
        with crafting(model, "eval"), HostReads() as reads:
            fab(model, x, y, threat=Linf(1e-4), steps=steps, targets=targets, restarts=2)
        counts.append(reads.count)
    assert counts[0] == counts[1]


@either
@every_threat
def test_restarts_begin_within_half_of_eps_and_find_nothing_further(
    threat: Ball, targets: int | None
) -> None:
    model, (x, _) = network().eval(), batch()
    y = labels(model, x)
    attack = partial(closest, threat=threat, steps=6, targets=targets)
    once = threat.distance(attack(model, x, y), x)
    counted = Counted(model).eval()
    found = attack(counted, x, y, restarts=3, generator=generator())
    assert (threat.distance(found, x) <= once).all()
    runs = (len(counted.seen) - 1) // 12
    firsts = [threat.distance(each, x) for each in counted.seen[1::12]]
    assert runs == 3 * (1 if targets is None else 3) == len(firsts)
    for i, first in enumerate(firsts):
        assert (first == 0).all() if i % 3 == 0 else (first > 0).all()
        assert (first <= threat.eps / 2 * (1 + 1e-5)).all()


def test_only_restarts_draw() -> None:
    model, (x, _) = network().eval(), batch()
    y, draws = labels(model, x), generator()
    before = draws.get_state()
    fab(model, x, y, threat=Linf(0.01), steps=2, targets=3, generator=draws)
    assert torch.equal(draws.get_state(), before)


@either
@every_threat
def test_rows_without_a_gradient_or_with_logits_that_are_not_finite_trouble_nobody(
    threat: Ball, targets: int | None
) -> None:
    inner, (x, _) = network().eval(), batch()
    x[0], x[2], x[4] = 0, 1, 0.5
    y = labels(inner, x)
    attack = partial(closest, threat=threat, steps=6, targets=targets)
    whole = attack(inner, x, y)

    def broken(x_adv: Tensor) -> Tensor:
        shade = x_adv.mean((1, 2, 3))[:, None]
        logits = inner(x_adv).masked_fill(shade < 0.2, nan).masked_fill(shade > 0.8, inf)
        return torch.where(x_adv.flatten(1).std(1, keepdim=True) < 0.01, logits.detach(), logits)

    found = attack(broken, x, y)
    assert torch.isfinite(found).all()
    assert torch.equal(found[[0, 2, 4]], x[[0, 2, 4]])
    assert torch.allclose(found[[1, 3, 5]], whole[[1, 3, 5]], atol=1e-6)


def test_the_type_of_the_images_is_kept() -> None:
    model, (x, _) = network().eval().double(), batch()
    y = labels(model, x.double())
    found = closest(model, x.double(), y, threat=L2(1.0), steps=8)
    assert found.dtype == torch.float64 and fooled(model, found, y).all()
    rough = network().eval().bfloat16()
    y = labels(rough, x.bfloat16())
    assert fab(rough, x.bfloat16(), y, threat=L2(0.5), steps=3).dtype == torch.bfloat16


def test_a_model_in_low_precision_is_searched_in_full_precision(digits: Any) -> None:
    x, y, low = digits.x[:40], digits.y[:40], low_precision(deepcopy(digits.model))
    for attack in (fab, closest):
        search = partial(attack, x=x, y=y, threat=Linf(0.05), steps=12, targets=2)
        assert torch.allclose(search(low), search(digits.model), atol=1e-6)


def test_gradients_that_share_their_memory_are_fine() -> None:
    class Brightness(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            total = x.flatten(1).sum(1, keepdim=True)
            return torch.cat([total, 6 - total, 0 * total], 1)

    x, y = torch.full((3, 12), 0.2), torch.ones(3).long()
    for targets in (None, 2):
        found = fab(Brightness(), x, y, threat=Linf(0.1), steps=5, targets=targets)
        assert fooled(Brightness(), found, y).all()
    brighter = apgd(Brightness(), x, y, threat=Linf(0.01), steps=3, eot=2)
    assert torch.allclose(brighter, x + 0.01)


def test_fab_finds_nearly_all_that_pgd_finds_on_the_digits(digits: Any) -> None:
    model, x, y = digits.model, digits.x[:100], digits.y[:100]
    ours = fab(model, x, y, threat=Linf(0.1), steps=30, targets=3)
    theirs = pgd(model, x, y, threat=Linf(0.1), steps=40, step_size=0.01, generator=generator())
    count = fooled(model, theirs, y).sum()
    assert 20 < count < 80 and fooled(model, ours, y).sum() >= 0.9 * count


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"steps": 0}, "steps is 0; allowed is a number at least 1"),
        ({"steps": 1, "targets": 0}, "targets is 0; allowed is a number at least 1"),
        ({"steps": 1, "restarts": 0}, "restarts is 0; allowed is a number at least 1"),
    ],
)
def test_bad_settings_are_refused_with_a_sentence(keys: dict[str, Any], message: str) -> None:
    for attack in (fab, closest):
        with pytest.raises(ValueError, match=message):
            attack(network().eval(), *batch(), threat=Linf(0.1), **keys)


def test_a_model_without_gradients_is_refused_with_a_sentence() -> None:
    model, (x, _) = network().eval(), batch()
    with pytest.raises(ValueError, match="carry no gradient to the images"):
        fab(lambda x: model(x).detach(), x, labels(model, x), threat=Linf(0.1), steps=1)

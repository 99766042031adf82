"""Combinations: who is attacked, what is kept, how batches are packed."""

from functools import partial
from typing import NamedTuple

import pytest
import torch
from attack_cases import batch, between, generator, network
from torch import Tensor, nn

from advtrain.attacks import survivors
from advtrain.attacks.autoattack import AutoAttack, autoattack
from advtrain.attacks.pgd import fgsm, pgd
from advtrain.attacks.survivors import Found, advance, separable, until_fooled
from advtrain.attacks.transfer import transfer
from advtrain.attacks.worst_of import WorstOf, worst_of
from advtrain.threat import L1, L2, Linf

EPS = Linf(0.5)


def brightness(x: Tensor) -> Tensor:
    """Two classes: 1 where the mean pixel exceeds a half."""
    mean = x.flatten(1).mean(1)
    return torch.stack([0.5 - mean, mean - 0.5], dim=1)


class Recorder:
    """An attack that raises brightness by `by`, and remembers the images that it was given."""

    def __init__(self, by: float) -> None:
        self.by = by
        self.seen: list[Tensor] = []

    def __call__(self, model, x, y, **overrides):
        self.seen.append(x)
        return (x + self.by).clamp(0, 1)


def dark(*levels: float) -> Tensor:
    return torch.tensor(levels)[:, None].expand(-1, 4).contiguous()


def test_each_attack_sees_only_those_that_the_ones_before_it_left_standing():
    weak, strong = Recorder(0.1), Recorder(0.3)
    x, y = dark(0.1, 0.3, 0.45, 0.7, 0.2), torch.zeros(5, dtype=torch.int64)
    members = {"weak": weak, "strong": strong}
    x_adv = worst_of(brightness, x, y, threat=EPS, members=lambda k: members, batch_size=2)
    assert [len(images) for images in weak.seen] == [2, 2]  # 0.7 is wrong already
    assert torch.equal(torch.cat(strong.seen), dark(0.1, 0.3, 0.2))
    assert torch.allclose(x_adv, dark(0.1, 0.6, 0.55, 0.7, 0.2))


def test_an_empty_batch_comes_back():
    x = torch.zeros(0, 4)
    members = {"any": Recorder(1)}
    kept = worst_of(
        brightness, x, x[:, 0].long(), threat=EPS, members=lambda k: members, batch_size=2
    )
    assert kept.shape == (0, 4)


def test_logits_that_are_not_finite_are_no_success():
    def broken(x: Tensor) -> Tensor:
        logits = brightness(x)
        return logits.where(x.flatten(1).mean(1, keepdim=True) < 0.5, torch.nan)

    x, y = dark(0.4), torch.zeros(1, dtype=torch.int64)
    members = {"up": Recorder(0.3)}
    assert torch.equal(
        worst_of(broken, x, y, threat=EPS, members=lambda k: members, batch_size=1), x
    )


def test_attacks_of_different_threats_make_no_worst_case():
    one, other = partial(fgsm, threat=Linf(0.1)), partial(fgsm, threat=L2(0.1))
    with pytest.raises(ValueError, match="share one threat"):
        WorstOf({"a": one, "b": other})
    with pytest.raises(ValueError, match="no attack"):
        WorstOf({})
    assert WorstOf({"a": one}).threat == Linf(0.1)


@pytest.mark.parametrize(
    ("version", "classes", "expected"),
    [
        ("standard", 10, ["apgd_ce", "apgd_t", "fab_t", "square"]),
        ("standard", 4, ["apgd_ce", "apgd_t", "fab_t", "square"]),
        ("standard", 3, ["apgd_ce", "apgd_dlr", "fab_t", "square"]),
        ("standard", 2, ["apgd_ce", "fab_t", "square"]),
        ("plus", 10, ["apgd_ce", "apgd_dlr", "fab", "square", "apgd_t", "fab_t"]),
        ("plus", 3, ["apgd_ce", "apgd_dlr", "fab", "square", "fab_t"]),
        ("v1", 10, ["apgd_ce", "apgd_dlr", "fab", "square"]),
        ("v1", 2, ["apgd_ce", "fab", "square"]),
        ("rand", 10, ["apgd_ce", "apgd_dlr"]),
        ("rand", 2, ["apgd_ce"]),
    ],
)
def test_autoattack_takes_the_members_that_the_number_of_classes_admits(version, classes, expected):
    members = AutoAttack(Linf(0.1), version).members(classes)
    assert list(members) == expected


def test_autoattack_has_the_published_numbers_of_runs():
    plus = AutoAttack(Linf(0.1), "plus").members(10)
    standard = AutoAttack(Linf(0.1)).members(10)
    rand = AutoAttack(Linf(0.1), "rand").members(10)
    assert [plus[name].keywords["restarts"] for name in ("apgd_ce", "apgd_dlr", "fab")] == [5] * 3
    assert standard["apgd_ce"].keywords["restarts"] == 1
    assert standard["apgd_t"].keywords["targets"] == standard["fab_t"].keywords["targets"] == 9
    assert standard["square"].keywords["queries"] == 5000
    assert {rand[name].keywords["eot"] for name in rand} == {20}
    assert {part.keywords["steps"] for part in standard.values() if "steps" in part.keywords} == {
        100
    }


@pytest.mark.parametrize("version", ["v2", ""])
def test_autoattack_names_the_versions_that_there_are(version):
    with pytest.raises(ValueError, match="allowed are standard, plus, rand, v1"):
        AutoAttack(Linf(0.1), version)


def test_autoattack_refuses_l1():
    with pytest.raises(ValueError, match="linf and l2"):
        AutoAttack(L1(1.0))


@pytest.mark.parametrize("classes", [2, 3, 4, 10])
@pytest.mark.parametrize("threat", [Linf(0.1), L2(0.5)], ids=lambda threat: threat.norm)
def test_autoattack_runs_whatever_the_number_of_classes(untouched, classes, threat):
    model = untouched(image_network(classes).eval())
    x = torch.rand(5, 1, 8, 8, generator=generator())
    y = model(x).argmax(1)
    quick = AutoAttack(threat, steps=3, queries=10)
    x_adv = worst_of(
        model, x, y, threat=threat, members=quick.members, batch_size=2, generator=generator()
    )
    assert (threat.distance(x_adv, x) <= threat.eps * (1 + 1e-5)).all()
    assert x_adv.min() >= 0 and x_adv.max() <= 1


def image_network(classes: int) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, classes)
    )


def test_autoattack_is_reproducible_and_leaves_no_trace(untouched, digits):
    model = untouched(digits.model)
    x, y, threat = digits.x[:12], digits.y[:12], Linf(0.02)
    members = AutoAttack(threat, steps=5, queries=30).members
    run = partial(worst_of, model, x, y, threat=threat, members=members, batch_size=5)
    before = torch.get_rng_state()
    first, second = run(generator=generator(3)), run(generator=generator(3))
    assert torch.equal(first, second) and torch.equal(before, torch.get_rng_state())
    assert not first.requires_grad and (first - x).abs().max() <= 0.02 + 1e-6


def test_autoattack_breaks_a_network_trained_without_attacks(untouched, digits):
    model, threat = untouched(digits.model), Linf(0.4)
    x, y = digits.x[:30], digits.y[:30]
    x_adv = autoattack(model, x, y, threat=threat, batch_size=20, generator=generator())
    assert not (model(x_adv).argmax(1) == y).any()
    assert (threat.distance(x_adv, x) <= 0.4 + 1e-6).all()


def test_transfer_crafts_on_the_source_and_asks_the_model_nothing(untouched):
    x, y = batch()
    source, asked = untouched(network().eval()), []

    def model(x: Tensor) -> Tensor:
        asked.append(x)
        return network().eval()(x)

    threat = Linf(0.1)
    attack = partial(pgd, threat=threat, steps=2, step_size=0.05)
    got = transfer(model, x, y, threat=threat, attack=attack, source=source, generator=generator())
    assert torch.equal(got, attack(source, x, y, generator=generator())) and not asked


# Survivors: the packing of runs, and leaving out inside a run.


def test_runs_are_packed_into_full_batches_of_those_that_stand():
    x, fooled = torch.zeros(4, 1), torch.tensor([False, True, False, False])
    batches = []

    def run(index: Tensor, number: Tensor) -> Found:
        batches.append(list(zip(index.tolist(), number.tolist(), strict=True)))
        return Found(number[:, None] + 1.0, (index == 0) & (number == 1))

    x_adv = until_fooled(x, fooled, 3, run)
    assert batches == [[(0, 0), (2, 0), (3, 0), (0, 1)], [(2, 1), (3, 1), (2, 2), (3, 2)]]
    assert x_adv.flatten().tolist() == [2, 0, 3, 3]  # the point that fools, the image, the last


def test_of_two_points_that_fool_in_one_batch_the_first_is_kept():
    def run(index: Tensor, number: Tensor) -> Found:
        return Found(number[:, None] + 1.0, number >= 1)

    x, standing = torch.zeros(3, 1), torch.tensor([True, True, False])
    assert until_fooled(x, standing, 3, run).flatten().tolist() == [0, 0, 2]


class Walk(NamedTuple):
    """Rows that walk up by their speed; those above 1 are fooled, their first point is kept."""

    x_adv: Tensor
    y: Tensor
    fooled: Tensor
    place: Tensor
    speed: Tensor


def walk(state: Walk, i: int) -> Walk:
    place = state.place + state.speed
    new = (place[:, 0] > 1) & ~state.fooled
    kept = place.where((new | ~state.fooled)[:, None], state.x_adv)
    return state._replace(x_adv=kept, fooled=state.fooled | new, place=place)


@pytest.mark.parametrize("rows", [0, 1, 8])
def test_leaving_out_those_that_fell_changes_nothing(rows):
    speed = torch.linspace(0.005, 0.2, rows)[:, None]
    start = Walk(
        torch.zeros(rows, 1),
        torch.zeros(rows, dtype=torch.int64),
        torch.zeros(rows, dtype=torch.bool),
        torch.zeros(rows, 1),
        speed,
    )
    kept = advance(brightness, start, 40, walk, drop=False)
    dropped = advance(brightness, start, 40, walk, drop=True)
    assert torch.equal(kept.x_adv, dropped.x_adv) and torch.equal(kept.fooled, dropped.fooled)


def test_what_falls_in_low_precision_alone_goes_on():
    model, x, exact, rounded = between()
    differing = rounded != exact
    state = Walk(x, exact, differing, x, x)
    assert not survivors.confirmed(model, state).fooled.any()
    truly = Walk(x, 1 - exact, torch.ones_like(differing), x, x)
    assert survivors.confirmed(model, truly).fooled.all()


def test_a_module_in_training_mode_is_seen_through_wrappers():
    model = network()
    for wrapped in (model, partial(model), model.forward, Recorder(0)):
        assert separable(wrapped) == isinstance(wrapped, Recorder)
    assert separable(network().eval())


def test_verdicts_are_those_of_full_precision():
    model, x, exact, _ = between()
    asked = []

    def nothing(model, x, y, *, generator=None):
        asked.append(len(x))
        return x

    found = worst_of(
        model, x, exact, threat=Linf(0.1), members=lambda _: {"none": nothing}, batch_size=400
    )
    assert asked == [400] and torch.equal(found, x)

from collections.abc import Callable
from functools import partial
from math import inf, nan
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from attack_cases import ATTACKS, batch, every_threat, generator, linear, network, passes
from torch import Tensor, nn

from advtrain.attacks import objectives, starts
from advtrain.attacks.best import Best
from advtrain.attacks.fast import fast
from advtrain.attacks.mim import mim
from advtrain.attacks.objectives import (
    cross_entropy,
    dlr,
    kl_to_clean,
    margin,
    targeted,
)
from advtrain.attacks.pgd import fgsm, pgd, rfgsm
from advtrain.precision import low_precision
from advtrain.threat import L1, L2, Ball, Linf

LINEAR = [Linf(0.1, -inf, inf), L2(0.5, -inf, inf), L1(0.5, -inf, inf)]
ON_LINEAR: dict[str, Callable[..., Tensor]] = {
    "fgsm": fgsm,
    "rfgsm without noise": partial(rfgsm, noise_share=0.0),
    "pgd": partial(pgd, steps=5, start=starts.clean),
    "mim": partial(mim, steps=5, decay=1.0),
}


def sized(attack: Callable[..., Tensor], threat: Ball) -> Callable[..., Tensor]:
    """With steps of eps / 2 for the attacks which take steps."""
    steps = isinstance(attack, partial) and "steps" in attack.keywords
    return partial(attack, threat=threat, **({"step_size": threat.eps / 2} if steps else {}))


@pytest.mark.parametrize("toward", [False, True], ids=["untargeted", "targeted"])
@pytest.mark.parametrize("threat", LINEAR, ids=lambda threat: threat.norm)
@pytest.mark.parametrize("attack", ON_LINEAR.values(), ids=ON_LINEAR)
def test_attacks_reach_the_optimum_of_a_linear_model(
    attack: Callable[..., Tensor], threat: Ball, toward: bool
) -> None:
    model, x, y = linear(), torch.rand(8, 12), torch.arange(8) % 2
    away = model.weight[1 - y] - model.weight[y]
    best = x + (-1 if toward else 1) * threat.eps * threat.steepest(away.detach())
    found = sized(attack, threat)(model, x, y, targeted=toward)
    assert torch.allclose(found, best, atol=1e-6)
    rise = ((found - x) * away).sum(1) * (-1 if toward else 1)
    assert torch.allclose(rise, threat.support(away), rtol=1e-4)


@pytest.mark.parametrize("attack", ON_LINEAR.values(), ids=ON_LINEAR)
def test_attacks_reach_the_optimum_inside_the_box_too(attack: Callable[..., Tensor]) -> None:
    model, y = linear(), torch.arange(8) % 2
    x = (torch.rand(8, 12, generator=generator()) * 2 - 0.5).clamp(0, 1)
    away = model.weight[1 - y] - model.weight[y]
    best = (x + 0.1 * away.sign()).clamp(0, 1)
    assert torch.allclose(sized(attack, Linf(0.1))(model, x, y), best, atol=1e-6)


@pytest.mark.parametrize("threat", LINEAR[:2], ids=lambda threat: threat.norm)
def test_pgd_finds_the_optimum_of_a_linear_model_from_a_random_start(threat: Ball) -> None:
    model, x, y = linear(), torch.rand(8, 12), torch.arange(8) % 2
    away = (model.weight[1 - y] - model.weight[y]).detach()
    found = pgd(model, x, y, threat=threat, steps=60, step_size=threat.eps / 4)
    rise = ((found - x) * away).sum(1)
    assert torch.allclose(rise, threat.support(away), rtol=1e-3)


@pytest.mark.parametrize("clip_start", [False, True])
def test_fast_takes_its_gradient_at_the_start_and_clips_when_told(clip_start: bool) -> None:
    """Against the authors' step written out, with and without their clipping of the start."""
    model, (x, y), eps, size = network().eval(), batch(), 0.3, 0.375
    ours = fast(
        model,
        x,
        y,
        threat=Linf(eps),
        step_size=size,
        clip_start=clip_start,
        generator=generator(3),
    )
    ball = Linf(eps) if clip_start else Linf(eps, -inf, inf)
    point = ball.sample(x, generator(3)).requires_grad_()
    assert clip_start or (point < 0).any()
    (gradient,) = torch.autograd.grad(F.cross_entropy(model(point), y), point)
    delta = (point.detach() - x + size * gradient.sign()).clamp(-eps, eps)
    torch.testing.assert_close(ours, (x + delta).clamp(0, 1), atol=1e-6, rtol=0)


def test_rfgsm_is_the_random_step_and_then_the_gradient_step() -> None:
    model, x, y = linear(), torch.full((3, 12), 0.5), torch.tensor([0, 1, 1])
    away = (model.weight[1 - y] - model.weight[y]).sign()
    signs = torch.empty_like(x).normal_(generator=generator()).sign()
    found = rfgsm(model, x, y, threat=Linf(0.2), noise_share=0.25, generator=generator())
    assert torch.allclose(found, x + 0.05 * signs + 0.15 * away, atol=1e-6)


@every_threat
def test_one_step_of_eps_from_the_image_is_fgsm(threat: Ball) -> None:
    model, (x, y) = network().eval(), batch()
    once = fgsm(model, x, y, threat=threat)
    assert not torch.equal(once, x)
    for attack in (
        partial(pgd, start=starts.clean),
        partial(mim, decay=1.0),
        partial(pgd, start=starts.clean, restarts=2),
    ):
        found = attack(model, x, y, threat=threat, steps=1, step_size=threat.eps)
        assert torch.allclose(found, once, atol=1e-6)


def test_momentum_without_decay_is_pgd_and_with_it_is_the_sum_of_unit_gradients() -> None:
    model, (x, y), threat = network().eval(), batch(), Linf(0.3)
    plain = pgd(model, x, y, threat=threat, steps=4, step_size=0.1, start=starts.clean)
    assert torch.equal(mim(model, x, y, threat=threat, steps=4, step_size=0.1, decay=0), plain)

    x_adv, momentum = x, torch.zeros_like(x)
    for _ in range(4):
        leaf = x_adv.clone().requires_grad_()
        F.cross_entropy(model(leaf), y).backward()
        assert leaf.grad is not None
        momentum = 0.9 * momentum + leaf.grad / leaf.grad.abs().sum((1, 2, 3), keepdim=True)
        x_adv = (x_adv + 0.1 * momentum.sign()).clamp(x - 0.3, x + 0.3).clamp(0, 1)
    found = mim(model, x, y, threat=threat, steps=4, step_size=0.1, decay=0.9)
    assert torch.allclose(found, x_adv, atol=1e-6)


@every_threat
@pytest.mark.parametrize("attack", [ATTACKS["fgsm"], ATTACKS["mim"]], ids=["fgsm", "mim"])
def test_the_order_of_the_batch_does_not_matter(
    attack: Callable[..., Tensor], threat: Ball
) -> None:
    model, (x, y) = network().eval(), batch(9)
    order = torch.randperm(9, generator=generator())
    together = attack(model, x, y, threat=threat)
    assert torch.allclose(attack(model, x[order], y[order], threat=threat), together[order])
    alone = torch.cat([attack(model, x[i : i + 1], y[i : i + 1], threat=threat) for i in range(9)])
    assert torch.allclose(alone, together, atol=1e-6)


def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    with torch.no_grad():
        return (model(x).argmax(1) == y).float().mean().item()


def test_accuracy_falls_as_eps_grows_and_reaches_zero(digits: Any) -> None:
    model, x, y = digits
    seen = [accuracy(model, x, y)]
    for eps in (0.05, 0.1, 0.2, 0.5):
        attack = partial(pgd, threat=Linf(eps), steps=10, step_size=eps / 4, start=starts.clean)
        seen.append(accuracy(model, attack(model, x, y), y))
    assert seen == sorted(seen, reverse=True) and seen[0] > 0.95 and seen[-1] == 0


def test_restarts_and_the_choice_of_any_point_never_help_the_model(digits: Any) -> None:
    model, x, y = digits
    attack = partial(pgd, model, x, y, threat=Linf(0.12), steps=4, step_size=0.05)

    def standing(**keys: Any) -> Tensor:
        return model(attack(**keys, generator=generator())).argmax(1) == y

    last, anyone = standing(), standing(keep="any")
    assert not (anyone & ~last).any() and anyone.sum() <= last.sum()
    one, three = standing(keep="last", restarts=1), standing(keep="last", restarts=3)
    assert not (three & ~one).any() and three.sum() < one.sum()


def test_an_example_once_fooled_is_kept_and_others_take_the_highest_gain() -> None:
    offers = iter([0.2, 0.1, 0.3])

    def start(x: Tensor, threat: Any, generator: Any = None) -> Tensor:
        return torch.full_like(x, next(offers))

    def model(x: Tensor) -> Tensor:
        """Two pixels. The first row falls at 0.1, the second never; both rise with the pixels."""
        falls = torch.tensor([3.0, 0.0])[: len(x)] * (x[:, 0] - 0.1).abs().lt(1e-4)
        return torch.stack([torch.ones(len(x)), x.sum(1) + falls], 1)

    def hold(model: Any, x: Tensor, y: Tensor) -> Any:
        return lambda x_adv: model(x_adv)[:, 1]

    x, y = torch.zeros(2, 2), torch.zeros(2, dtype=torch.int64)
    found = pgd(
        model,
        x,
        y,
        threat=Linf(0.4),
        steps=1,
        step_size=1e-6,
        start=start,
        restarts=3,
        objective=hold,
    )
    assert torch.allclose(found[:, 0], torch.tensor([0.1, 0.3]), atol=1e-4)


def test_pgd_makes_no_pass_that_it_does_not_need() -> None:
    for keys, expected in (
        ({}, (5, 5)),
        ({"keep": "any"}, (6, 5)),
        ({"objective": kl_to_clean}, (6, 5)),
    ):
        assert passes(pgd, threat=Linf(0.1), steps=5, step_size=0.05, **keys) == expected, keys


def clamped_pgd(model: nn.Module, x: Tensor, y: Tensor, eps: float, steps: int) -> Tensor:
    """The trap: the perturbation leaves the box, and the gradient passes through the clamp."""
    delta = torch.empty_like(x).uniform_(-eps, eps, generator=generator())
    for _ in range(steps):
        delta.requires_grad_()
        loss = F.cross_entropy(model((x + delta).clamp(0, 1)), y, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, delta)
        delta = (delta.detach() + eps / 8 * gradient.sign()).clamp(-eps, eps)
    return (x + delta).clamp(0, 1)


def test_saturated_pixels_do_not_blunt_the_attack(digits: Any) -> None:
    model, x, y = digits
    assert ((x == 0) | (x == 1)).float().mean() > 0.5
    ours = pgd(model, x, y, threat=Linf(0.1), steps=20, step_size=0.1 / 8, generator=generator())
    blunt = clamped_pgd(model, x, y, eps=0.1, steps=20)
    free = pgd(model, x, y, threat=Linf(0.1), steps=60, step_size=0.1 / 8, start=starts.clean)
    assert accuracy(model, blunt, y) > accuracy(model, ours, y) + 0.05
    assert accuracy(model, ours, y) < accuracy(model, free, y) + 0.01


def test_momentum_survives_a_gradient_that_vanishes_for_one_step() -> None:
    inner, (x, y), calls = network().eval(), batch(), []

    def model(x: Tensor) -> Tensor:
        calls.append(1)
        return inner(x) * (nan if len(calls) == 2 else 0 if len(calls) == 3 else 1)

    once = fgsm(inner, x, y, threat=Linf(0.05))
    found = mim(model, x, y, threat=Linf(0.3), steps=3, step_size=0.05, decay=1.0)
    assert torch.allclose(found, (once + 2 * (once - x).sign() * 0.05).clamp(0, 1), atol=1e-6)


def test_logits_that_are_not_finite_fool_nobody() -> None:
    x, y = torch.full((2, 2), 0.5), torch.zeros(2, dtype=torch.int64)

    def model(x: Tensor) -> Tensor:
        """Class 0 everywhere; not a number above 0.55."""
        gap = torch.where(x[:, :1] > 0.55, nan, 1 - x[:, :1])
        return torch.cat([gap, -gap], 1)

    found = pgd(
        model, x, y, threat=Linf(0.2), steps=4, step_size=0.04, start=starts.clean, keep="any"
    )
    assert torch.allclose(found[:, 0], torch.full((2,), 0.54))


@pytest.mark.parametrize("objective", [cross_entropy, margin])
def test_targeted_attacks_reach_the_label(objective: Any, digits: Any) -> None:
    model, x, y = digits
    goal = (y + 1) % 10
    attack = partial(pgd, threat=Linf(0.4), steps=20, step_size=0.05, objective=objective)
    assert accuracy(model, attack(model, x, goal, targeted=True), goal) > 0.95


@pytest.mark.parametrize("objective", [dlr, kl_to_clean, partial(kl_to_clean)])
def test_objectives_without_a_targeted_form_say_so(objective: Any) -> None:
    with pytest.raises(ValueError, match="whose descent does not lead to a label"):
        targeted(objective)


def test_kl_to_clean_starts_at_zero_and_ignores_the_label() -> None:
    model, (x, y) = network().eval(), batch()
    gain = kl_to_clean(model, x, y)
    assert torch.equal(gain(x), torch.zeros(6)) and (gain(x.flip(0)) > 0).any()


@every_threat
def test_starts_are_what_their_names_say(threat: Ball) -> None:
    x = torch.full((2000, 1, 2, 2), 0.5)
    assert torch.equal(starts.clean(x, threat), x)
    assert torch.equal(starts.uniform(x, threat, generator()), threat.sample(x, generator()))
    noise = starts.normal(std=0.01)(x, threat, generator()) - x
    assert abs(noise.std().item() / 0.01 - 1) < 0.03
    corners = starts.bernoulli(size=0.25)(x, threat, generator()) - x
    assert torch.equal(corners.abs(), torch.full_like(x, 0.25)) and corners.mean().abs() < 0.02


def test_in_low_precision_the_deepest_point_is_kept_not_the_first_that_fools():
    torch.manual_seed(0)
    model = low_precision(nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2)))
    x, y = torch.zeros(1, 4), torch.zeros(1, dtype=torch.int64)
    just, deep = torch.tensor([[1.0, 1.001]]), torch.tensor([[1.0, 3.0]])
    for kept, judge in ((x + 2, model), (x + 1, full(model))):
        best = Best(judge, x, y, targeted=False)
        best.offer(x + 1, torch.ones(1), just)
        best.offer(x + 2, torch.zeros(1), deep)
        best.offer(x + 3, torch.full((1,), 9.0), torch.tensor([[torch.nan, 9.0]]))
        assert torch.equal(best.x, kept)


def full(model: nn.Module) -> nn.Module:
    """The same network, computing in float32."""
    return nn.Sequential(*(nn.Linear(part.in_features, part.out_features) for part in model))


def test_a_mean_over_draws_has_the_targeted_form_of_what_it_averages() -> None:
    for refused in (objectives.dlr, objectives.kl_to_clean):
        with pytest.raises(ValueError, match="whose descent does not lead"):
            objectives.targeted(objectives.expected(objective=refused, samples=2))
    with pytest.raises(ValueError, match="samples is 0"):
        objectives.expected(objective=objectives.margin, samples=0)
    model, x, y = linear(), torch.rand(4, 12), torch.arange(4) % 2
    toward = objectives.targeted(objectives.expected(objective=objectives.margin, samples=2))
    assert torch.allclose(toward(model, x, y)(x), -objectives.margin(model, x, y)(x))


def test_momentum_in_half_precision_does_not_overflow() -> None:
    weight = torch.linspace(-900, 900, 400).half()

    def model(x: Tensor) -> Tensor:
        return torch.stack([x @ weight, -(x @ weight)], 1)

    x, y = torch.full((2, 400), 0.5).half(), torch.zeros(2).long()
    found = mim(model, x, y, threat=Linf(0.1), steps=2, step_size=0.05, decay=1.0, objective=margin)
    assert ((found - x).abs() > 0.05).float().mean() > 0.9

from collections.abc import Callable
from functools import partial
from math import inf, nan
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from attack_cases import ATTACKS, batch, every_attack, every_threat, generator, linear, network
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from advtrain.attacks.mim import mim
from advtrain.attacks.pgd import fgsm, pgd, rfgsm
from advtrain.modes import crafting
from advtrain.threat import Ball, Linf


@every_threat
@every_attack
@pytest.mark.parametrize("count", [0, 1, 5])
def test_results_lie_in_the_set_and_carry_no_gradient(
    attack: Callable[..., Tensor], threat: Ball, count: int
) -> None:
    model, (x, y) = network().eval(), batch(count)
    before = x.clone()
    x_adv = attack(model, x.requires_grad_(), y, threat=threat, generator=generator())
    assert x_adv.shape == x.shape and x_adv.dtype == x.dtype and not x_adv.requires_grad
    assert ((x_adv >= 0) & (x_adv <= 1)).all()
    assert (threat.distance(x_adv, before) <= threat.eps * (1 + 1e-5)).all()
    x_adv.add_(1)
    assert torch.equal(x, before)


@every_threat
@every_attack
def test_attacks_work_on_vectors_and_inside_no_grad(
    attack: Callable[..., Tensor], threat: Ball
) -> None:
    x, y = torch.rand(5, 12), torch.arange(5) % 3
    with torch.no_grad():
        x_adv = attack(linear(classes=3), x, y, threat=threat, generator=generator())
    assert x_adv.shape == x.shape
    assert attack is ATTACKS["clean"] or not torch.equal(x_adv, x)


@every_attack
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_attacks_leave_the_model_as_it_was(
    attack: Callable[..., Tensor], training: bool, untouched: Any
) -> None:
    model, (x, y) = network().train(training), batch()
    model[0].bias.requires_grad_(False)
    model[2].train(not training)
    model[4].weight.grad = torch.ones_like(model[4].weight)
    untouched(model)
    for classifier in (model, partial(model), model.forward):
        attack(classifier, x, y, threat=Linf(0.1), generator=generator())
    with pytest.raises(ValueError, match="labels lie in"):
        pgd(model, x, y + 10, threat=Linf(0.1), steps=1, step_size=0.1)


@every_attack
def test_a_generator_makes_attacks_reproducible_and_spares_the_global_one(
    attack: Callable[..., Tensor],
) -> None:
    model, (x, y) = network().eval(), batch()
    state = torch.get_rng_state()
    first, again = (attack(model, x, y, threat=Linf(0.1), generator=generator(5)) for _ in range(2))
    assert torch.equal(first, again)
    assert torch.equal(torch.get_rng_state(), state)


class HostReads(TorchDispatchMode):
    """Counts operations which make the host wait for the device, or shapes depend on values."""

    WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal")

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        masks = any(
            isinstance(index, Tensor) and index.dtype == torch.bool
            for index in (args[1] if func.__name__.startswith("index.") else ())
        )
        self.count += masks or func.__name__.split(".")[0] in self.WAITING
        return func(*args, **(kwargs or {}))


@every_threat
@every_attack
def test_no_step_makes_the_host_wait(attack: Callable[..., Tensor], threat: Ball) -> None:
    model, (x, y), counts = network(), batch(), []
    for steps in (2, 6):
        stepping = isinstance(attack, partial) and "steps" in attack.keywords
        longer = partial(attack, steps=steps) if stepping else attack
        with crafting(model, "eval"), HostReads() as reads:
            longer(model, x, y, threat=threat, generator=generator())
        counts.append(reads.count)
    assert counts[1] <= counts[0]
    with HostReads() as reads:
        x[x > 0.5].sum().item()
    assert reads.count == 2


@every_threat
@every_attack
def test_a_flat_model_is_survived(attack: Callable[..., Tensor], threat: Ball) -> None:
    x, y = batch()
    x_adv = attack(lambda x: x.flatten(1)[:, :4] * 0, x, y, threat=threat, generator=generator())
    assert torch.isfinite(x_adv).all()
    assert (threat.distance(x_adv, x) <= threat.eps * (1 + 1e-5)).all()


@every_threat
@every_attack
def test_a_model_of_nans_poisons_neither_its_own_rows_nor_others(
    attack: Callable[..., Tensor], threat: Ball
) -> None:
    inner, (x, y) = network().eval(), batch()
    x[0], x[2] = 0, 1

    def broken(x: Tensor) -> Tensor:
        shade = x.mean((1, 2, 3))[:, None]
        return inner(x).masked_fill(shade < 0.2, nan).masked_fill(shade > 0.8, inf)

    whole = attack(inner, x, y, threat=threat, generator=generator())
    x_adv = attack(broken, x, y, threat=threat, generator=generator())
    assert ((x_adv >= 0) & (x_adv <= 1)).all()
    assert (threat.distance(x_adv, x) <= threat.eps * (1 + 1e-5)).all()
    assert torch.allclose(x_adv[3:], whole[3:], atol=1e-6)


X, Y = batch(4)


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (X * 255, Y, r"x lies in \[.*\]; images lie in \[0, 1\]"),
        (X - 0.5, Y, r"images lie in \[0, 1\]"),
        (X.clone().fill_(nan), Y, "and are finite"),
        (X.clone().fill_(inf), Y, "and are finite"),
        ((X * 255).byte(), Y, r"x has dtype torch.uint8 .* Write x.float\(\) / 255"),
        (X.flatten(), Y, "shape"),
        (X, Y.float(), "y has dtype torch.float32"),
        (X, Y.int(), "y has dtype torch.int32"),
        (X, F.one_hot(Y), r"Write y.argmax\(1\)"),
        (X, Y[:3], r"shape \(4,\)"),
        (X, Y - 1, "y holds the label -1"),
        (X, Y + 3, r"y holds the label 6, the model returns 4 logits; labels lie in \[0, 3\]"),
    ],
)
@pytest.mark.parametrize("attack", ["fgsm", "rfgsm", "pgd", "mim"])
def test_a_bad_batch_is_refused_with_a_sentence(
    attack: str, x: Tensor, y: Tensor, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        ATTACKS[attack](network().eval(), x, y, threat=Linf(0.1))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"steps": 0}, "steps is 0; allowed is a number at least 1"),
        ({"restarts": 0}, "restarts is 0"),
        ({"step_size": 0.0}, r"step_size is 0\.0; allowed is a number greater than 0"),
        ({"step_size": nan}, "step_size is nan"),
        ({"keep": "best"}, "keep is 'best'; allowed are last and any"),
    ],
)
@pytest.mark.parametrize("attack", ["pgd", "mim"])
def test_bad_settings_are_refused_with_a_sentence(
    attack: str, keys: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        ATTACKS[attack](network().eval(), X, Y, threat=Linf(0.1), **keys)


def test_other_bad_settings_are_refused_with_a_sentence() -> None:
    model = network().eval()
    with pytest.raises(ValueError, match="decay is -1"):
        mim(model, X, Y, threat=Linf(0.1), steps=1, step_size=0.1, decay=-1)
    with pytest.raises(ValueError, match="noise_share is 2"):
        rfgsm(model, X, Y, threat=Linf(0.1), noise_share=2)
    with pytest.raises(ValueError, match="the model returned tuple for 4 images"):
        fgsm(lambda x: (model(x), x), X, Y, threat=Linf(0.1))
    with pytest.raises(ValueError, match="carry no gradient to the images"):
        fgsm(lambda x: model(x).detach(), X, Y, threat=Linf(0.1))


def test_a_radius_of_zero_needs_no_step() -> None:
    model = network().eval()
    assert torch.equal(pgd(model, X, Y, threat=Linf(0.0), steps=2, step_size=0.0), X)


def test_images_of_inference_mode_are_attacked_like_others() -> None:
    model = network().eval()
    with torch.inference_mode():
        x, y = X.clone(), Y.clone()
        inside = fgsm(model, x, y, threat=Linf(0.1))
    for x_adv in (inside, fgsm(model, x, y, threat=Linf(0.1))):
        assert torch.equal(x_adv, fgsm(model, X, Y, threat=Linf(0.1)))


def test_crafting_in_train_mode_moves_statistics_and_skips_the_checks() -> None:
    model = network()
    before = model[1].running_mean.clone()
    with crafting(model, "train"):
        fgsm(model, X * 2, Y, threat=Linf(0.1))
    assert not torch.equal(model[1].running_mean, before)


@every_attack
def test_draws_of_a_network_in_training_mode_come_from_the_generator_too(
    attack: Callable[..., Tensor],
) -> None:
    x, y = batch(6)
    model = torch.nn.Sequential(network(), torch.nn.Dropout(0.5)).train()
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        found.append(attack(model, x, y, threat=Linf(0.1), generator=generator()))
        assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(*found)

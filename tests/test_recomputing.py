"""Blocks that recompute: the same gradients and statistics, in less memory."""

import copy
from functools import partial
from typing import Any

import pytest
import torch
from running import FITTING, run
from torch import Tensor, nn

from advtrain.attacks.objectives import cross_entropy
from advtrain.attacks.pgd import pgd
from advtrain.attacks.starts import uniform
from advtrain.defenses.base import Pair
from advtrain.defenses.llr import Llr
from advtrain.footprint import Height
from advtrain.models import views
from advtrain.models.lwta_networks import lwta_wide_resnet
from advtrain.models.oat import oat_wide_resnet
from advtrain.models.resnet import cifar_resnet
from advtrain.models.small import small_cnn
from advtrain.models.spectral_norm import normalise
from advtrain.models.wide_resnet import wide_resnet
from advtrain.penalties.lwta_kl import LwtaKl
from advtrain.precision import low_precision
from advtrain.recomputing import recomputing
from advtrain.threat import Linf

RAW: dict[str, Any] = {"mean": None, "std": None}
SHAPE = (3, 16, 16)


def resnet(depth: int = 14) -> nn.Module:
    torch.manual_seed(0)
    return cifar_resnet(SHAPE, 10, depth=depth, **RAW)


def wide() -> nn.Module:
    torch.manual_seed(0)
    return wide_resnet(SHAPE, 10, depth=10, width=1, dropout=0.3, initialisation="he", **RAW)


def matrix() -> nn.Module:
    return normalise(resnet(8), SHAPE, "matrix")


def convolution() -> nn.Module:
    return normalise(resnet(8), SHAPE, "convolution")


def lwta() -> nn.Module:
    torch.manual_seed(0)
    return lwta_wide_resnet(
        *(SHAPE, 10),
        depth=10,
        width=1,
        competitors=2,
        train_temperature=0.67,
        test_temperature=0.01,
        **RAW,
    )


def slimmable() -> nn.Module:
    torch.manual_seed(0)
    return oat_wide_resnet(
        *(SHAPE, 10),
        depth=10,
        width=1,
        dropout=0.0,
        lambdas=[0, 0.5, 1],
        encoding="rand",
        code_size=16,
        dual=True,
        film_offset=0.0,
        widths=[0.5, 1],
    )


def images(count: int) -> Tensor:
    return torch.rand(count, *SHAPE, generator=torch.Generator().manual_seed(1))


def gradients(model: nn.Module) -> list[Tensor]:
    return [p.grad for p in model.parameters() if p.grad is not None]


def step(model: nn.Module) -> list[Tensor]:
    """Gradients of a step in training mode, and buffers after it."""
    x = images(8).requires_grad_()
    torch.manual_seed(2)
    nn.functional.cross_entropy(model.train()(x), torch.arange(8)).backward()
    assert x.grad is not None
    return [x.grad, *gradients(model), *(b.clone() for b in model.buffers())]


@pytest.mark.parametrize("low", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("make", [resnet, wide, matrix, convolution, lwta])
def test_gradients_statistics_and_draws_are_the_same(make: Any, low: bool) -> None:
    model = low_precision(make()) if low else make()
    found, expected = step(recomputing(copy.deepcopy(model))), step(model)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


VIEWS: dict[str, Any] = {
    "at the temperature of training": (lwta, partial(views.at_temperature, tau="train")),
    "noise free": (lwta, views.noise_free),
    "a lambda": (slimmable, partial(views.at, lam=0.5)),
    "the lambda 0": (slimmable, partial(views.at, lam=0)),
    "a lambda at a width": (slimmable, partial(views.at, lam=1, width=0.5)),
}


@pytest.mark.parametrize("name", VIEWS)
def test_gradients_through_a_view_are_the_same(name: str) -> None:
    make, view = VIEWS[name]
    found = []
    for model in (make(), recomputing(make())):
        x = images(4).requires_grad_()
        torch.manual_seed(2)
        loss = nn.functional.cross_entropy(view(model.eval())(x), torch.arange(4))
        found.append(torch.autograd.grad(loss, x)[0])
    assert found[0].abs().amax() > 0 and torch.equal(*found)


def test_a_penalty_on_what_layers_note_has_the_same_gradients() -> None:
    found = []
    for model in (lwta(), recomputing(lwta())):
        penalty = LwtaKl(0.1, "mean")
        torch.manual_seed(2)
        with penalty.watching(model.train()):
            passes = [nn.functional.cross_entropy(model(images(4)), torch.arange(4))]
            passes.append(model(images(3)).square().mean())
            loss = sum(passes) + penalty(model)
        loss.backward()
        found.append(gradients(model))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_statistics_that_one_pass_lends_another_are_the_same() -> None:
    attack = partial(pgd, threat=Linf(0.1), steps=1, step_size=0.1)
    defense = Llr(attack, cross_entropy, uniform, ce_weight=1, gap_weight=2, slope_weight=3)
    found, x = [], images(4)
    for model in (resnet(8), recomputing(resnet(8))):
        loss, _ = defense.loss(model.train(), Pair(x, (x + 0.05).clamp(0, 1), torch.arange(4)))
        loss.backward()
        found.append([*gradients(model), *model.buffers()])
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_a_network_is_as_it_was_after_its_second_passes() -> None:
    model = recomputing(lwta())
    views.noise_free(model.eval())(images(2)).square().mean().backward()
    before = [dict(vars(part)) for part in model.modules()]
    step(model)
    for part, then in zip(model.modules(), before, strict=True):
        assert vars(part) == {**then, "training": True}


def test_copies_recompute_with_their_own_weights() -> None:
    model = recomputing(resnet())
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_()
    assert all(torch.equal(a, b) for a, b in zip(step(twin), step(resnet()), strict=True))


def test_second_derivatives_pass() -> None:
    found = []
    for model in (resnet(8), recomputing(resnet(8))):
        x = torch.rand(4, *SHAPE, generator=torch.Generator().manual_seed(1)).requires_grad_()
        logits = model.eval()(x)
        (gradient,) = torch.autograd.grad(logits.square().sum(), x, create_graph=True)
        gradient.square().sum().backward()
        found.append([p.grad for p in model.parameters()])
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_it_takes_less_memory() -> None:
    heights = []
    for model in (resnet(32), recomputing(resnet(32))):
        with Height() as height:
            step(model)
        heights.append(height.most)
    assert heights[1] < 0.6 * heights[0]


def test_the_key_changes_no_weights_and_a_network_without_blocks_is_refused(
    tmp_path: Any, capfd: Any
) -> None:
    with pytest.raises(ValueError, match="has no blocks"):
        recomputing(small_cnn(SHAPE, 10, **RAW))
    given = (*FITTING, "attack.steps=2", "eval=none", "epochs=1")
    assert run(tmp_path / "out", *given, "recompute=true")["exit_code"] == 2
    assert "recompute=true: Affine has no blocks" in capfd.readouterr().err
    both = ("compile=true", "recompute=true")
    assert run(tmp_path / "both", *given, *both)["exit_code"] == 2
    assert "Give one of the two" in capfd.readouterr().err

"""Blocks that recompute: the same gradients and statistics, in less memory."""

import copy
from typing import Any

import pytest
import torch
from running import FITTING, run
from torch import Tensor, nn

from advtrain.footprint import Height
from advtrain.models.resnet import cifar_resnet
from advtrain.models.small import small_cnn
from advtrain.models.wide_resnet import wide_resnet
from advtrain.precision import low_precision
from advtrain.recomputing import recomputing

RAW: dict[str, Any] = {"mean": None, "std": None}
SHAPE = (3, 16, 16)


def resnet(depth: int = 14) -> nn.Module:
    torch.manual_seed(0)
    return cifar_resnet(SHAPE, 10, depth=depth, **RAW)


def wide() -> nn.Module:
    torch.manual_seed(0)
    return wide_resnet(SHAPE, 10, depth=10, width=1, dropout=0.3, initialisation="he", **RAW)


def step(model: nn.Module) -> list[Tensor]:
    """Gradients of a step in training mode, and buffers after it."""
    x = torch.rand(8, *SHAPE, generator=torch.Generator().manual_seed(1)).requires_grad_()
    torch.manual_seed(2)
    nn.functional.cross_entropy(model.train()(x), torch.arange(8)).backward()
    assert x.grad is not None
    return [x.grad, *(p.grad for p in model.parameters()), *(b.clone() for b in model.buffers())]


@pytest.mark.parametrize("low", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("make", [resnet, wide])
def test_gradients_statistics_and_draws_are_the_same(make: Any, low: bool) -> None:
    model = low_precision(make()) if low else make()
    found, expected = step(recomputing(copy.deepcopy(model))), step(model)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


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

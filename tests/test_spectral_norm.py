"""Layers that divide their weights by their norm: the norm, and all that a run does with them."""

import copy
from functools import partial

import pytest
import torch
from passes import units
from running import DATA, FITTING, interrupted, run
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from advtrain import checkpoints
from advtrain.averages import Ema
from advtrain.defenses.base import Clean
from advtrain.defenses.standard import Standard
from advtrain.descents.awp import Awp
from advtrain.descents.plain import Plain
from advtrain.inference import swift
from advtrain.models.resnet import cifar_resnet
from advtrain.models.small import small_cnn
from advtrain.models.spectral_norm import OPERATORS, normalise, refresh
from advtrain.modes import crafting, frozen_statistics
from advtrain.operators import Convolution, convolution_norm, convolutions, layers, leading_image
from advtrain.precision import low_precision
from advtrain.runs import load_run, start_weights
from advtrain.training import total_loss
from advtrain.types import Moment

SHAPE = (1, 8, 8)
KINDS = sorted(OPERATORS.keys() - {"none"})
SMALL = [each for each in (*FITTING, *DATA) if "model" not in each]
OPTIONS = (*SMALL, "model=small_cnn", "attack.steps=2", "eval=none")


def network(kind: str, seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return normalise(small_cnn(SHAPE, 10, mean=None, std=None), SHAPE, kind)


def images(n: int = 4, seed: int = 1) -> Tensor:
    return torch.rand(n, *SHAPE, generator=torch.Generator().manual_seed(seed))


def buffers(model: nn.Module) -> dict[str, Tensor]:
    return {name: buffer.clone() for name, buffer in model.named_buffers()}


def moved(model: nn.Module, before: dict[str, Tensor]) -> set[str]:
    """The last parts of the names of buffers that are no longer as they were."""
    now = dict(model.named_buffers())
    return {name.rpartition(".")[2] for name in now if not torch.equal(now[name], before[name])}


def norms(model: nn.Module, kind: str) -> list[float]:
    """The norms of the weights in use, exactly."""
    with torch.no_grad(), crafting(model, "eval"):
        found = {
            name: float(torch.linalg.matrix_norm(layer.weight.flatten(1), 2))
            for name, layer in layers(model).items()
        }
        if kind == "convolution":
            for name, (conv, size) in convolutions(model, SHAPE).items():
                convolve, weight = Convolution.of(conv), conv.weight
                v = leading_image(partial(convolve, weight), size, weight)
                found[name] = float(convolution_norm(convolve, weight, v))
    return list(found.values())


@pytest.mark.parametrize("kind", KINDS)
def test_training_passes_bring_every_norm_to_one(kind: str) -> None:
    model, x = network(kind), images()
    start = norms(model, kind)
    with torch.no_grad():
        for _ in range(50):
            model(x)
    assert len(start) == len(layers(model)) > 2
    assert norms(model, kind) == pytest.approx([1.0] * len(start), abs=2e-3)
    assert start == pytest.approx([1.0] * len(start), abs=0.1)


def test_norms_of_matrices_are_those_of_torch() -> None:
    ours = network("matrix")
    torch.manual_seed(0)
    theirs = small_cnn(SHAPE, 10, mean=None, std=None)
    for layer in layers(theirs).values():
        spectral_norm(layer)
    assert torch.equal(ours(images()), theirs(images()))
    assert ours.state_dict().keys() == theirs.state_dict().keys()


def test_the_gradient_passes_through_the_norm() -> None:
    """A weight is used up to scale, so its gradient is orthogonal to it."""
    for kind in KINDS:
        model = network(kind)
        for _ in range(100):
            model(images())
        model(images()).square().sum().backward()
        for layer in layers(model).values():
            weight = layer.parametrizations.weight.original
            cosine = torch.cosine_similarity(weight.flatten(), weight.grad.flatten(), dim=0)
            assert abs(cosine.item()) < 1e-4


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_moves_in_evaluation_mode_nor_where_statistics_are_frozen(kind: str) -> None:
    model, x = network(kind).train(), images()
    before = buffers(model)
    with frozen_statistics(model):
        model(x)
    with crafting(model, "eval"):
        assert torch.equal(model(x), model(x))
    assert not moved(model, before)
    model(x)
    assert moved(model, before) >= ({"_u", "_v"} if kind == "matrix" else {"v"})


@pytest.mark.parametrize("kind", KINDS)
def test_copies_are_networks_of_their_own(kind: str) -> None:
    model = network(kind)
    twin = copy.deepcopy(model)
    before, x = buffers(twin), images()
    model(x)
    assert not moved(twin, before)
    twin(x)
    assert torch.equal(twin.eval()(x), model.eval()(x))


@pytest.mark.parametrize("kind", KINDS)
def test_weight_perturbation_moves_the_trained_weights_and_takes_its_shift_back(kind: str) -> None:
    model, x = network(kind), images()
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    before = buffers(model)
    awp = Awp(0.1, 0.0, Plain(None))

    def evaluate() -> tuple[Tensor, dict[str, Tensor]]:
        return model(x).square().sum(), {}

    with awp.perturbed(model, evaluate):
        shifted = {
            name for name, p in model.named_parameters() if not torch.equal(p, weights[name])
        }
        assert shifted == {name for name in weights if name.endswith("weight.original")}
    assert all(torch.equal(p, weights[name]) for name, p in model.named_parameters())
    assert not moved(model, before)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    awp(model, optimizer, evaluate, Moment(0, 0.0, 0.0))
    assert all(torch.isfinite(p).all() for p in model.parameters())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("taken", ["averaged", "copied"])
def test_an_average_has_norms_near_one(kind: str, taken: str) -> None:
    model = network(kind)
    average = Ema(model, 150, decay=0.99, start=0.0, ramp=False, buffers=taken)
    optimizer = torch.optim.SGD(model.parameters(), 0.2)
    for step in range(150):
        optimizer.zero_grad()
        logits = model(images(16, seed=step))
        nn.functional.cross_entropy(logits, torch.arange(16) % 10).backward()
        optimizer.step()
        average.update(model)
    before = norms(average.model, kind)
    refresh(average.model)
    found = norms(average.model, kind)
    assert found == pytest.approx([1.0] * len(found), abs=0.01)
    assert max(before) > max(found)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(5))
def test_weights_trained_without_them_are_divided_by_their_own_norms(tmp_path, kind, seed) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed + 10)
        plain = small_cnn(SHAPE, 10, mean=None, std=None)
        for parameter in plain.parameters():
            parameter.data.mul_(3)
    model = network(kind, seed).eval()
    checkpoints.save(tmp_path / "plain.pt", plain.state_dict())
    start_weights(model, str(tmp_path / "plain.pt"))
    found = norms(model, kind)
    assert found == pytest.approx([1.0] * len(found), abs=0.01)
    assert model(images()).abs().max() < 10


@pytest.mark.parametrize("kind", KINDS)
def test_the_faster_copy_for_attacks_says_the_same(kind: str) -> None:
    torch.manual_seed(0)
    model = normalise(cifar_resnet((1, 8, 8), 10, depth=8, mean=None, std=None), SHAPE, kind)
    for step in range(3):
        model(images(8, seed=step))
    model.eval()
    fast, x = swift(model, images()), images(6, seed=9)
    torch.testing.assert_close(fast(x), model(x), rtol=1e-4, atol=1e-5)
    pair = [torch.autograd.grad(net(leaf := x.clone().requires_grad_()).amax(1).sum(), leaf)[0]
            for net in (fast, model)]  # fmt: skip
    torch.testing.assert_close(*pair, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_low_precision_does_not_round_the_norms(kind: str) -> None:
    exact = network(kind)
    low = low_precision(copy.deepcopy(exact))
    for _ in range(3):
        exact(images(16)), low(images(16))
    pairs = zip(layers(low.eval()).values(), layers(exact.eval()).values(), strict=True)
    for mine, theirs in pairs:
        torch.testing.assert_close(mine.weight, theirs.weight, rtol=1e-6, atol=1e-7)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert all(layer.weight.dtype == torch.float32 for layer in layers(low).values())
    logits = exact(images(16))
    assert (low(images(16)) - logits).abs().max() < 0.03 * logits.abs().max()


def test_what_it_costs_in_passes_is_that_of_one_image() -> None:
    """On 128 images: a hundredth of a forward pass in evaluation mode, 3 in training, or less."""
    model, x = network("convolution"), images(128)
    plain = small_cnn(SHAPE, 10, mean=None, std=None)
    with torch.no_grad():
        assert units(plain, x, lambda: model.train()(x)) < 1.03
        assert units(plain, x, lambda: model.eval()(x)) < 1.01


def test_layers_that_are_parametrised_already_are_refused() -> None:
    with pytest.raises(ValueError, match="spectral_norm=none"):
        normalise(network("matrix"), SHAPE, "convolution")


def test_none_leaves_a_network_alone(untouched) -> None:
    model = untouched(network("none"))
    assert normalise(model, SHAPE, "none") is model
    assert not any("original" in name for name, _ in model.named_parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_is_saved_and_comes_back(tmp_path, kind: str) -> None:
    options = ("average=ema", "descent=awp", "penalty=orthogonal", f"spectral_norm={kind}")
    status = run(tmp_path, *OPTIONS, *options)
    assert status["state"] == "done", status["error"]
    model, config = load_run(tmp_path)
    content = torch.load(tmp_path / "checkpoints" / "best.pt", weights_only=True)
    assert config["spectral_norm"] == kind
    assert all(torch.equal(v, content["model"][name]) for name, v in model.state_dict().items())
    assert torch.isfinite(model(images())).all()


def test_networks_of_others_take_part(tmp_path) -> None:
    factory = "model.factory=test_spectral_norm.others"
    options = ("model=custom", factory, "packages=[test_spectral_norm]", "precision=bf16")
    assert run(tmp_path, *SMALL, *options, "eval=none", "spectral_norm=matrix")["state"] == "done"
    model, _ = load_run(tmp_path, packages=["test_spectral_norm"])
    assert "1.parametrizations.weight.original" in model.state_dict()


def others(classes: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(64, classes)
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_stopped_in_the_middle_goes_on_bit_for_bit(tmp_path, kind: str) -> None:
    options = (*OPTIONS, f"spectral_norm={kind}", "average=ema", "defense=trades")
    run(tmp_path / "whole", *options)
    interrupted(tmp_path / "cut", 4, *options)
    run(tmp_path / "cut", *options)
    whole, cut = (
        checkpoints.load(tmp_path / name / "checkpoints" / "last.pt") for name in ("whole", "cut")
    )
    for name, value in whole["model"].items():
        assert torch.equal(value, cut["model"][name]), name


def test_training_begins_with_weights_of_the_network_without_them(tmp_path) -> None:
    assert run(tmp_path / "plain", *OPTIONS)["state"] == "done"
    given = f"checkpoint={tmp_path / 'plain'}"
    status = run(tmp_path / "run", *OPTIONS, given, "spectral_norm=matrix", "optimizer.lr=1e-9")
    assert status["state"] == "done", status["error"]
    plain, divided = (
        checkpoints.load(tmp_path / name / "checkpoints" / "best.pt")["model"]
        for name in ("plain", "run")
    )
    original = "head.parametrizations.weight.original"
    torch.testing.assert_close(divided[original], plain["head.weight"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_a_penalty_on_the_weights_does_not_move_what_the_norm_is_followed_by(kind: str) -> None:
    def penalty(model: nn.Module) -> Tensor:
        return sum(layer.weight.square().sum() for layer in layers(model).values())

    parcel, found = Clean(images(8), torch.arange(8)), []
    for penalties in ({}, {"squares": penalty}):
        model = network(kind).train()
        loss, _ = total_loss(model, Standard(), penalties, parcel)
        loss.backward()
        found.append(buffers(model))
    assert all(torch.equal(value, found[1][name]) for name, value in found[0].items())


def test_another_kind_is_refused_at_once(tmp_path) -> None:
    assert run(tmp_path, "spectral_norm=circular")["exit_code"] == 2


def test_an_evaluation_of_a_run_knows_how_its_layers_divide(tmp_path) -> None:
    trained = run(tmp_path / "run", *OPTIONS, "spectral_norm=matrix")
    assert trained["state"] == "done", trained["error"]
    judged = run(
        tmp_path / "again",
        "job=eval",
        f"checkpoint={tmp_path / 'run'}",
        "eval=quick",
        "eval.attacks.pgd.steps=2",
        "logger=none",
        "device=cpu",
    )
    assert judged["state"] == "done", judged["error"]
    assert judged["config"]["spectral_norm"] == "matrix"

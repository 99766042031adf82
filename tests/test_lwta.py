"""Winner-takes-all layers: closed forms, gradients, contexts; and what they do in networks."""

import copy
from collections.abc import Callable
from functools import partial
from itertools import product
from math import log, pi, sqrt
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from advtrain.attacks.pgd import pgd
from advtrain.divergences import noted
from advtrain.inference import swift
from advtrain.models.lwta import (
    Lwta,
    contest,
    divergence,
    layers,
    logistic,
    noise_free,
    temperature,
)
from advtrain.models.lwta_networks import lwta_cnn, lwta_mnist_cnn, lwta_wide_resnet
from advtrain.models.network import Network
from advtrain.modes import crafting
from advtrain.precision import low_precision
from advtrain.threat import Linf

SHAPE = (3, 16, 16)
RAW: dict[str, Any] = {"mean": None, "std": None}
DRAWS: dict[str, Any] = {"train_temperature": 0.67, "test_temperature": 0.01}
FACTORIES: dict[str, Callable[..., Network]] = {
    "cnn": lwta_cnn,
    "mnist_cnn": lwta_mnist_cnn,
    "wrn": partial(lwta_wide_resnet, depth=10, width=1),
}


def layer(channels: int, competitors: int = 2, **draws: float) -> Lwta:
    return Lwta(channels, competitors=competitors, **{**DRAWS, **draws})


def network(name: str = "cnn", competitors: int = 2, shape: tuple = SHAPE) -> Network:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return FACTORIES[name](shape, 7, competitors=competitors, **DRAWS, **RAW).eval()


def images(count: int = 4) -> Tensor:
    return torch.rand((count, *SHAPE), generator=torch.Generator().manual_seed(1))


def masks(
    h: list[float], tau: float, draws: int = 40_000, competitors: int | None = None
) -> Tensor:
    """The masks of one block of activations `h`, over many draws: (draws, U)."""
    torch.manual_seed(0)
    block = torch.tensor(h).expand(draws, -1)
    part = layer(len(h), len(h), test_temperature=tau).eval()
    return part(block) / block


@pytest.mark.parametrize("h", [[0.5, -0.7], [2.0, -1.0], [0.4, -0.3, 1.1], [1.0, 0.2, -0.5, 0.7]])
def test_as_the_temperature_falls_winners_are_drawn_by_softmax(h: list[float]) -> None:
    drawn = masks(h, tau=1e-4)
    rate, expected = (drawn > 0.5).float().mean(0), torch.tensor(h).softmax(0)
    assert ((drawn < 1e-3) | (drawn > 1 - 1e-3)).float().mean() > 0.998  # one of each block
    spread = (expected * (1 - expected) / len(drawn)).sqrt()
    assert ((rate - expected).abs() < 4 * spread).all()
    output = drawn * torch.tensor(h)
    assert (output.mean(0) - expected * torch.tensor(h)).abs().max() < 0.02


def test_logistic_noise_has_the_moments_and_the_distribution_that_it_should() -> None:
    torch.manual_seed(0)
    noise = logistic(torch.empty(200_001)).double()
    assert noise.mean().abs() < 4 * pi / sqrt(3 * len(noise))
    assert noise.std().item() == pytest.approx(pi / sqrt(3), rel=0.01)
    assert noise.abs().max() < 11.8
    found = noise.sort().values.sigmoid()  # uniform, if the noise is logistic
    grid = torch.arange(1, len(noise) + 1).double() / len(noise)
    assert (found - grid).abs().max() < 1.63 / sqrt(len(noise))  # Kolmogorov, 1 %
    halves = noise[:-1].view(2, -1)
    assert torch.corrcoef(halves)[0, 1].abs() < 4 / sqrt(halves.shape[1])


def test_where_numpy_does_not_draw_pytorch_draws_the_same_values(monkeypatch: Any) -> None:
    """Each of the 65,536 values, in either way."""
    torch.manual_seed(0)
    ours = logistic(torch.empty(1_000_003)).unique()
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    theirs = logistic(torch.empty(1_000_003)).unique()
    assert len(ours) == len(theirs) == 2**16
    torch.testing.assert_close(ours.sigmoid(), theirs.sigmoid(), atol=2e-7, rtol=0)


@pytest.mark.parametrize("tau", [0.67, 0.05])
def test_one_logistic_number_draws_as_two_gumbels_do(tau: float) -> None:
    """Of 40,000 masks each: the two-sample statistic of Kolmogorov and Smirnov, at 0.1 %."""
    h, draws = [0.8, -0.4], 40_000
    ours = masks(h, tau, draws)
    gumbel = -(-torch.rand((draws, 2)).clamp_min(1e-30).log()).log()
    theirs = ((torch.tensor(h) + gumbel) / tau).softmax(1)
    counts = [torch.histc(each[:, 0].clamp(0, 1), 1000, 0, 1) for each in (ours, theirs)]
    rates = [count.cumsum(0) / draws for count in counts]
    assert (rates[0] - rates[1]).abs().max() < 1.95 * sqrt(2 / draws)
    torch.testing.assert_close(ours.sum(1), torch.ones(draws))


def test_the_general_form_with_two_competitors_agrees_with_the_fast_one() -> None:
    torch.manual_seed(0)
    pairs = torch.tensor([0.8, -0.4]).expand(40_000, 1, 2)
    slow, fast = contest(pairs, 0.67).squeeze(1), layer(2).train()(pairs.squeeze(1))
    for moment in (lambda z: z.mean(0), lambda z: z.std(0)):
        assert (moment(slow) - moment(fast)).abs().max() < 0.01


def test_competition_is_per_block_of_neighbours_and_per_position() -> None:
    h = torch.zeros(2, 4, 5, 3)
    h[:, 0], h[:, 1], h[:, 2], h[:, 3] = 50.0, 0.5, -3.0, -60.0
    out = layer(4).eval()(h)
    torch.testing.assert_close(out[:, [0, 2]], h[:, [0, 2]])  # winners pass, negative or not
    assert not out[:, [1, 3]].any()
    equal = layer(2).eval()(torch.ones(1, 2, 40, 40))
    assert 0.4 < (equal[:, 0] > 0.5).float().mean() < 0.6  # each position draws for itself


@pytest.mark.parametrize("competitors", [2, 4])
def test_without_noise_the_mask_is_softmax_and_nothing_is_drawn(competitors: int) -> None:
    model, h = nn.Sequential(layer(8, competitors)), torch.randn(3, 8, 2, 2)
    before = torch.get_rng_state()
    with noise_free(model):
        assert not model[0].stochastic
        found = model(h)
    assert torch.equal(torch.get_rng_state(), before) and model[0].stochastic
    blocks = h.unflatten(1, (-1, competitors))
    torch.testing.assert_close(found, (blocks.softmax(2) * blocks).flatten(1, 2))


@pytest.mark.parametrize("shape", [(3, 8), (3, 8, 2, 5)])
def test_divergence_is_that_of_its_definition(shape: tuple[int, ...]) -> None:
    h = torch.randn(shape, generator=torch.Generator().manual_seed(0)).double()
    blocks = h.unflatten(1, (-1, 4))
    q = blocks.softmax(2)
    direct = (q * (q / 0.25).log()).sum(2)
    direct = direct.flatten(2).mean(2) if direct.ndim > 2 else direct
    torch.testing.assert_close(divergence(blocks).double(), direct, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("competitors", [2, 3])
def test_divergence_is_0_of_equals_and_log_u_of_a_certain_winner(competitors: int) -> None:
    equal = torch.full((1, 1, competitors), 1.7)
    certain = torch.zeros(1, 1, competitors)
    certain[..., 0] = 200.0
    assert divergence(equal).item() == pytest.approx(0, abs=1e-6)
    assert divergence(certain).item() == pytest.approx(log(competitors), rel=1e-6)


def test_divergences_are_noted_only_when_asked_and_of_passes_with_gradients() -> None:
    model, x = network(), images()
    model(x)
    assert all(part.divergences is None for part in layers(model))
    with noted(model):
        with torch.no_grad():
            model(x)
        assert all(part.divergences == [] for part in layers(model))
        model(x)
        assert [len(part.divergences) for part in layers(model)] == [1] * 3
        shapes = [tuple(part.divergences[0].shape) for part in layers(model)]
        assert shapes == [(4, 16), (4, 32), (4, 32)]
    assert all(part.divergences is None for part in layers(model))


@pytest.mark.parametrize("name", FACTORIES)
def test_with_one_competitor_it_is_the_plain_network(name: str) -> None:
    """Without any activation: what each layer is given comes out."""
    model, x = network(name, competitors=1), images()
    bare = copy.deepcopy(model)
    for key, part in list(bare.named_modules()):
        if isinstance(part, Lwta):
            bare.set_submodule(key, nn.Identity())
    assert torch.equal(model(x), bare(x)) and torch.equal(model(x), model(x))
    assert not any(part.stochastic for part in layers(model))
    assert divergence(torch.randn(2, 3, 1)).abs().max() < 1e-6


def test_competitors_that_do_not_divide_the_channels_are_refused_with_both_numbers() -> None:
    with pytest.raises(ValueError, match=r"model\.competitors is 3, .* the 32 channels"):
        network(competitors=3)
    with pytest.raises(ValueError, match=r"model\.competitors is 0"):
        layer(4, 0)
    with pytest.raises(ValueError, match=r"model\.test_temperature is 0"):
        layer(4, test_temperature=0.0)
    with pytest.raises(ValueError, match=r"got \(2, 6\); it takes \(B, 4"):
        layer(4)(torch.rand(2, 6))


def fixed(h: Tensor, tau: float, noise: Tensor) -> Tensor:
    """Two competitors with the noise given, written out."""
    pairs = h.unflatten(1, (-1, 2))
    share = ((pairs[:, :, 0] - pairs[:, :, 1] + noise) / tau).sigmoid()
    return torch.stack([share * pairs[:, :, 0], (1 - share) * pairs[:, :, 1]], 2).flatten(1, 2)


@pytest.mark.parametrize("form", [torch.contiguous_format, torch.channels_last])
def test_gradients_are_those_of_the_formula_first_and_second(form: torch.memory_format) -> None:
    draws = torch.Generator().manual_seed(0)
    h = torch.randn((2, 4, 3, 3), generator=draws).to(memory_format=form).requires_grad_()
    direction = torch.randn((2, 4, 3, 3), generator=draws)
    torch.manual_seed(5)
    ours = layer(4).train()(h)
    torch.manual_seed(5)
    theirs = fixed(h, 0.67, logistic(torch.empty(2, 2, 3, 3)))
    torch.testing.assert_close(ours, theirs)
    found = []
    first = [
        torch.autograd.grad((out * direction).sum(), h, retain_graph=True)[0]
        for out in (ours, theirs)
    ]
    torch.testing.assert_close(*first, atol=2e-5, rtol=2e-4)
    for out in (ours, theirs):
        (slope,) = torch.autograd.grad((out * direction).sum(), h, create_graph=True)
        found.append((slope, *torch.autograd.grad(slope.square().sum(), h)))
    for mine, other in zip(*found, strict=True):
        torch.testing.assert_close(mine, other, atol=2e-5, rtol=2e-4)


def test_the_layer_does_not_change_what_it_reads() -> None:
    h = torch.randn(2, 4, 3, 3)
    before = h.clone()
    layer(4)(h), layer(4, 4)(h)
    assert torch.equal(h, before)


@pytest.mark.parametrize("form", [torch.contiguous_format, torch.channels_last])
def test_in_place_it_is_the_same_and_only_where_no_gradient_is_wanted(form: Any) -> None:
    h = torch.randn(2, 4, 3, 3).to(memory_format=form)
    plain, over = layer(4), layer(4)
    over.inplace = True
    torch.manual_seed(0)
    wanted = plain(h)
    before, leaf = h.clone(), h.clone().requires_grad_()
    torch.manual_seed(0)
    assert torch.equal(over(leaf), wanted) and torch.equal(leaf, before)
    torch.manual_seed(0)
    out = over(h)
    assert torch.equal(out, wanted) and out.data_ptr() == h.data_ptr()


@pytest.mark.parametrize("copied", [False, True])
@pytest.mark.parametrize("name", FACTORIES)
def test_nothing_else_reads_what_layers_of_our_networks_overwrite(name: str, copied: bool) -> None:
    model, x = network(name), images()
    model = swift(model, x) if copied else model
    assert all(each.inplace for each in layers(model))
    found = []
    for inplace in (True, False):
        for each in layers(model):
            each.inplace = inplace
        torch.manual_seed(0)
        with torch.no_grad():
            found.append(model(x))
    assert torch.equal(*found)


def test_the_gradient_of_the_mask_flows_at_067_and_is_nearly_always_0_at_001() -> None:
    """d output / d h less the mask itself: the way by which the loser matters."""
    h = torch.randn((400, 2), generator=torch.Generator().manual_seed(0)).requires_grad_()
    reach = {}
    for tau in (0.67, 0.01):
        torch.manual_seed(0)
        with temperature(part := layer(2), tau):
            out = part(h)
        (gradient,) = torch.autograd.grad(out[:, 0].sum(), h)
        reach[tau] = (gradient[:, 1].abs() > 1e-3).float().mean().item()  # through the mask alone
    assert reach[0.67] > 0.85 and reach[0.01] < 0.1


def test_contexts_nest_and_restore_and_copies_made_inside_keep_them() -> None:
    model = network()
    part = layers(model)[0]
    assert (
        part.tau == 0.01 and copy.deepcopy(model).train() and layers(model.train())[0].tau == 0.67
    )
    model.eval()
    with temperature(model, "train"):
        assert part.tau == 0.67
        with noise_free(model):
            assert part.forced == "expected"
            with temperature(model, 0.3):
                assert part.tau == 0.3 and part.stochastic
            assert part.forced == "expected"
        assert part.tau == 0.67
        twin = copy.deepcopy(model)
    assert part.forced is None and layers(twin)[0].tau == 0.67
    with pytest.raises(RuntimeError), noise_free(model):
        raise RuntimeError
    assert part.forced is None
    with noise_free(twin):
        assert layers(twin)[0].forced == "expected" and part.forced is None
    for tau in (0.0, -1.0, "warm"):
        with pytest.raises(ValueError, match="tau is"), temperature(model, tau):
            pass


@pytest.mark.parametrize("competitors", [2, 4])
def test_draws_come_from_the_global_generator_alone(competitors: int) -> None:
    model, x = network(competitors=competitors), images()
    found = []
    for seed in (0, 0, 1):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            found.append(model(x))
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])
    torch.manual_seed(0)
    assert not torch.equal(model(x), model(x))
    first = torch.get_rng_state()
    model(x)
    assert not torch.equal(first, torch.get_rng_state())


def test_an_attack_with_a_generator_is_reproducible_and_leaves_the_global_state() -> None:
    model, x, y = network(), images(), torch.tensor([0, 1, 2, 3])
    attack = partial(pgd, threat=Linf(0.1), steps=2, step_size=0.05)
    before = torch.get_rng_state()
    a, b, c = (attack(model, x, y, generator=torch.Generator().manual_seed(s)) for s in (0, 0, 1))
    assert torch.equal(a, b) and not torch.equal(a, c)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(("name", "train"), list(product(FACTORIES, (True, False))))
def test_networks_give_finite_logits_and_gradients_in_either_format(name: str, train: bool) -> None:
    model = network(name).train(train)
    x = images().requires_grad_()
    torch.manual_seed(0)
    logits = model(x)
    logits.square().sum().backward()
    assert logits.shape == (4, 7) and x.grad is not None and x.grad.isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    twin = network(name).train(train).to(memory_format=torch.channels_last)
    torch.manual_seed(0)
    with noise_free(model), noise_free(twin), torch.no_grad():
        torch.testing.assert_close(twin(x), model(x), atol=1e-4, rtol=1e-4)


def test_the_same_draws_meet_the_same_positions_in_either_format() -> None:
    h = torch.randn(2, 4, 3, 3)
    outs = []
    for each in (h, h.to(memory_format=torch.channels_last)):
        torch.manual_seed(3)
        outs.append(layer(4).train()(each))
    assert torch.equal(*outs) and outs[1].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("name", FACTORIES)
def test_a_faster_copy_draws_at_the_temperatures_of_its_own(name: str) -> None:
    model, x = network(name), images()
    fast = swift(model, x)
    with noise_free(model), noise_free(fast), torch.no_grad():
        torch.testing.assert_close(fast(x), model(x), atol=1e-4, rtol=1e-4)
    if fast is not model:
        with noise_free(model):
            assert not torch.equal(fast(x), fast(x))


def test_in_bfloat16_masks_are_drawn_in_float32() -> None:
    model = low_precision(network("wrn"))
    x = images().requires_grad_()
    logits = model(x)
    logits.sum().backward()
    assert logits.dtype == torch.float32 and logits.isfinite().all() and x.grad.isfinite().all()
    h = torch.tensor([[0.5, -0.5]], dtype=torch.bfloat16).expand(2000, 2)
    out = layer(2, test_temperature=1e-3).eval()(h)
    assert out.dtype == torch.bfloat16
    assert abs((out[:, 0] > 0.25).float().mean() - torch.tensor(1.0).sigmoid()) < 0.05
    assert layer(4, 4).eval()(torch.rand(2, 4, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_through_the_temperature_of_training_an_attack_finds_what_the_other_hides() -> None:
    """A network whose label is the sign of one number behind a saturated competition."""
    part = layer(2)
    head = nn.Linear(2, 2, bias=False)
    head.weight.data = torch.tensor([[0.0, 0.0], [1.0, 0.0]])
    first = nn.Linear(1, 2, bias=False)
    first.weight.data = torch.tensor([[4.0], [4.0]])
    model = nn.Sequential(first, part, head).eval()
    x, y = torch.full((64, 1), 0.5), torch.ones(64, dtype=torch.int64)
    torch.manual_seed(0)
    norms = {}
    for tau in ("train", "test"):
        with temperature(model, tau), crafting(model, "eval"):
            leaf = x.clone().requires_grad_()
            loss = F.cross_entropy(model(leaf), y)
            norms[tau] = torch.autograd.grad(loss, leaf)[0].ne(0).float().mean().item()
    assert norms["train"] > 0.95 and norms["train"] >= norms["test"]


@pytest.mark.parametrize("train", [True, False])
def test_compiled_networks_are_one_graph_and_draw_what_plain_ones_draw(train):
    model = network(shape=(1, 8, 8)).train(train)
    x = torch.rand((6, 1, 8, 8), generator=torch.Generator().manual_seed(1))

    def seen(call: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        leaf = x.clone().requires_grad_()
        torch.manual_seed(2)
        with temperature(model, 0.5):
            logits = call(leaf)
        (gradient,) = torch.autograd.grad(logits.logsumexp(1).sum(), leaf)
        with torch.no_grad(), noise_free(model):
            return logits.detach(), gradient, call(x)

    compiled = torch.compile(model, backend="aot_eager_decomp_partition", fullgraph=True)
    for found, expected in zip(seen(compiled), seen(model), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)

"""The faster copy computes what the network computes, and leaves the network alone."""

import copy
from collections.abc import Callable
from typing import Any

import numpy
import pytest
import torch
import torch.nn.functional as F
import zoo
from torch import Tensor, nn

from advtrain.attacks.pgd import evaluate, pgd
from advtrain.inference import swift
from advtrain.models.linear import linear
from advtrain.models.network import Network
from advtrain.models.preact_resnet import preact_resnet18
from advtrain.models.resnet import cifar_resnet, resnet18, resnet50
from advtrain.models.small import mnist_cnn, small_cnn
from advtrain.models.wide_resnet import wide_resnet
from advtrain.precision import full_precision, is_low, low_precision
from advtrain.threat import Linf

SHAPE = (3, 16, 16)
PIXELS: dict[str, Any] = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.25]}
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: linear(SHAPE, 10, **PIXELS),
    "mnist_cnn": lambda: mnist_cnn(SHAPE, 10, **PIXELS),
    "small_cnn": lambda: small_cnn(SHAPE, 10, **PIXELS),
    "resnet18": lambda: resnet18(SHAPE, 10, stem="cifar", **PIXELS),
    "resnet50_large_stem": lambda: resnet50(SHAPE, 10, stem="imagenet", **PIXELS),
    "cifar_resnet": lambda: cifar_resnet(SHAPE, 10, depth=8, **PIXELS),
    "preact_activated": lambda: preact_resnet18(SHAPE, 10, shortcut="activated", **PIXELS),
    "preact_raw": lambda: preact_resnet18(SHAPE, 10, shortcut="raw", **PIXELS),
    "wide_resnet": lambda: wide_resnet(
        SHAPE, 10, depth=10, width=2, dropout=0.3, initialisation="he", **PIXELS
    ),
}
LEFT = {"preact_activated": 9, "preact_raw": 9, "wide_resnet": 3}  # what follows no layer


def settled(model: nn.Module) -> nn.Module:
    """`model` in evaluation mode, with statistics as after a training."""
    for part in model.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            for value in (part.running_mean, part.weight, part.bias):
                if value is not None:
                    nn.init.uniform_(value, 0.5, 1.5)
            if part.running_var is not None:
                nn.init.uniform_(part.running_var, 0.3, 3.0)
    return model.eval()


def images(*shape: int, seed: int = 1) -> Tensor:
    return torch.rand(shape or (4, *SHAPE), generator=torch.Generator().manual_seed(seed))


def norms(model: nn.Module) -> int:
    return sum(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in model.modules())


def agree(fast: nn.Module, model: nn.Module, x: Tensor) -> None:
    """Logits and gradients to the images are equal up to rounding, with and without a graph."""
    y = torch.arange(len(x)) % 2
    found, expected = (
        evaluate(lambda x_adv, net=net: F.cross_entropy(net(x_adv), y, reduction="none"), x)
        for net in (fast, model)
    )
    with torch.no_grad():
        pairs = [*zip(found, expected, strict=True), (fast(x), model(x))]
    for ours, theirs in pairs:
        assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()


@pytest.mark.parametrize("name", NETWORKS)
def test_built_in_networks_keep_their_logits_and_gradients(name: str, untouched: Any) -> None:
    torch.manual_seed(0)
    model = untouched(settled(NETWORKS[name]()))
    fast = swift(model, images())
    assert fast is not model and norms(fast) == LEFT.get(name, 0)
    assert not any(parameter.requires_grad for parameter in fast.parameters())
    assert not any(part.training for part in fast.modules())
    agree(fast, model, images(3, *SHAPE, seed=2))
    assert isinstance(fast, Network) and isinstance(model, Network)
    torch.testing.assert_close(fast.features(images()), model.features(images()), rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    "layers",
    [
        [nn.Conv2d(3, 6, 3, 2, 1, bias=False), nn.BatchNorm2d(6), nn.Flatten()],
        [nn.Conv2d(3, 6, (3, 1), (1, 2), "valid", 2, groups=3), nn.BatchNorm2d(6), nn.Flatten()],
        [nn.Conv2d(3, 4, 3, padding="same", padding_mode="reflect"), nn.BatchNorm2d(4), nn.ReLU()],
        [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, affine=False), nn.ReLU(), nn.ReLU(), nn.Flatten()],
        [nn.Flatten(), nn.Linear(768, 5, bias=False), nn.BatchNorm1d(5), nn.ReLU()],
        [nn.Flatten(2), nn.Conv1d(3, 4, 5), nn.BatchNorm1d(4), nn.Tanh(), nn.Flatten()],
        [nn.Unflatten(1, (1, 3)), nn.Conv3d(1, 2, 2), nn.BatchNorm3d(2), nn.Flatten()],
    ],
    ids=["no_bias", "grouped", "reflected", "not_affine", "linear", "one", "three_dimensions"],
)
def test_batch_norm_is_folded_into_each_kind_of_layer(layers: list[nn.Module]) -> None:
    model = settled(nn.Sequential(*layers, nn.Flatten(), nn.LazyLinear(3)))
    model(images())
    fast = swift(model, images())
    assert norms(model) == 1 and norms(fast) == 0
    agree(fast, model, images(seed=2))


class Body(nn.Module):
    """A convolution, batch norm and ReLU in an order of its own, then a linear layer."""

    def __init__(self, order: Callable[["Body", Tensor], Tensor], **norm: Any) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.norm = nn.BatchNorm2d(3, **norm)
        self.relu = nn.ReLU()
        self.head = nn.Linear(768, 4)
        self.order = order

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.order(self, x).flatten(1))


@pytest.mark.parametrize(
    "order",
    [
        lambda net, x: (h := net.conv(x)) + net.norm(h),
        lambda net, x: net.norm(x) + net.conv(x),
        lambda net, x: net.norm(net.conv(x).tanh()),
        lambda net, x: net.norm(net.conv(x).add_(1)),
        lambda net, x: net.norm(net.conv(net.conv(x))),
        lambda net, x: net.norm(net.conv(x)) + net.norm(x),
        lambda net, x: (h := net.conv(x)) + net.relu(h) + net.norm(x.relu()),
        lambda net, x: net.relu(x) + net.norm(x) + x,
    ],
    ids=["read_twice", "no_layer", "between", "changed", "layer_twice", "norm_twice", "relu", "x"],
)
def test_what_cannot_be_folded_is_kept(order: Callable[[Body, Tensor], Tensor]) -> None:
    model, x = settled(Body(order)), images(4, 3, 16, 16)
    before = x.clone()
    fast = swift(model, x)
    assert fast is not model and norms(fast) == 1
    agree(fast, model, images(seed=2))
    assert torch.equal(x, before)


def test_batch_norm_that_uses_the_batch_is_kept() -> None:
    model = settled(Body(lambda net, x: net.relu(net.norm(net.conv(x))), track_running_stats=False))
    fast = swift(model, images())
    assert norms(fast) == 1
    agree(fast, model, images(seed=2))


@pytest.mark.parametrize(
    "order, left",
    [
        (lambda net, x: net.norm(net.conv(x)) if x.mean() < 9 else x, 0),
        (lambda net, x: net.norm(net.conv(x if torch.is_grad_enabled() else 1 - x)), 0),
        (lambda net, x: net.norm(net.conv(x)).view(len(x), -1), 0),
        (lambda net, x: net.norm(net.conv(x + torch.randn_like(x[:, :1]))), 0),
        (lambda net, x: net.norm(net.conv(x)) * net.norm.weight[:, None, None], 1),
        (lambda net, x: (h := net.conv(x)).detach() + net.norm(h), 1),
        (lambda net, x: net.norm(net.conv(x)) + torch.tensor(numpy.random.rand()), 1),
    ],
    ids=["branches", "two_faced", "view", "noise", "reads_weights", "detaches", "numpy"],
)
def test_code_of_the_networks_own_runs_as_it_is(
    order: Callable[[Body, Tensor], Tensor], left: int
) -> None:
    numpy.random.seed(0)
    model, x = settled(Body(order)), images(seed=2)
    fast = swift(model, images())
    assert norms(fast) == left and (fast is model) == (left == 1)
    for wanted in (True, False):
        logits = []
        for net in (fast, model):
            torch.manual_seed(0)
            numpy.random.seed(0)
            with torch.set_grad_enabled(wanted):
                logits.append(net(x).detach())
        torch.testing.assert_close(*logits, rtol=0, atol=1e-5)


def test_a_hidden_linear_layer_reads_maps_in_the_order_in_which_they_lie() -> None:
    torch.manual_seed(0)
    body = [nn.Conv2d(3, 5, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(5 * 16 * 16, 7)]
    model = nn.Sequential(*body, nn.ReLU(), nn.Linear(7, 4)).eval()
    fast = swift(model, images())
    assert [type(part).__name__ for part in fast][2] == "Unrolled"
    assert not torch.equal(fast[3].layer.weight, model[3].weight)
    agree(fast, model, images(3, *SHAPE, seed=2))
    short = swift(nn.Sequential(*body).eval(), images())
    assert isinstance(short[2], nn.Flatten)  # whose output is features of this one


def test_a_low_precision_network_has_a_low_precision_copy() -> None:
    torch.manual_seed(0)
    exact = settled(NETWORKS["small_cnn"]())
    model, x = low_precision(copy.deepcopy(exact)), images()
    fast = swift(model, x)
    assert fast is not model and is_low(fast) and is_low(model) and norms(fast) == 0
    seen: list[torch.dtype] = []
    fast.get_submodule("body.3").register_forward_hook(lambda _, a, out: seen.append(out.dtype))
    with torch.no_grad():
        error = (fast(x) - exact(x)).abs().max()
        assert seen == [torch.bfloat16]
        assert 0 < error < 3 * (model(x) - exact(x)).abs().max()
        with full_precision(fast):
            torch.testing.assert_close(fast(x), exact(x), rtol=1e-5, atol=1e-5)


def simple() -> nn.Sequential:
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 4, 3)
    layers = [conv, nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(784, 3)]
    return settled(nn.Sequential(*layers))


def test_the_copy_is_independent_and_no_draws_are_used_up(untouched: Any) -> None:
    model, before = simple(), torch.get_rng_state()
    x = images().requires_grad_()
    fast = swift(untouched(model), x)
    logits = fast(x)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    assert torch.equal(fast(x), logits) and x.grad is None and x.requires_grad
    assert torch.equal(torch.get_rng_state(), before)
    assert model[0].weight.is_contiguous() and not model[2].inplace


def test_networks_without_a_faster_copy_come_back_themselves() -> None:
    class Single(nn.Module):
        def __deepcopy__(self, memo: object) -> None:
            raise TypeError("there is only one")

        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1)

    training, part, broken, compiled = simple().train(), simple(), simple(), simple()
    part[1].train()
    broken[4].weight.data[0, 0] = float("nan")
    compiled.compile()
    for model in (training, part, broken, compiled, torch.compile(simple()), Single().eval()):
        assert swift(model, images()) is model
    model = simple()
    assert swift(model, images()[:0]) is model
    assert swift(model, images(4, 2, 16, 16)) is model


def test_what_the_gradient_still_needs_is_not_overwritten() -> None:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.gate, self.relu = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3), nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            z = self.conv(x)
            gated = self.gate(x) * z.detach()
            return (gated + self.relu(z)).flatten(2).mean(2)

    model, x = Gated().eval(), images()
    y = model(x).argmax(1)
    found = pgd(swift(model, x), x, y, threat=Linf(0.1), steps=3, step_size=0.05)
    assert (found - x).abs().amax() > 0.05


def test_hooks_and_parametrised_weights_stay_at_work() -> None:
    hooked, x = simple(), images()
    hooked[0].register_forward_hook(lambda module, given, output: output * 2)
    spectral = simple()
    nn.utils.parametrizations.spectral_norm(spectral[0])
    spectral.eval()
    for model in (hooked, spectral):
        fast = swift(model, x)
        assert fast is not model and norms(fast) == 1
        agree(fast, model, images(seed=2))


@pytest.mark.parametrize("wrap", [zoo.purified, zoo.purified_by_func, zoo.two_faced])
def test_networks_that_differentiate_inside_keep_their_function(wrap: Any) -> None:
    model = wrap(simple()).eval()
    agree(swift(model, images()), model, images(seed=2))


def test_an_attack_on_the_copy_gives_the_same_images(digits: Any) -> None:
    fast = swift(digits.model, digits.x[:16])
    assert fast is not digits.model
    found = [
        pgd(
            model,
            digits.x,
            digits.y,
            threat=Linf(0.1),
            steps=5,
            step_size=0.03,
            generator=torch.Generator().manual_seed(0),
        )
        for model in (fast, digits.model)
    ]
    same = (found[0] - found[1]).abs().amax((1, 2, 3)) < 1e-5
    assert same.float().mean() > 0.98


@pytest.mark.gpu
def test_on_a_gpu_the_copy_agrees_too() -> None:
    model = settled(NETWORKS["small_cnn"]()).cuda()
    fast = swift(model, images().cuda())
    assert norms(fast) == 0
    torch.testing.assert_close(fast(images().cuda()), model(images().cuda()), rtol=1e-4, atol=1e-4)

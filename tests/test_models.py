"""Networks: what they are (counts), what they promise (features, sizes), what they refuse."""

from collections.abc import Callable
from functools import partial
from math import sqrt

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from advtrain.models.linear import linear
from advtrain.models.lwta_networks import lwta_cnn, lwta_mnist_cnn, lwta_wide_resnet
from advtrain.models.network import Network
from advtrain.models.nuat_networks import nuat_mnist_cnn, nuat_resnet18, nuat_wide_resnet
from advtrain.models.preact_resnet import preact_resnet18
from advtrain.models.resnet import cifar_resnet, resnet18, resnet34, resnet50
from advtrain.models.small import mnist_cnn, small_cnn
from advtrain.models.wide_resnet import wide_resnet

RAW = {"mean": None, "std": None}
MNIST, CIFAR, STL, IMAGENET = (1, 28, 28), (3, 32, 32), (3, 96, 96), (3, 224, 224)

resnet110 = partial(cifar_resnet, depth=110)
wrn_16_8 = partial(wide_resnet, depth=16, width=8, dropout=0.3, initialisation="torch")
wrn_28_10 = partial(wide_resnet, depth=28, width=10, dropout=0.0, initialisation="he")
wrn_34_10 = partial(wide_resnet, depth=34, width=10, dropout=0.0, initialisation="he")
wrn_40_2 = partial(wide_resnet, depth=40, width=2, dropout=0.3, initialisation="torch")
auto18 = partial(resnet18, stem="auto")
WINNERS = {"competitors": 2, "train_temperature": 0.67, "test_temperature": 0.01}
lwta_34_1 = partial(lwta_wide_resnet, depth=34, width=1, **WINNERS)

COUNTS = [
    pytest.param(linear, MNIST, 10, 7_850, 0.0, 0, id="linear"),
    pytest.param(small_cnn, (1, 8, 8), 10, 29_162, 0.3, 2, id="small_cnn at 8x8"),
    pytest.param(small_cnn, MNIST, 10, 66_154, 5.7, 3, id="small_cnn at 28x28"),
    pytest.param(small_cnn, CIFAR, 10, 103_722, 8.6, 4, id="small_cnn at 32x32"),
    pytest.param(mnist_cnn, MNIST, 10, 166_406, 0.6, 0, id="mnist_cnn"),
    pytest.param(auto18, CIFAR, 10, 11_173_962, 555.4, 20, id="resnet18"),
    pytest.param(auto18, IMAGENET, 1000, 11_689_512, 1814.1, 20, id="resnet18 of ImageNet"),
    pytest.param(
        partial(resnet34, stem="auto"), CIFAR, 10, 21_282_122, 1159.4, 36, id="resnet34"
    ),
    pytest.param(
        partial(resnet50, stem="auto"), CIFAR, 10, 23_520_842, 1297.8, 53, id="resnet50"
    ),
    pytest.param(
        partial(resnet50, stem="auto"), IMAGENET, 1000, 25_557_032, 4089.2, 53,
        id="resnet50 of ImageNet",
    ),
    pytest.param(resnet110, CIFAR, 10, 1_730_714, 253.1, 111, id="resnet110"),
    pytest.param(
        partial(cifar_resnet, depth=50), CIFAR, 10, 758_554, 111.6, 51, id="resnet110 at depth 50"
    ),
    pytest.param(
        partial(preact_resnet18, shortcut="activated"), CIFAR, 10, 11_172_170, 555.4, 17,
        id="preact_resnet18",
    ),
    pytest.param(wrn_16_8, CIFAR, 10, 10_961_370, 1548.1, 13, id="wrn_16_8"),
    pytest.param(wrn_28_10, CIFAR, 10, 36_479_194, 5243.3, 25, id="wrn_28_10"),
    pytest.param(wrn_34_10, CIFAR, 10, 46_160_474, 6658.9, 31, id="wrn_34_10"),
    pytest.param(wrn_40_2, STL, 10, 2_243_546, 2948.4, 37, id="wrn_40_2"),
    pytest.param(nuat_resnet18, CIFAR, 10, 11_173_962, 555.4, 20, id="nuat_resnet18"),
    pytest.param(nuat_wide_resnet, CIFAR, 10, 46_172_810, 7366.7, 31, id="nuat_wrn_34_10"),
    pytest.param(nuat_mnist_cnn, MNIST, 10, 1_791_466, 52.4, 0, id="nuat_mnist_cnn"),
    pytest.param(
        partial(lwta_cnn, **WINNERS), (1, 8, 8), 10, 29_162, 0.3, 2, id="lwta_cnn at 8x8"
    ),
    pytest.param(
        partial(lwta_mnist_cnn, **WINNERS), MNIST, 10, 166_406, 0.6, 0, id="lwta_mnist_cnn"
    ),
    pytest.param(lwta_34_1, CIFAR, 10, 466_714, 69.1, 31, id="lwta_wrn_34_1"),
    pytest.param(
        partial(lwta_wide_resnet, depth=34, width=5, **WINNERS), CIFAR, 10, 11_554_074, 1671.6, 31,
        id="lwta_wrn_34_5",
    ),
]  # fmt: skip

SMALL_ONES = {
    "linear": linear,
    "small_cnn": small_cnn,
    "mnist_cnn": mnist_cnn,
    "resnet18": auto18,
    "resnet50": partial(resnet50, stem="auto"),
    "resnet20": partial(cifar_resnet, depth=20),
    "preact_activated": partial(preact_resnet18, shortcut="activated"),
    "preact_raw": partial(preact_resnet18, shortcut="raw"),
    "wrn_16_2": partial(wide_resnet, depth=16, width=2, dropout=0.3, initialisation="he"),
}


@pytest.mark.parametrize(("factory", "shape", "classes", "parameters", "mmac", "norms"), COUNTS)
def test_sizes_are_those_of_the_sources(
    factory: Callable[..., Network],
    shape: tuple[int, int, int],
    classes: int,
    parameters: int,
    mmac: float,
    norms: int,
) -> None:
    with torch.device("meta"):
        network, x = factory(shape, classes, **RAW).eval(), torch.empty(1, *shape)
        with FlopCounterMode(display=False) as counter:
            logits = network(x)
    assert logits.shape == (1, classes)
    assert sum(p.numel() for p in network.parameters()) == parameters
    assert sum(isinstance(layer, nn.BatchNorm2d) for layer in network.modules()) == norms
    assert round(counter.get_total_flops() / 2e6, 1) == mmac


@pytest.mark.parametrize("name", SMALL_ONES)
def test_features_are_what_the_head_sees_in_either_memory_format(name: str) -> None:
    torch.manual_seed(0)
    network = SMALL_ONES[name]((3, 16, 16), 7, mean=[0.5] * 3, std=[0.25] * 3).eval()
    x = torch.rand(2, 3, 16, 16)
    features, logits = network.features(x), network(x)
    assert features.ndim == 2 and logits.shape == (2, 7)
    assert torch.equal(network.head(features), logits)
    network.to(memory_format=torch.channels_last)
    other = network(x.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(other, logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", SMALL_ONES)
def test_every_parameter_and_the_image_get_a_gradient(name: str) -> None:
    network = SMALL_ONES[name]((3, 16, 16), 7, **RAW).train()
    x = torch.rand(3, 3, 16, 16, requires_grad=True)
    network(x).square().sum().backward()
    assert x.grad is not None and x.grad.abs().sum() > 0
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


@pytest.mark.parametrize("name", sorted(set(SMALL_ONES) - {"linear", "mnist_cnn"}))
def test_networks_that_pool_take_other_image_sizes(name: str) -> None:
    network = SMALL_ONES[name]((3, 16, 16), 7, **RAW).eval()
    assert network(torch.rand(1, 3, 20, 24)).shape == (1, 7)


def test_normalisation_comes_first_and_is_saved_but_not_trained() -> None:
    network = linear((2, 1, 1), 3, mean=[0.5, 0.25], std=[0.5, 2.0])
    x = torch.tensor([[[[1.0]], [[0.75]]]])
    torch.testing.assert_close(network(x), network.head(torch.tensor([[1.0, 0.25]])))
    assert {"normalise.mean", "normalise.std"} <= network.state_dict().keys()
    assert not any("normalise" in name for name, _ in network.named_parameters())


def test_without_constants_the_linear_head_reads_raw_pixels() -> None:
    network = linear((1, 4, 5), 3, **RAW)
    x = torch.rand(6, 1, 4, 5)
    assert isinstance(network.head, nn.Linear)
    torch.testing.assert_close(network(x), x.flatten(1) @ network.head.weight.T + network.head.bias)


def test_linear_takes_flat_images_too_and_normalises_them_alike() -> None:
    network = linear((3, 4, 5), 3, mean=[0.1, 0.2, 0.3], std=[0.4, 0.5, 0.6])
    x = torch.rand(6, 3, 4, 5)
    assert torch.equal(network(x), network(x.flatten(1)))


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.rand(2, 1, 32, 32), r"\(2, 1, 32, 32\); it takes \(B, 3, H, W\)"),
        (torch.rand(3, 32, 32), r"\(3, 32, 32\); it takes"),
        (torch.zeros(2, 3, 32, 32, dtype=torch.uint8), "uint8; it takes floats"),
    ],
)
def test_wrong_images_are_refused_with_both_shapes(x: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small_cnn(CIFAR, 10, **RAW)(x)


def test_networks_of_one_size_refuse_others() -> None:
    with pytest.raises(ValueError, match=r"\(B, 1, 28, 28\)"):
        mnist_cnn(MNIST, 10, **RAW)(torch.rand(1, 1, 32, 32))
    with pytest.raises(ValueError, match=r"\(B, 1, 28, 28\)"):
        linear(MNIST, 10, **RAW)(torch.rand(4, 64))


@pytest.mark.parametrize(
    ("mean", "std", "message"),
    [
        ([0.5], None, r"model.std is null"),
        (None, [0.5], r"model.mean is null"),
        ([0.5], [0.5], "the images have 3 channels"),
        ([0.5] * 3, [0.5, 0.0, 0.5], "greater than 0"),
    ],
)
def test_impossible_normalisation_is_refused(
    mean: list[float] | None, std: list[float] | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        small_cnn(CIFAR, 10, mean=mean, std=std)


def test_depths_outside_the_families_are_refused() -> None:
    with pytest.raises(ValueError, match="6 n \\+ 4"):
        wide_resnet(CIFAR, 10, depth=30, width=1, dropout=0.0, initialisation="he", **RAW)
    with pytest.raises(ValueError, match="6 n \\+ 2"):
        cifar_resnet(CIFAR, 10, depth=51, **RAW)


def test_unknown_variants_are_refused() -> None:
    with pytest.raises(ValueError, match="cifar and imagenet"):
        resnet18(CIFAR, 10, stem="stl", **RAW)
    with pytest.raises(ValueError, match="activated and raw"):
        preact_resnet18(CIFAR, 10, shortcut="none", **RAW)
    with pytest.raises(ValueError, match="he and torch"):
        wide_resnet(CIFAR, 10, depth=10, width=1, dropout=0.0, initialisation="zero", **RAW)


def test_the_stem_follows_the_image_size_unless_told() -> None:
    with torch.device("meta"):
        stems = {
            (side, stem): resnet18((3, side, side), 10, stem=stem, **RAW).body.conv1.kernel_size[0]
            for side in (32, 64, 65, 224)
            for stem in ("auto", "cifar", "imagenet")
        }
    assert [stems[side, "auto"] for side in (32, 64, 65, 224)] == [3, 3, 7, 7]
    assert {stems[side, "cifar"] for side in (32, 224)} == {3}
    assert {stems[side, "imagenet"] for side in (32, 224)} == {7}


def test_the_resnets_of_trades_and_nuat_share_their_keys_and_differ_as_functions() -> None:
    twins = [auto18(CIFAR, 10, **RAW), nuat_resnet18(CIFAR, 10, **RAW)]
    twins[1].load_state_dict(twins[0].state_dict())
    x = torch.rand(2, *CIFAR)
    first, second = (twin.eval()(x) for twin in twins)
    assert (first - second).abs().max() > 1e-3


def test_the_preact_twins_share_their_keys_and_differ_as_functions() -> None:
    twins = [preact_resnet18(CIFAR, 10, shortcut=s, **RAW) for s in ("activated", "raw")]
    twins[1].load_state_dict(twins[0].state_dict())
    x = torch.rand(2, *CIFAR)
    first, second = (twin.eval()(x) for twin in twins)
    assert (first - second).abs().max() > 1e-3


@pytest.mark.parametrize(
    "network",
    [
        wide_resnet(CIFAR, 10, depth=10, width=4, dropout=0.0, initialisation="he", **RAW),
        cifar_resnet(CIFAR, 10, depth=20, **RAW),
    ],
    ids=["wide_resnet", "cifar_resnet"],
)
def test_he_kernels_have_variance_two_over_fan_out(network: Network) -> None:
    kernels = [m.weight for m in network.modules() if isinstance(m, nn.Conv2d)]
    large = [k for k in kernels if k.numel() > 5000]
    assert large
    for kernel in large:
        expected = sqrt(2 / (kernel.shape[0] * kernel.shape[2] ** 2))
        assert kernel.std().item() == pytest.approx(expected, rel=0.06)
    if network.head.in_features == 256:
        assert not network.head.bias.any()


def test_layers_stand_in_the_order_of_torchvision_under_its_names() -> None:
    from torchvision.models import resnet18 as theirs

    with torch.device("meta"):
        ours = resnet18(IMAGENET, 1000, stem="auto", **RAW).state_dict()
        expected = theirs().state_dict()
    names = [name.removeprefix("body.").replace("head.", "fc.") for name in ours]
    assert names == list(expected)
    assert [v.shape for v in ours.values()] == [v.shape for v in expected.values()]


@pytest.mark.slow
def test_small_cnn_compiles_to_the_same_function() -> None:
    network = small_cnn((1, 8, 8), 10, mean=[0.3], std=[0.4]).eval()
    x = torch.rand(4, 1, 8, 8)
    torch.testing.assert_close(torch.compile(network)(x), network(x))

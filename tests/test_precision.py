"""Low precision: fast inside, exact where an attack looks."""

import copy

import pytest
import torch
from torch import Tensor, nn

from advtrain.models.linear import linear
from advtrain.models.network import Network
from advtrain.models.small import small_cnn
from advtrain.models.wide_resnet import wide_resnet
from advtrain.precision import computing_in, full_precision, is_low, low_precision

CIFAR = (3, 32, 32)


def plain() -> Network:
    torch.manual_seed(0)
    return small_cnn(CIFAR, 10, mean=[0.5] * 3, std=[0.25] * 3).eval()


def images(n: int = 4) -> Tensor:
    return torch.rand(n, *CIFAR, generator=torch.Generator().manual_seed(1))


def test_inner_layers_are_rounded_and_everything_an_attack_sees_is_not() -> None:
    network, x = low_precision(plain()), images().requires_grad_()
    seen: dict[str, torch.dtype] = {}
    for name, layer in network.named_modules():
        layer.register_forward_hook(lambda _, a, out, name=name: seen.update({name: out.dtype}))
    logits = network(x)
    (gradient,) = torch.autograd.grad(logits.sum(), x)
    assert seen["normalise"] == torch.float32
    assert seen["body.3"] == seen["body.1"] == torch.bfloat16
    assert seen["head"] == logits.dtype == gradient.dtype == torch.float32
    assert network.features(x).dtype == torch.float32
    assert (logits != logits.bfloat16()).any()  # not rounded and then widened
    assert not torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize("training", [False, True])
def test_it_agrees_with_full_precision_in_logits_and_gradients(training: bool) -> None:
    exact = plain().train(training)
    low = low_precision(copy.deepcopy(exact))
    values = []
    for network in (exact, low):
        x = images(16).requires_grad_()
        loss = nn.functional.cross_entropy(network(x), torch.arange(16) % 10)
        loss.backward()
        gradients = [x.grad, *(p.grad for p in network.parameters())]
        values.append((loss.detach(), torch.cat([g.flatten() for g in gradients])))
    (loss, gradient), (low_loss, low_gradient) = values
    assert 0 < (loss - low_loss).abs() < 0.02
    assert nn.functional.cosine_similarity(gradient, low_gradient, dim=0) > 0.99
    for name, buffer in exact.named_buffers():
        torch.testing.assert_close(low.get_buffer(name), buffer, atol=0.02, rtol=0.02)


def test_a_perturbation_that_bfloat16_would_round_away_is_seen() -> None:
    network = low_precision(plain())
    x = images() / 2 + 0.5
    x = x.bfloat16().float()  # on the grid, whose spacing is 1/256 here
    moved = x + 0.001
    assert torch.equal(moved.bfloat16().float(), x)
    assert (network(moved) - network(x)).abs().max() > 1e-5


def test_keys_parameters_and_buffers_stay_and_weights_load_both_ways() -> None:
    exact = plain()
    low = low_precision(copy.deepcopy(exact))
    assert list(low.state_dict()) == list(exact.state_dict())
    assert all(p.dtype == torch.float32 for p in low.parameters())
    low.load_state_dict(exact.state_dict(), strict=True)
    exact.load_state_dict(low.state_dict(), strict=True)


def test_a_copy_computes_with_its_own_weights() -> None:
    low = low_precision(plain())
    average = copy.deepcopy(low)
    before = average(images())
    with torch.no_grad():
        for parameter in low.parameters():
            parameter.zero_()
    assert torch.equal(average(images()), before)
    assert not torch.equal(low(images()), before)


def test_autocast_ends_when_the_network_raises() -> None:
    network = low_precision(plain())
    with pytest.raises(ValueError, match="it takes"):
        network(torch.rand(1, 1, 32, 32))
    assert not torch.is_autocast_enabled("cpu")


def test_twice_is_as_once_and_calls_repeat() -> None:
    network = low_precision(plain())
    once = network(images())
    assert low_precision(network) is network
    assert torch.equal(network(images()), once)


def test_full_precision_restores_the_exact_function_for_a_while() -> None:
    exact = plain()
    low = low_precision(copy.deepcopy(exact))
    rounded = low(images())
    with full_precision(low) as judge:
        assert torch.equal(judge(images()), exact(images()))
        assert torch.equal(judge.features(images()), exact.features(images()))
    assert torch.equal(low(images()), rounded)
    with full_precision(exact) as judge:
        assert judge is exact


def test_functional_calls_see_the_given_weights_in_low_precision() -> None:
    network = low_precision(plain())
    zeros = {name: torch.zeros_like(p) for name, p in network.named_parameters()}
    logits = torch.func.functional_call(network, zeros, (images(),))
    assert not logits.any() and logits.dtype == torch.float32


def test_weights_used_frozen_first_still_train_afterwards() -> None:
    network = low_precision(plain())
    network.requires_grad_(False)
    network(images())
    network.requires_grad_(True)
    network(images()).sum().backward()
    assert all(p.grad is not None for p in network.parameters())


def test_a_linear_model_stays_exact() -> None:
    exact = linear(CIFAR, 10, mean=None, std=None)
    low = low_precision(copy.deepcopy(exact))
    assert torch.equal(low(images()), exact(images()))


def test_identity_shortcuts_do_not_widen_the_stages() -> None:
    network = low_precision(
        wide_resnet(
            CIFAR, 10, depth=10, width=1, dropout=0.3, initialisation="he", mean=None, std=None
        )
    )
    dtypes = []
    network.body.block1.register_forward_hook(lambda *a: dtypes.append(a[2].dtype))
    network(images())
    assert dtypes == [torch.bfloat16]


def test_a_model_without_layers_or_in_another_order_is_refused() -> None:
    with pytest.raises(ValueError, match="no convolution or linear layer"):
        low_precision(nn.Flatten())

    class Backwards(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.second = nn.Linear(8, 8)
            self.first = nn.Linear(8, 8)
            self.head = nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.second(self.first(x)))

    with pytest.raises(ValueError, match="registered after it ran before it"):
        low_precision(Backwards())(torch.rand(2, 8))


@pytest.mark.slow
def test_low_precision_compiles_without_breaks() -> None:
    network = low_precision(plain())
    compiled = torch.compile(network, fullgraph=True)
    torch.testing.assert_close(compiled(images()), network(images()), atol=0.01, rtol=0.01)
    with full_precision(network):
        torch.testing.assert_close(compiled(images()), plain()(images()))


@pytest.mark.gpu
def test_on_a_gpu_it_agrees_with_the_cpu() -> None:
    exact = plain()
    low = low_precision(copy.deepcopy(exact)).cuda()
    logits = low(images().cuda())
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits.cpu(), exact(images()), atol=0.02, rtol=0.02)


def test_a_network_inside_another_is_found() -> None:
    inner = plain()
    outer, before = nn.Sequential(nn.Identity(), inner), inner(images())
    low_precision(inner)
    assert is_low(outer) and not torch.equal(outer(images()), before)
    with full_precision(outer):
        assert not is_low(outer) and torch.equal(outer(images()), before)
    assert is_low(inner)


@pytest.mark.parametrize("trained_in", ["fp32", "bf16"])
def test_a_network_computes_in_either_precision_for_a_while(trained_in: str) -> None:
    network, x = plain(), images()
    exact = network(x)
    low = low_precision(copy.deepcopy(network))(x)
    if trained_in == "bf16":
        low_precision(network)
    before = network(x)
    for precision, expected in (("fp32", exact), ("bf16", low)):
        with computing_in(network, precision):
            assert is_low(network) == (precision == "bf16")
            assert torch.equal(network(x), expected)
        assert is_low(network) == (trained_in == "bf16")
        assert torch.equal(network(x), before)


def test_a_network_without_layers_has_no_low_precision_and_is_left_as_it_was() -> None:
    network = nn.Flatten()
    with pytest.raises(ValueError, match="Use precision=fp32"), computing_in(network, "bf16"):
        pass
    assert not is_low(network)

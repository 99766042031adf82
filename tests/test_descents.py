from functools import partial

import pytest
import torch
import torch.nn.functional as F
from method_cases import batch, network
from torch import Tensor, nn

from advtrain.descents.awp import Awp
from advtrain.descents.plain import Plain
from advtrain.types import Moment

NOW = Moment(0, 0.0, 0.0)
GAMMA = 0.01
AWP = Awp(GAMMA, 0.0, Plain(None))


class Quadratic(nn.Module):
    """Half the squared norm of a matrix, a vector and a matrix that the loss does not see."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.matrix = nn.Parameter(torch.randn((3, 4), generator=generator))
        self.vector = nn.Parameter(torch.randn(4, generator=generator))
        self.unused = nn.Parameter(torch.randn((2, 2), generator=generator))

    def evaluate(self) -> tuple[Tensor, dict[str, Tensor]]:
        loss = (self.matrix.square().sum() + self.vector.square().sum()) / 2
        return loss, {"half": loss.detach() / 2}


def cross_entropy(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    return F.cross_entropy(model(x), y), {}


def sgd(model: nn.Module, lr: float = 0.1, **more) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr, **more)


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def test_plain_descent_is_one_step_down_the_gradient():
    model = Quadratic()
    before = snapshot(model)
    loss, logs = Plain(None)(model, sgd(model), model.evaluate, NOW)
    torch.testing.assert_close(model.matrix.detach(), 0.9 * before["matrix"])
    torch.testing.assert_close(model.vector.detach(), 0.9 * before["vector"])
    assert not loss.requires_grad and logs.keys() == {"half"}


def test_plain_descent_starts_from_no_gradient():
    model = Quadratic()
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 1e6)
    before = snapshot(model)
    Plain(None)(model, sgd(model), model.evaluate, NOW)
    torch.testing.assert_close(model.matrix.detach(), 0.9 * before["matrix"])


def test_clipping_shortens_the_whole_gradient_to_its_bound_and_reports_its_norm():
    model = Quadratic()
    before = snapshot(model)
    length = (before["matrix"].square().sum() + before["vector"].square().sum()).sqrt()
    _, logs = Plain(0.5)(model, sgd(model, lr=1.0), model.evaluate, NOW)
    moved = torch.cat([(before[n] - getattr(model, n)).flatten() for n in ("matrix", "vector")])
    assert moved.norm().item() == pytest.approx(0.5, rel=1e-5)
    torch.testing.assert_close(logs["grad_norm"], length)


def test_clipping_leaves_short_gradients_alone():
    one, other = Quadratic(), Quadratic()
    Plain(1e3)(one, sgd(one), one.evaluate, NOW)
    Plain(None)(other, sgd(other), other.evaluate, NOW)
    torch.testing.assert_close(one.matrix, other.matrix)


def test_the_shift_of_a_tensor_has_gamma_times_its_norm_along_its_gradient():
    model = nn.Linear(3, 2, bias=False)
    gradient = torch.tensor([[1, -2, 0], [0.5, 0.5, -1]])
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[0.1, 0.2, 0.3], [0.4, 0.5, 0.6]]))
    before = model.weight.detach().clone()
    expected = torch.tensor([[0.00374166, -0.00748331, 0], [0.00187083, 0.00187083, -0.00374166]])
    with AWP.perturbed(model, lambda: ((model.weight * gradient).sum(), {})):
        shift = model.weight.detach() - before
        torch.testing.assert_close(shift, expected, atol=1e-7, rtol=0)
        assert (shift.norm() / before.norm()).item() == pytest.approx(GAMMA, rel=1e-5)
    assert torch.equal(model.weight, before)


def test_kernels_and_matrices_shift_by_gamma_and_nothing_else_does():
    model, (x, y) = network(), batch()
    before = snapshot(model)
    with AWP.perturbed(model, partial(cross_entropy, model, x, y)):
        shifted = snapshot(model)
        loss = cross_entropy(model.eval(), x, y)[0]
    for name, parameter in model.named_parameters():
        ratio = (shifted[name] - before[name]).norm() / before[name].norm().clamp(min=1e-9)
        assert ratio.item() == pytest.approx(GAMMA if parameter.ndim > 1 else 0.0, rel=1e-4)
    assert loss > cross_entropy(model, x, y)[0]


def test_weights_return_bit_for_bit_when_the_step_moves_nothing():
    model, (x, y) = network(), batch()
    before = snapshot(model)
    AWP(model, sgd(model, lr=0.0), partial(cross_entropy, model, x, y), NOW)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_weights_return_when_the_step_fails():
    model, (x, y) = network(), batch()
    before = snapshot(model)

    def fail(*_):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        Awp(GAMMA, 0.0, fail)(model, sgd(model), partial(cross_entropy, model, x, y), NOW)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_the_step_on_a_quadratic_uses_the_gradient_and_the_decay_at_the_shifted_point():
    """Gradient W, so v = gamma W: W <- W - lr (1 + decay) (1 + gamma) W; the vector stays put."""
    model = Quadratic()
    before = snapshot(model)
    optimizer = sgd(model, lr=0.1, weight_decay=0.01)
    loss, logs = Awp(0.3, 0.0, Plain(None))(model, optimizer, model.evaluate, NOW)
    torch.testing.assert_close(model.matrix.detach(), (1 - 0.1 * 1.01 * 1.3) * before["matrix"])
    torch.testing.assert_close(model.vector.detach(), (1 - 0.1 * 1.01) * before["vector"])
    assert torch.equal(model.unused, before["unused"])
    matrix, vector = before["matrix"].square().sum() / 2, before["vector"].square().sum() / 2
    torch.testing.assert_close(loss, 1.69 * matrix + vector)
    torch.testing.assert_close(logs["half"], loss / 2)


def test_before_its_epoch_the_inner_descent_runs_alone():
    shifted, plain = Quadratic(), Quadratic()
    awp = Awp(GAMMA, 5.0, Plain(None))
    awp(shifted, sgd(shifted), shifted.evaluate, Moment(99, 4.99, 0.4))
    Plain(None)(plain, sgd(plain), plain.evaluate, NOW)
    assert torch.equal(shifted.matrix, plain.matrix)
    awp(shifted, sgd(shifted), shifted.evaluate, Moment(100, 5.0, 0.4))
    Plain(None)(plain, sgd(plain), plain.evaluate, NOW)
    assert not torch.equal(shifted.matrix, plain.matrix)


def test_running_statistics_come_from_the_shifted_weights_and_once():
    model, (x, y) = network(), batch()
    before = snapshot(model)
    with AWP.perturbed(model, partial(cross_entropy, model, x, y)):
        assert torch.equal(model[1].running_mean, before["1.running_mean"])
        hidden = model[0](x).mean((0, 2, 3)).detach()
    AWP(model, sgd(model), partial(cross_entropy, model, x, y), NOW)
    assert model[1].num_batches_tracked == 1
    torch.testing.assert_close(model[1].running_mean, 0.1 * hidden)


def test_the_extra_evaluation_leaves_no_gradient_behind():
    model, (x, y) = network(), batch()
    leaf = torch.zeros_like(x).requires_grad_()
    with AWP.perturbed(model, lambda: cross_entropy(model, x + leaf, y)):
        assert leaf.grad is None and all(p.grad is None for p in model.parameters())


def test_weight_perturbation_equals_one_step_of_a_copy_of_the_network():
    """The direction from the change of a copy under SGD, four steps with momentum and decay.

    The authors' classes were run beside ours on shared weights and adversarial images (three
    convolutions with batch norm, 10 steps of SGD with momentum and decay): weights within 1.1e-6
    and statistics within 1.7e-6 with their AT-AWP (gamma 0.01), weights within 2.7e-6 with their
    TRADES-AWP (gamma 0.005, beta 6), relative, per tensor.
    """
    ours, theirs = network(), network()
    fast, slow = (sgd(m, momentum=0.9, weight_decay=5e-4) for m in (ours, theirs))
    for seed in range(4):
        x, y = batch(seed=seed)
        AWP(ours, fast, partial(cross_entropy, ours, x, y), NOW)

        copy = network().double()
        copy.load_state_dict(theirs.state_dict())
        weights = [p for p in theirs.parameters() if p.ndim > 1]
        targets = [p for p in copy.parameters() if p.ndim > 1]
        start = [p.detach().clone() for p in targets]
        F.cross_entropy(copy(x.double()), y).neg().backward()
        torch.optim.SGD(copy.parameters(), 0.01).step()
        change = [p.detach() - s for p, s in zip(targets, start, strict=True)]
        shifts = [
            (GAMMA * s.norm() * c / c.norm()).float() for s, c in zip(start, change, strict=True)
        ]
        torch._foreach_add_([w.detach() for w in weights], shifts)
        slow.zero_grad()
        F.cross_entropy(theirs(x), y).backward()
        slow.step()
        torch._foreach_sub_([w.detach() for w in weights], shifts)
    for name, value in ours.state_dict().items():
        torch.testing.assert_close(value, theirs.state_dict()[name], atol=1e-6, rtol=1e-4)

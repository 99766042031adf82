"""Probes: each bad network is told by the right checks, honest networks by none."""

from collections import Counter
from collections.abc import Mapping
from functools import partial
from typing import Any

import pytest
import torch
import zoo
from attack_cases import generator
from torch import Tensor, nn

from advtrain import masking
from advtrain.masking import FEW, MANY, Slopes
from advtrain.modes import crafting
from advtrain.probes import portrait, probe, recognised
from advtrain.threat import L1, L2, Linf
from advtrain.types import Threat

EPS = zoo.EPS


class Called(nn.Module):
    """A function of images as a network."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(x)


def probed(
    model: nn.Module, x: Tensor, y: Tensor, threat: Threat = EPS, classes: int = 10
) -> dict[str, str]:
    """The checks that find something, with what they say."""
    with torch.random.fork_rng(devices=[]), crafting(model, "eval"):
        torch.manual_seed(0)
        found = probe(model, x, y, threat=threat, classes=classes, generator=generator())
    assert all(warning["row"] == "model" for warning in found)
    return {warning["check"]: warning["message"] for warning in found}


@pytest.mark.parametrize("name", zoo.HONEST)
@pytest.mark.parametrize("threat", [EPS, L2(0.5), L1(2.0)], ids=lambda threat: threat.norm)
def test_of_an_honest_network_nothing_is_said(name, threat):
    """Nor in 441 probes by hand: three seeds of each, with and without batch norm, other images,
    draws and radii. Nor of pgd_madry.pth of fast_adversarial and of standard networks for MNIST.
    """
    assert probed(zoo.honest(name), *zoo.held_out(), threat) == {}


ZOO: Mapping[str, tuple[Any, set[str]]] = {
    "quantised": (zoo.quantised, {"zero_gradient", "unbounded"}),
    "compressed": (zoo.compressed, {"zero_gradient", "unbounded"}),
    "converted": (zoo.converted, {"no_gradient"}),
    "noisy": (partial(zoo.noisy, std=0.1), {"stochastic"}),
    "hardly noisy": (partial(zoo.noisy, std=1e-7), {"stochastic"}),
    "confident": (zoo.confident, {"zero_gradient", "loss_dependent", "unbounded"}),
    "probabilistic": (zoo.probabilistic, {"probabilities"}),
    "purified": (zoo.purified, {"dynamic"}),
    "purified by torch.func": (zoo.purified_by_func, {"dynamic"}),
    "counting": (lambda inner: nn.Sequential(zoo.Counting(), inner), {"mode_dependent"}),
}


@pytest.mark.parametrize("name", ZOO)
def test_a_network_that_fakes_robustness_is_told_by_the_right_checks(digits, name):
    build, expected = ZOO[name]
    found = probed(build(digits.model).eval(), digits.x[:128], digits.y[:128])
    assert found.keys() == expected


@pytest.mark.parametrize("name", ["two-faced", "stubborn"])
def test_a_network_of_two_modes_is_told(digits, name):
    stubborn = nn.Sequential(zoo.Stubborn(0.1), digits.model).eval()
    model = {"two-faced": zoo.two_faced(digits.model), "stubborn": stubborn}[name].eval()
    found = probed(model, digits.x[:128], digits.y[:128])
    reason = {"two-faced": "gradients on and off", "stubborn": "1 of 9 modules are in training"}
    assert reason[name] in found["mode_dependent"]


@pytest.mark.parametrize(
    ("layers", "epochs", "check"),
    [
        ({"activation": zoo.Winner}, 3, "stochastic"),
        ({"activation": zoo.Largest}, 10, "step_dependent"),
        ({"batch_norm": True}, 3, "batch_dependent"),
    ],
    ids=["stochastic winner-takes-all", "k-winners-take-all", "batch statistics"],
)
def test_a_network_trained_with_an_odd_layer_is_told(layers, epochs, check):
    """Of k-winners-take-all AutoAttack leaves 1 to 4 % standing, PGD-10 a third."""
    standard, data = zoo.HONEST["standard"], zoo.to_train_on()
    model = zoo.trained(zoo.cnn(**layers), standard, *data, epochs=epochs, lr=4e-3, size=64)
    assert check in probed(model, *zoo.held_out())


def test_training_with_one_step_that_collapsed_is_told():
    x, y = zoo.held_out()
    found = probed(zoo.collapsed(), zoo.enlarged(x), y, zoo.HUGE)
    assert found.keys() >= {"collapsed", "distorted"}


def test_rounding_and_saturation_are_told_apart(digits):
    x, y = digits.x[:128], digits.y[:128]
    assert "has no derivative" in probed(zoo.quantised(digits.model).eval(), x, y)["zero_gradient"]
    assert "saturates" in probed(zoo.confident(digits.model).eval(), x, y)["zero_gradient"]


def test_a_network_that_is_sure_within_what_float32_holds_is_believed(digits):
    """A margin of 60 nats leaves a gradient of 1e-26. Networks trained 300 epochs reach 57."""
    with torch.no_grad():
        top = digits.model(digits.x[:128]).topk(2, dim=1).values
    sure = zoo.confident(digits.model, factor=60 / float((top[:, 0] - top[:, 1]).max()))
    assert probed(sure.eval(), digits.x[:128], digits.y[:128]) == {}


def test_the_worst_of_twenty_draws_is_named_beside_one():
    """Each answer is right with probability 0.9, so all of 20 are with 0.122."""
    y = torch.zeros(400, dtype=torch.int64)
    model = Called(lambda x: chosen(torch.rand(len(x)) < 0.9) + 0 * x[:, :2])
    message = probed(model, torch.rand(400, 4, generator=generator()), y, classes=2)["stochastic"]
    one, worst = (float(text.split(" %")[0].split(" on ")[-1]) for text in message.split(", all"))
    assert one == pytest.approx(90, abs=1) and worst == pytest.approx(12.2, abs=4)


def chosen(first: Tensor) -> Tensor:
    return torch.stack([first, ~first], dim=1).float() * 5


def test_a_probe_is_reproducible_and_leaves_no_trace(digits, untouched):
    model = untouched(zoo.confident(digits.model).eval())
    state = torch.get_rng_state()
    first, again = (
        probe(
            model,
            digits.x[:64],
            digits.y[:64],
            threat=EPS,
            classes=10,
            generator=generator(3),
        )
        for _ in range(2)
    )
    assert first == again and len(first) > 1
    assert torch.equal(torch.get_rng_state(), state)


def test_a_probe_costs_136_forward_and_122_backward_passes(digits):
    with torch.no_grad():
        right = digits.model(digits.x).argmax(1) == digits.y
    passes: Counter[str] = Counter()

    def counted(x: Tensor) -> Tensor:
        logits = digits.model(x)
        passes["forward"] += len(x)
        if logits.requires_grad:
            logits.register_hook(lambda gradient: passes.update(backward=len(gradient)))
        return logits

    assert probed(Called(counted), digits.x[right][:50], digits.y[right][:50]) == {}
    assert passes == {"forward": 136 * 50, "backward": 122 * 50}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda logits: (logits, logits), "the model returns tuple for 8 images"),
        (lambda logits: logits[:, 0], r"the model returns \(8,\) for 8 images"),
        (lambda logits: logits[:4], r"needs logits of shape \(8, 10\)"),
        (lambda logits: logits[:, :7], "returns 7 logits, and the data have 10 classes"),
        (lambda logits: logits / (logits.argmax(1) < 8)[:, None], "of 8 images are not finite"),
        (lambda logits: logits * torch.nan, "the logits of 8 of 8 images are not finite"),
    ],
    ids=["a pair", "one logit", "half the batch", "too few classes", "infinite", "not a number"],
)
def test_a_network_that_cannot_be_judged_is_refused_with_a_sentence(digits, change, message):
    order = torch.cat([(digits.y == label).nonzero()[0] for label in (8, 9, 0, 1, 2, 3, 4, 5)])
    with pytest.raises(ValueError, match=message):
        probed(zoo.After(digits.model, change).eval(), digits.x[order], digits.y[order])


def test_logits_beyond_the_classes_are_told(digits):
    wide = zoo.After(digits.model, lambda logits: nn.functional.pad(logits, (0, 2), value=-9.0))
    found = probed(wide.eval(), digits.x[:64], digits.y[:64])
    assert found.keys() == {"classes"} and "returns 12 logits" in found["classes"]


def test_nothing_is_said_without_images_or_within_a_radius_of_zero(digits):
    assert probed(digits.model, digits.x[:0], digits.y[:0]) == {}
    assert probed(digits.model, digits.x[:64], digits.y[:64], Linf(0.0)) == {}


class Constant(nn.Module):
    """One answer to everything, with a gradient of zero."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.arange(10.0).expand(len(x), 10) + 0 * x.flatten(1)[:, :1]


def dead() -> nn.Module:
    """The end of many a training at a large radius: no unit fires, whatever the image."""
    model = zoo.cnn()
    with torch.no_grad():
        model[2].bias.fill_(-100.0)
    return model


def hardly_trained() -> nn.Module:
    return zoo.trained(
        zoo.cnn(), zoo.HONEST["pgd_at"], *(part[:64] for part in zoo.to_train_on()), **TWO_STEPS
    )


TWO_STEPS = {"epochs": 2, "lr": 1e-3, "size": 64}


@pytest.mark.parametrize(
    "build", [Constant, dead, zoo.cnn, hardly_trained], ids=lambda build: build.__name__
)
def test_a_network_that_learned_nothing_is_told_so_and_no_more(build):
    found = probed(build().eval(), *zoo.held_out())
    assert found.keys() == {"chance"}
    assert "learned" in found["chance"] and "luck, and no robustness" in found["chance"]


def test_answers_to_other_labels_are_right_by_luck(digits):
    found = probed(digits.model, digits.x[:64], (digits.y[:64] + 1) % 10)
    assert found.keys() == {"chance"} and "0 of 64 images are right, and 6 " in found["chance"]


def test_a_network_that_learned_a_little_is_judged_like_any_other():
    some = zoo.trained(
        zoo.cnn(), zoo.HONEST["standard"], *zoo.to_train_on(), epochs=1, lr=1e-3, size=64
    )
    assert probed(some, *zoo.held_out()) == {}
    assert probed(zoo.quantised(some).eval(), *zoo.held_out()).keys() == {
        "zero_gradient",
        "unbounded",
    }


def lured(fooled: Any) -> Slopes:
    """Grey images of two labels whose gradient leads up for ever, and which fall where `fooled`.

    `fooled`: how far a pixel has moved, (10,), to whether that fools.
    """

    x, y = torch.full((40, 1, 2, 2), 0.5), torch.arange(40) % 2

    def logits(x: Tensor) -> Tensor:
        height = x.flatten(1).mean(1) - 0.5
        lead = torch.where(fooled(height), 1.0, -1.0).detach() + height - height.detach()
        lead = torch.where(y == 0, lead, -lead)
        return torch.stack([-lead, lead], dim=1)

    return Slopes(logits, x, y, Linf(0.1), True, generator())


def test_a_larger_set_that_is_safer_is_told():
    astray = lured(lambda height: (height > 0.07) & (height < 0.13))
    found = masking.larger_eps(astray)
    assert found is not None and "40 of 40 images standing within 0.2, and 0 within half" in found
    assert masking.larger_eps(lured(lambda height: height > 0.07)) is None


def test_a_step_that_passes_over_what_fools_is_told():
    within = lured(lambda height: (height > 0.04) & (height < 0.06))
    found = masking.distorted(within)
    assert found is not None and "Of 40 images that stand at the end" in found
    assert masking.distorted(lured(lambda height: height > 0.04)) is None


def test_gradients_that_lead_nowhere_are_told():
    found = masking.unbounded(lured(lambda height: height < -0.2))
    assert found is not None and "40 of 40 images stand" in found
    assert masking.unbounded(lured(lambda height: height > 0.45)) is None


@pytest.mark.parametrize(("back", "told"), [(10, True), (2, False)])
def test_steps_that_lead_back_are_told_if_they_are_many(back, told):
    slopes = lured(lambda height: height > 0.07)
    usual = torch.ones(MANY + 1, 40, dtype=torch.bool)
    usual[FEW, :back] = False
    vars(slopes)["usual"] = usual
    assert (masking.more_steps(slopes) is not None) == told


def drawn(model: nn.Module, x: Tensor, threat: Threat = EPS) -> Tensor:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return portrait(model.eval(), x, threat)


def test_a_network_is_known_again_up_to_rounding(digits, tmp_path):
    first = drawn(digits.model, digits.x[:16])
    name = recognised(first, first, tmp_path / "p.npy")
    near = first * (1 + 1e-6)
    assert recognised(near, near, tmp_path / "p.npy") == name
    assert recognised(near, near, tmp_path / "q.npy") != name
    other = drawn(zoo.After(digits.model, lambda logits: 1.01 * logits), digits.x[:16])
    assert recognised(other, other, tmp_path / "p.npy") != name
    assert recognised(first, first, tmp_path / "p.npy") == name


def test_a_portrait_shows_what_images_hide(digits):
    """Rounding to the grey levels of the digits leaves them alone, and not what lies between."""
    rounding = Called(lambda x: digits.model((16 * x).round() / 16))
    pair = [drawn(model, digits.x[:16]) for model in (digits.model, rounding)]
    assert torch.equal(pair[0][:16], pair[1][:16]) and not torch.equal(*pair)


def test_a_portrait_holds_draws_of_the_seed_and_those_of_no_seed_are_told(digits, tmp_path):
    noisy = zoo.noisy(digits.model, std=0.1)
    pair = [drawn(noisy, digits.x[:16]) for _ in range(2)]
    assert torch.equal(*pair)
    assert recognised(pair[0], pair[1] + 1, tmp_path / "p.npy") == "unsteady"


def test_a_damaged_portrait_is_replaced(digits, tmp_path):
    first = drawn(digits.model, digits.x[:16])
    name = recognised(first, first, tmp_path / "p.npy")
    for content in (b"", b"garbage"):
        (tmp_path / "p.npy").write_bytes(content)
        assert recognised(first, first, tmp_path / "p.npy") == name

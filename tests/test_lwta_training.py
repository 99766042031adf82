"""Training with winner-takes-all networks: the defense, the penalty, runs of both."""

import json
from functools import partial
from math import log
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from method_cases import network as plain_network
from running import TRAINING, interrupted, run
from torch import Tensor, nn

from advtrain import checkpoints
from advtrain.attacks.pgd import fgsm, pgd
from advtrain.defenses.base import Pair
from advtrain.defenses.lwta import Lwta
from advtrain.descents.awp import Awp
from advtrain.descents.plain import Plain
from advtrain.models.lwta import divergence, layers, temperature
from advtrain.models.lwta_networks import lwta_cnn
from advtrain.modes import crafting
from advtrain.penalties.lwta_kl import LwtaKl
from advtrain.threat import Linf
from advtrain.training import total_loss
from advtrain.types import Moment

NOW = Moment(0, 0.0, 0.0)
ATTACK = partial(pgd, threat=Linf(0.1), steps=2, step_size=0.05)
SMALL = tuple(each for each in TRAINING if not each.startswith("model="))


def network(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return lwta_cnn(
            (1, 8, 8), 3, competitors=2, train_temperature=0.67, test_temperature=0.01,
            mean=None, std=None,
        )  # fmt: skip


def batch() -> tuple[Tensor, Tensor]:
    draws = torch.Generator().manual_seed(1)
    return torch.rand((8, 1, 8, 8), generator=draws), torch.arange(8) % 3


@pytest.mark.parametrize(("gradients", "tau"), [("train", 0.67), ("test", 0.01)])
def test_the_attack_sees_the_temperature_asked_for_in_evaluation_mode(
    gradients: str, tau: float
) -> None:
    model, seen = network().train(), []

    def attack(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        seen.extend((part.tau, part.training) for part in layers(model))
        return x

    with crafting(model, "eval"):
        Lwta(attack, gradients, 1).craft(model, *batch(), NOW)
    assert set(seen) == {(tau, False)}
    assert all(part.forced is None and part.tau == 0.67 for part in layers(model))


def test_the_loss_is_cross_entropy_of_a_draw_at_the_temperature_of_training() -> None:
    model, (x, y) = network().train(), batch()
    torch.manual_seed(4)
    loss, logs = Lwta(ATTACK, "train", 1).loss(model, Pair(x, x, y))
    torch.manual_seed(4)
    torch.testing.assert_close(loss, F.cross_entropy(model(x), y))
    assert set(logs) == {"acc"}


def test_with_one_draw_the_attack_is_that_of_adversarial_training() -> None:
    model, (x, y) = network().eval(), batch()
    torch.manual_seed(0)
    ours = Lwta(ATTACK, "train", 1).craft(model, x, y, NOW).x_adv
    torch.manual_seed(0)
    with temperature(model, 0.67):
        assert torch.equal(ours, ATTACK(model, x, y))
    assert not torch.equal(ours, Lwta(ATTACK, "train", 4).craft(model, x, y, NOW).x_adv)


def test_validation_attacks_through_the_same_temperature_and_judges_the_network() -> None:
    model = network().eval()
    attacked = Lwta(ATTACK, "train", 1).attacked(model)
    assert [part.tau for part in layers(attacked)] == [0.67] * 2
    assert [part.tau for part in layers(model)] == [0.01] * 2


def test_networks_without_such_layers_and_attacks_without_objectives_are_refused() -> None:
    with pytest.raises(ValueError, match=r"Sequential has none\. Use model=lwta_cnn"):
        Lwta(ATTACK, "train", 1).requires(plain_network())
    with pytest.raises(ValueError, match=r"defense\.draws=2 .* Use attack=pgd"):
        Lwta(partial(fgsm, threat=Linf(0.1)), "train", 2)
    with pytest.raises(ValueError, match=r"lwta_kl needs .* Sequential has none"):
        total_loss(plain_network(), Lwta(ATTACK, "train", 1), {"lwta_kl": LwtaKl(1.0, "sum")}, None)


def penalised(model: nn.Module, penalty: LwtaKl, passes: int = 1) -> tuple[Tensor, Tensor]:
    """The loss with and without the penalty, on the same draws."""
    x, y = batch()

    class Several(Lwta):
        def loss(self, model: nn.Module, parcel: Pair) -> tuple[Tensor, dict]:
            for _ in range(passes - 1):
                model(parcel.x)
            return super().loss(model, parcel)

    found = []
    for terms in ({"lwta_kl": penalty}, {}):
        torch.manual_seed(0)
        found.append(total_loss(model, Several(ATTACK, "train", 1), terms, Pair(x, x, y))[0])
    return found[0], found[1]


@pytest.mark.parametrize(("reduction", "passes"), [("sum", 1), ("mean", 1), ("sum", 2)])
def test_the_divergence_is_really_added(reduction: str, passes: int) -> None:
    """Against the blocks of each layer, caught on their way."""
    model, seen = network().train(), []
    with_term, without = penalised(model, LwtaKl(0.5, reduction), passes)
    handles = [
        part.register_forward_pre_hook(
            lambda part, given: seen.append(divergence(given[0].unflatten(1, (-1, 2))))
        )
        for part in layers(model)
    ]
    penalised(model, LwtaKl(0.0, reduction), passes)
    half = seen[: len(seen) // 2]  # of the loss with the term
    total = sum(each.sum(1).mean() for each in half) / passes
    blocks = sum(part.channels // 2 for part in layers(model)) if reduction == "mean" else 1
    torch.testing.assert_close(with_term - without, 0.5 * total / blocks, atol=1e-5, rtol=1e-4)
    for handle in handles:
        handle.remove()


def test_descent_on_the_divergence_brings_it_to_0_and_its_negative_to_log_2() -> None:
    x, _ = batch()
    for sign, expected in ((1, 0.0), (-1, log(2))):
        model = network().train()
        penalty = LwtaKl(1.0, "mean")
        optimizer = torch.optim.Adam(model.parameters(), 0.1)
        for _ in range(60):
            with penalty.watching(model):
                model(x)
                value = penalty(model)
            optimizer.zero_grad()
            (sign * value).backward()
            optimizer.step()
        assert value.item() == pytest.approx(expected, abs=0.12)


def test_weight_perturbation_takes_the_term_along() -> None:
    model, (x, y) = network().train(), batch()
    method, shifts = Lwta(ATTACK, "train", 1), []
    for penalties in ({}, {"lwta_kl": LwtaKl(50.0, "mean")}):
        torch.manual_seed(0)
        evaluate = partial(total_loss, model, method, penalties, Pair(x, x, y))
        kernel = model.body[0].weight
        with Awp(0.1, 0.0, Plain(None)).perturbed(model, evaluate):
            shifts.append(kernel.detach().clone())
    assert not torch.allclose(*shifts)
    assert all(part.divergences is None for part in layers(model))


def test_a_run_with_both_reports_the_term_and_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    options = (*SMALL, "defense=lwta", "penalty=lwta_kl", "descent=awp", "average=ema")
    run(tmp_path / "whole", *options)
    interrupted(tmp_path / "part", 4, *options)
    assert run(tmp_path / "part", *options)["state"] == "done"
    whole, part = (
        checkpoints.load(tmp_path / each / "checkpoints" / "last.pt")["model"]
        for each in ("whole", "part")
    )
    assert all(torch.equal(value, part[key]) for key, value in whole.items())
    lines = (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()
    assert all(json.loads(line)["train_lwta_kl"] > 0 for line in lines)


@pytest.mark.parametrize(
    "options",
    [
        ("defense=trades", "model=lwta_cnn", "penalty=lwta_kl", "precision=bf16"),
        ("defense=grad_reg", "model=lwta_cnn", "penalty=lwta_kl", "spectral_norm=matrix"),
    ],
    ids=["trades", "second derivatives"],
)
def test_the_term_goes_with_other_defenses(tmp_path: Path, options: tuple[str, ...]) -> None:
    status = run(tmp_path, *SMALL, *options, "epochs=1")
    assert status["state"] == "done", status["error"]
    line = (tmp_path / "metrics.jsonl").read_text().splitlines()[0]
    assert json.loads(line)["train_lwta_kl"] > 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("defense=lwta", "model=small_cnn"), "has none. Use model=lwta_cnn"),
        (("penalty=lwta_kl", "model=small_cnn"), "penalty=lwta_kl needs winner-takes-all layers"),
        (("model=lwta_cnn", "model.competitors=5"), "model.competitors is 5, which does not"),
        (("model=lwta_cnn", "model.competitors=0"), "model.competitors=0"),
        (("defense=lwta", "defense.gradients=both"), "defense.gradients=both"),
    ],
)
def test_what_makes_no_sense_is_refused_in_a_sentence(
    tmp_path: Path, options: tuple[str, ...], words: str
) -> None:
    status = run(tmp_path, *SMALL, *options)
    assert status["exit_code"] != 0 and words in status["error"].replace("\n", " ")

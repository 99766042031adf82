"""Training for randomized smoothing: noise, SmoothAdv, consistency, MACER; and the row `noise`."""

import copy
import json
from functools import partial
from math import exp, log
from pathlib import Path
from statistics import NormalDist

import pytest
import torch
import torch.nn.functional as F
from method_cases import batch, network
from running import DATA, FITTING, configuration, run
from torch import Tensor, nn

from advtrain import checkpoints
from advtrain.adopt import adopt
from advtrain.attacks.noise import Noise
from advtrain.attacks.objectives import cross_entropy
from advtrain.attacks.pgd import fgsm, pgd
from advtrain.averages import Last
from advtrain.config import ConfigError, build, plain
from advtrain.defenses.consistency import Consistency
from advtrain.defenses.copies import Plain, Smooth, of_copies
from advtrain.defenses.macer import Macer
from advtrain.defenses.smoothing import Smoothing
from advtrain.descents.plain import Plain as Step
from advtrain.evaluation import Subject, judge
from advtrain.grid import choices, composed, ours
from advtrain.modes import crafting
from advtrain.threat import L2
from advtrain.training import Method, TrainState, train_step
from advtrain.types import Moment
from advtrain.watchdog import Watchdog

NOW = Moment(0, 0.0, 0.5)
ATTACK = partial(pgd, threat=L2(0.5), steps=4, step_size=0.25)
TERMS = {"plain": Plain(), "consistency": Consistency(10, 0.5), "macer": Macer(12, 16, 8)}
every_term = pytest.mark.parametrize("term", TERMS.values(), ids=TERMS)


def draws(m: int = 3, images: int = 4, classes: int = 5, spread: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    shape = (m, images, classes)
    return spread * torch.randn(shape, dtype=torch.float64, generator=generator)


def mean_ce(logits: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(logits, y)


def of(term, logits: Tensor, y: Tensor, progress: float = 0.5):
    return term(logits, y, sigma=0.25, progress=progress, ce=mean_ce)


def softmax(row: list[float]) -> list[float]:
    weights = [exp(value) for value in row]
    return [weight / sum(weights) for weight in weights]


def mean_softmax(logits: Tensor, image: int, beta: float = 1.0) -> list[float]:
    rows = [softmax([beta * value for value in each]) for each in logits[:, image].tolist()]
    return [sum(column) / len(rows) for column in zip(*rows, strict=True)]


def craft(method, model, x, y, now=NOW):
    with crafting(model, mode=method.craft_mode):
        return method.craft(model, x, y, now)


def test_one_draw_without_an_attack_is_the_plain_loop_bit_for_bit():
    """Cohen et al.'s loop, written out: weights and statistics after three updates."""
    theirs = network()
    optimizer = torch.optim.SGD(theirs.parameters(), 0.1, momentum=0.9, weight_decay=1e-4)
    for step in range(3):
        torch.manual_seed(step)
        x, y = batch(seed=step)
        loss = F.cross_entropy(theirs(x + torch.randn_like(x) * 0.25), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    ours = network()
    optimizer = torch.optim.SGD(ours.parameters(), 0.1, momentum=0.9, weight_decay=1e-4)
    state = TrainState(ours, optimizer, Last(ours, 3), Smoothing(0.25, 1, None, Plain()))
    for step in range(3):
        torch.manual_seed(step)
        train_step(state, *batch(seed=step), Moment(step, 0.0, 0.0), Method(Step(None), {}, {}, 0))
    for key, value in ours.state_dict().items():
        assert torch.equal(value, theirs.state_dict()[key])


def test_noise_has_its_scale_is_fresh_for_each_copy_and_step_and_leaves_the_box():
    x, y = torch.full((50, 1, 10, 10), 0.9), torch.zeros(50, dtype=torch.int64)
    method = Smoothing(0.5, 4, None, Plain())
    torch.manual_seed(0)
    first, second = (craft(method, network(), x, y).copies - x for _ in range(2))
    assert first.shape == (4, 50, 1, 10, 10) and (first + x).max() > 1
    assert first.mean().abs() < 5 * 0.5 / 20_000**0.5
    assert first.std().item() == pytest.approx(0.5, rel=0.03)
    pieces = torch.stack([*first.flatten(1), *second.flatten(1)])
    correlation = torch.corrcoef(pieces) - torch.eye(8)
    assert correlation.abs().max() < 5 / 5000**0.5


def test_the_smoothed_classifier_says_the_log_of_the_mean_probability_and_has_its_gradient():
    """-log((1/m) sum_j p_y(x + noise_j)), value and gradient against the formula in float64.

    Salman et al.'s l2 attack was run beside ours: three layers with batch norm, 16 colour images in
    the middle of the box, m = 4, 5 steps to eps 0.5, float64: pixels agree within 3e-8, which is
    the 1e-7 that their projection adds to lengths. Where the box cuts (eps 3), by 0.13.
    """
    model, (x, y) = network().double().eval(), batch()
    x = x.double()
    noise = 0.3 * torch.randn((3, *x.shape), dtype=x.dtype)
    leaf, again = x.clone().requires_grad_(), x.clone().requires_grad_()
    gain = cross_entropy(Smooth(model, noise), x, y)(leaf)
    p = torch.stack([model(again + each).softmax(1) for each in noise]).mean(0)
    expected = -p.gather(1, y[:, None])[:, 0].log()
    torch.testing.assert_close(gain, expected, atol=1e-13, rtol=1e-13)
    gain.sum().backward(), expected.sum().backward()
    torch.testing.assert_close(leaf.grad, again.grad, atol=1e-13, rtol=1e-11)


def test_a_label_that_every_copy_denies_still_has_a_gradient():
    model = nn.Linear(1, 2, bias=False)
    model.weight.data = torch.tensor([[200.0], [0.0]])
    x = torch.ones(1, 1, requires_grad=True)
    value = cross_entropy(Smooth(model, torch.zeros(4, 1, 1)), x, torch.tensor([1]))(x)
    value.sum().backward()
    assert value.item() == pytest.approx(200)
    assert x.grad.item() == pytest.approx(200, rel=1e-5)


def test_the_attack_moves_images_along_the_normal_of_a_half_space_and_keeps_the_noise():
    """Two classes, linear: whatever the noise, the worst point of the ball is x - eps w / |w|."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    normal = torch.tensor([3.0, -1.0, 2.0, 0.5])
    model[1].weight.data = torch.stack([torch.zeros(4), normal])
    x, y = torch.full((5, 1, 2, 2), 0.5), torch.ones(5, dtype=torch.int64)
    method = Smoothing(0.25, 3, ATTACK, Plain())
    torch.manual_seed(7)
    parcel = craft(method, model, x, y)
    torch.manual_seed(7)
    noise = 0.25 * torch.randn(3, *x.shape)
    worst = x - 0.5 * (normal / normal.norm()).view(1, 1, 2, 2)
    worst = ATTACK.keywords["threat"].project(worst, x)
    for copied, drawn in zip(parcel.copies, noise, strict=True):
        torch.testing.assert_close(copied - drawn, worst, atol=1e-6, rtol=0)


def test_the_attack_lowers_the_mean_probability_within_a_radius_that_grows():
    method = Smoothing(0.25, 4, ATTACK, Plain(), warmup=0.5)
    model, (x, y) = network(), batch()
    values = []
    for progress in (0.0, 0.25, 0.5):
        torch.manual_seed(0)
        copies = craft(method, model, x, y, Moment(0, 0.0, progress)).copies
        torch.manual_seed(0)
        noise = 0.25 * torch.randn(4, *x.shape)
        moved = (copies - noise)[0] - x
        lengths = moved.flatten(1).norm(dim=1)
        assert lengths.max() <= progress + 1e-5
        smooth = Smooth(copy.deepcopy(model).eval(), noise)
        values.append(cross_entropy(smooth, x, y)((copies - noise)[0]).mean().item())
    assert values[0] < values[1] < values[2]


def test_consistency_equals_its_formula_written_out():
    """Loops in double precision. The authors' function was run beside it on the same logits of 2
    and of 4 copies, 32 images, scale 1 to 20, float32: loss within 8e-8 (relative), gradients
    within 6e-7 of their largest entry.
    """
    logits, y = draws(), torch.tensor([0, 1, 2, 4])
    total = 0.0
    for i, label in enumerate(y.tolist()):
        mean = mean_softmax(logits, i)
        for row in logits[:, i].tolist():
            p = softmax(row)
            kl = sum(f * log(f / q) for f, q in zip(mean, p, strict=True))
            total += (-log(p[label]) + 10 * kl) / 3
        total -= 0.5 * sum(f * log(f) for f in mean)
    loss, logs = of(TERMS["consistency"], logits, y)
    assert loss.item() == pytest.approx(total / 4, abs=1e-12)
    assert loss.item() == pytest.approx(
        (logs["ce"] + 10 * logs["kl"] + 0.5 * logs["entropy"]).item()
    )


def test_equal_copies_are_consistent():
    logits = draws(1).expand(3, -1, -1)
    _, logs = of(TERMS["consistency"], logits, torch.tensor([0, 1, 2, 4]))
    assert abs(logs["kl"].item()) < 1e-15


def test_macer_equals_its_formula_written_out():
    """Loops in double precision; quantiles of the normal distribution from the standard library.

    The authors' training loop was run beside ours: three layers with batch norm, four updates by
    SGD with momentum, 16 colour images, 16 copies, the same noise, float32: weights and statistics
    within 6e-8.
    """
    macer, logits = Macer(12, 2, 8), draws()
    named = [max(range(5), key=mean_softmax(logits, i, 2).__getitem__) for i in range(4)]
    y = torch.tensor([named[0], named[1], named[2], (named[3] + 1) % 5])
    soft, hinge, counted = 0.0, 0.0, 0
    for i, label in enumerate(y.tolist()):
        soft -= log(mean_softmax(logits, i)[label]) / 4
        second, first = sorted(mean_softmax(logits, i, 2))[-2:]
        if named[i] == label:
            quantile = NormalDist().inv_cdf
            hinge += 0.25 / 2 * (8 - quantile(first) + quantile(second)) / 4
            counted += 1
    loss, logs = of(macer, logits, y)
    assert counted == 3
    assert logs["ce"].item() == pytest.approx(soft, abs=1e-12)
    assert logs["hinge"].item() == pytest.approx(hinge, abs=1e-12)
    assert loss.item() == pytest.approx(soft + 12 * hinge, abs=1e-11)


def test_macer_counts_no_radius_that_is_infinite_or_beyond_its_hinge():
    sure = torch.tensor([[[40.0, 0, 0]], [[40.0, 0, 0]]]).requires_grad_()
    wide = torch.tensor([[[1.0, -1, -9]], [[1.0, -1, -9]]]).requires_grad_()
    for logits, macer in ((sure, Macer(12, 16, 8)), (wide, Macer(12, 1, 2))):
        loss, logs = of(macer, logits, torch.tensor([0]))
        loss.backward()
        assert logs["hinge"].item() == 0 and torch.isfinite(logits.grad).all()
    assert of(Macer(12, 1, 3), wide.detach(), torch.tensor([0]))[1]["hinge"] > 0


def test_macer_begins_with_the_radius_where_it_is_told():
    logits, y = draws(), torch.tensor([0, 1, 2, 4])
    late = Macer(12, 1, 8, after=0.5)
    before, logs = of(late, logits, y, progress=0.49)
    assert before == logs["ce"] and of(late, logits, y)[0] > before


@every_term
@pytest.mark.parametrize("attack", [None, ATTACK], ids=["no attack", "attack"])
def test_a_loss_is_a_function_of_the_weights_alone_and_flows_to_all_of_them(term, attack):
    method, model = Smoothing(0.25, 2, attack, term), network()
    before = copy.deepcopy(model.state_dict())
    parcel = craft(method, model, *batch())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    state = torch.get_rng_state()
    first, logs = method.loss(model, parcel)
    second, _ = method.loss(model, parcel)
    assert torch.equal(first, second) and torch.equal(torch.get_rng_state(), state)
    assert all(not value.requires_grad and value.ndim == 0 for value in logs.values())
    right = (of_copies(model, parcel.copies).argmax(-1) == parcel.y).float().mean()
    assert logs["acc"].item() == pytest.approx(right.item())
    first.backward()
    assert all(each.grad.abs().max() > 0 for each in model.parameters())


@every_term
def test_label_smoothing_reaches_the_loss(term):
    plain, smooth = Smoothing(0.25, 2, None, term), Smoothing(0.25, 2, None, term)
    smooth.label_smoothing = 0.3
    model = network()
    parcel = craft(plain, model, *batch())
    assert plain.loss(model, parcel)[0] != smooth.loss(model, parcel)[0]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((0, 1, None, Plain()), r"Smoothing\.sigma is 0; allowed is a number greater than 0"),
        ((-0.25, 1, None, Plain()), r"Smoothing\.sigma is -0\.25"),
        ((0.25, 0, None, Plain()), r"Smoothing\.draws is 0; allowed is a number at least 1"),
        ((0.25, 1, None, TERMS["consistency"]), r"draws is 1, and Consistency .* draws of 2"),
        ((0.25, 1, None, TERMS["macer"]), r"draws is 1, and Macer compares .* draws of 2"),
        ((0.25, 1, partial(fgsm, threat=L2(0.5)), Plain()), r"fgsm takes no start. Use attack=pgd"),
    ],
)
def test_bad_settings_are_refused_in_a_sentence(arguments, said):
    with pytest.raises(ValueError, match=said):
        Smoothing(*arguments)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["defense=smoothing", "defense.sigma=0"], r"defense\.sigma=0"),
        (["defense=macer", "defense.draws=0"], r"defense\.draws=0"),
        (["defense=smoothing", "defense.term=3"], r"defense\.term=3"),
    ],
)
def test_bad_keys_are_refused_before_anything_is_built(overrides, said):
    with pytest.raises(ConfigError, match=said):
        configuration(*overrides)


def test_the_methods_are_keys_of_smoothing():
    macer = "{_target_: advtrain.defenses.macer.Macer, weight: 12, beta: 16, gamma: 8}"
    keys = ("defense.attack=${attack}", "threat=l2", "defense.draws=2", f"++defense.term={macer}")
    method = build(configuration("defense=smoothing", *keys)["defense"], path="defense")
    assert method.term == Macer(12, 16, 8) and method.attack.keywords["threat"] == L2(0.5)


def test_the_weights_of_the_papers_follow_sigma():
    for name, weights in (("consistency", [20, 10, 10]), ("macer", [12, 4, 12])):
        with composed([f"defense={name}"]) as config:
            for sigma, weight in zip((0.25, 0.5, 1.0), weights, strict=True):
                config.defense.sigma = sigma
                assert config.defense.term.weight == weight


def test_published_settings_come_with_the_data_set_and_give_way_to_the_command_line():
    found = configuration("defense=smoothing", "dataset=cifar10")
    assert (found["epochs"], found["batch_size"], found["optimizer"]["lr"]) == (90, 400, 0.1)
    assert found["optimizer"]["weight_decay"] == 1e-4
    assert found["schedule"]["lr"]["drops"] == ["1/3", "2/3"]
    mnist = configuration("defense=smoothing", "dataset=mnist")
    assert (mnist["epochs"], mnist["optimizer"]["lr"]) == (100, 0.01)
    other = ("optimizer=adam", "schedule=constant", "epochs=3")
    given = configuration("defense=smoothing", "dataset=cifar10", *other)
    assert given["optimizer"]["lr"] == 1e-3 and given["epochs"] == 3
    assert given["schedule"]["lr"]["_target_"].endswith("Constant")


def half_space(x: Tensor) -> Tensor:
    """Class 1 where the first pixel is above 1/2."""
    height = x.flatten(1)[:, 0] - 0.5
    return torch.stack([-height, height], 1)


class HalfSpace(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return half_space(x)


def test_the_row_of_noise_is_the_accuracy_on_noisy_images_whatever_the_clean_ones_are():
    """A half-space at distance d answers as it does at x with probability Phi(d / sigma)."""
    n, sigma, distance = 4000, 0.5, 0.3
    x = torch.full((n, 1, 2, 2), 0.5 + distance)
    x[:, :, 1] = 1.0  # half of the noise there leaves the box
    y = torch.arange(n) % 2
    wrong_as_it_is = y == 0
    model = HalfSpace()
    torch.manual_seed(0)
    found = judge(
        Subject(model, model),
        x,
        y,
        Noise(sigma),
        None,
        key="noise",
        at=tuple(range(n)),
        clean=~wrong_as_it_is,
    )
    bits = torch.tensor([bit == "1" for bit in found.robust])
    stays = NormalDist().cdf(distance / sigma)
    assert found.outside == 0 and found.forward_passes == n
    for of_them, rate in ((~wrong_as_it_is, stays), (wrong_as_it_is, 1 - stays)):
        assert bits[of_them].float().mean().item() == pytest.approx(rate, abs=0.04)


def test_images_that_are_not_finite_are_not_right():
    class Broken(Noise):
        def __call__(self, model, x, y, **overrides):
            return x / 0

    x, y, model = torch.ones(3, 1, 2, 2), torch.ones(3, dtype=torch.int64), HalfSpace()
    everything = {"key": "", "at": (0, 1, 2), "clean": torch.ones(3, dtype=torch.bool)}
    found = judge(Subject(model, model), x, y, Broken(0.1), None, **everything)
    assert found.robust == "000" and found.outside == 3


def test_noise_is_reproducible_and_refuses_a_scale_of_zero():
    x, y = batch()
    again = [Noise(0.1)(None, x, y, generator=torch.Generator().manual_seed(3)) for _ in range(2)]
    assert torch.equal(*again) and not torch.equal(again[0], x)
    with pytest.raises(ValueError, match=r"Noise\.sigma is 0"):
        Noise(0)


def test_a_run_is_judged_under_noise_and_its_scale_reaches_rows_and_certificates(tmp_path):
    keys = ("defense=smoothing", "defense.sigma=0.5")
    status = run(tmp_path / "run", *FITTING, *keys, "epochs=3", "eval=noise")
    assert status["state"] == "done", status["error"]
    lines = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    metrics = [json.loads(line) for line in lines]
    accuracies = [report["val_noise_acc"] for report in metrics]
    assert {"train_acc", "val_acc", "val_adv_acc"} <= metrics[0].keys()
    best = checkpoints.load(tmp_path / "run/checkpoints/best.pt")
    assert best["judged_by"] == "val_noise_acc"
    assert best["scores"]["val_noise_acc"] == max(accuracies)

    results = json.loads((tmp_path / "run/results.json").read_text())
    noise = results["rows"][1]
    assert (noise["name"], noise["attack"], noise["sigma"]) == ("noise", "Noise", 0.5)
    assert noise["norm"] is None and noise["outside"] == 0 and results["warnings"] == []
    assert noise["accuracy"] == noise["accuracy_at_proposals"]

    one = ["defense=smoothing", "defense.sigma=1"]
    for given, sigma in ((["defense=smoothing"], 0.5), (one, 1), (["defense=pgd_at"], 0.25)):
        assert scale_of_certificates(tmp_path / "run", given) == sigma


def scale_of_certificates(checkpoint: Path, given: list[str]) -> float:
    """That of `job=eval` of the checkpoint, with those overrides."""
    overrides = ["job=eval", f"checkpoint={checkpoint}", *given]
    with composed(overrides) as config:
        facts = {"choices": choices(config), "overrides": overrides}
        found, _ = adopt(ours(config), facts, ())
        return plain(found)["eval"]["certify"]["sigma"]


def test_a_trained_network_is_tuned_for_smoothing(tmp_path):
    """From the weights of a run: they are where the training by noise begins."""
    run(tmp_path / "first", *FITTING, "defense=standard", "eval=none")
    began = checkpoints.load(tmp_path / "first/checkpoints/best.pt")["model"]
    keys = (
        "defense=smoothing",
        f"checkpoint={tmp_path / 'first'}",
        "optimizer.lr=1e-30",
        "epochs=1",
    )
    assert run(tmp_path / "tuned", *FITTING, *keys, "eval=none")["state"] == "done"
    tuned = checkpoints.load(tmp_path / "tuned/checkpoints/last.pt")["model"]
    assert all(torch.equal(value, began[key]) for key, value in tuned.items())


def test_a_collapse_under_noise_is_told_in_its_words():
    reports = [{"epoch": e, "val_acc": 0.9, "val_noise_acc": a} for e, a in ((1, 0.8), (2, 0.1))]
    said = Watchdog("warn", 0.2, 3, None).alarm(reports, 1000, "val_noise_acc")
    assert said is not None and "accuracy under noise 80.0 % in epoch 1 and 10.0 % now" in said


@pytest.mark.parametrize("name", ["smoothadv", "consistency", "macer"])
def test_smoothing_trains_by_each_of_its_methods_under_weight_perturbation(tmp_path, name):
    quick = ("logger=none", "device=cpu", "epochs=1", "batch_size=24", "eval=none", *DATA)
    status = run(tmp_path, *quick, f"defense={name}", "descent=awp", "scale.steps=2")
    assert status["state"] == "done", status["error"]

"""Linear models: exact training, the exact attack, and the table of the lecture.

On the zeros and ones of MNIST, full-batch descent in float64 from zero gives at t = 1, 10, 100 and
1000 the loss, errors and norms of an independent script to all its six digits, for eps = 0, for
l-infinity 0.2 and for l2 2. On softmax regression of MNIST the margins of the exact attack, of the
closed form and of targeted PGD in 20 steps are the same to 1.1e-5 in float32.
"""

import csv
import json
from functools import cache, partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from passes import units
from running import DATA, FITTING, command, configuration, run
from scipy.optimize import linprog
from sklearn.datasets import load_digits
from torch import nn

from advtrain import affine
from advtrain.attacks.linear import exact, farthest, unclipped
from advtrain.attacks.objectives import margin as margin_objective
from advtrain.attacks.pgd import fgsm, pgd
from advtrain.defenses.base import Clean
from advtrain.defenses.linear_exact import LinearExact
from advtrain.evaluation import Subject, judge
from advtrain.functional import cross_entropy, margin
from advtrain.models.linear import linear
from advtrain.models.small import small_cnn
from advtrain.results import norm_of
from advtrain.threat import L1, L2, Linf
from advtrain.types import Moment

NOW = Moment(0, 0.0, 0.0)
THREATS = [Linf(0.15), L2(0.8), L1(3.0)]
every_threat = pytest.mark.parametrize("threat", THREATS, ids=lambda threat: threat.norm)


def digits(classes=2):
    x, y = load_digits(n_class=classes, return_X_y=True)
    return torch.from_numpy(x / 16), torch.from_numpy(y).long()


def network(classes=2, side=8):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return linear((1, side, side), classes, mean=None, std=None).double()


@cache
def trained(classes=10, steps=200):
    """Softmax regression on digits, float64; the same network to all, so change nothing."""
    model, (x, y) = network(classes), digits(classes)
    optimizer = torch.optim.SGD(model.parameters(), 0.5)
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model, x, y


def theta(model):
    """Weights and bias of the one logit z_1 - z_0."""
    return (parameter[1] - parameter[0] for parameter in (model.head.weight, model.head.bias))


@pytest.mark.parametrize(
    ("threat", "path"),
    [
        (
            Linf(0.0),
            {
                1: (0.6510225906479401, 2, 0.35220486111111116, 0.0005555555555555556),
                10: (0.4053004728194271, 2, 2.8960317498867973, 0.0028221532155897557),
                300: (0.034735296061426016, 0, 16.1362404115327, 0.05048653811061707),
            },
        ),
        (
            Linf(0.15),
            {
                1: (0.676647959070632, 31, 0.35220486111111116, 0.0005555555555555556),
                10: (0.6014917479700882, 39, 1.3905004692804632, -0.012067788870302486),
                300: (0.18876998028459163, 14, 12.777259445107097, -0.46223470173110476),
            },
        ),
        (
            L2(0.8),
            {
                1: (0.6765032038738781, 30, 0.35220486111111116, 0.0005555555555555556),
                10: (0.6246705128182952, 27, 1.5180411150063584, 0.003822193043687732),
                300: (0.2691568300339293, 26, 17.21186414294511, 0.08002740014744471),
            },
        ),
    ],
    ids=["standard", "linf", "l2"],
)
def test_descent_on_zeros_and_ones_follows_the_path_of_one_logit_in_numpy(threat, path):
    """Loss, robust errors of 360, l1 norm and bias: of a script with one logit, at twice the rate.

    The subgradient of l1 chatters near zero weights, so late values depend on rounding a little.
    """
    model, (x, y), method = network(), digits(), LinearExact(threat)
    for parameter in model.parameters():
        parameter.data.zero_()
    for step in range(1, max(path) + 1):
        model.zero_grad()
        method.loss(model, Clean(x, y))[0].backward()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= 0.05 * parameter.grad
        if step in path:
            loss, logs = method.loss(model, Clean(x, y))
            weight, bias = theta(model)
            wanted, errors, length, shift = path[step]
            near = partial(pytest.approx, rel=1e-12 if step < 300 else 1e-3)
            assert loss.item() == near(wanted)
            assert weight.abs().sum().item() == near(length)
            assert bias.item() == near(shift, abs=1e-15)
            if step < 300:
                assert round((1 - logs["acc_adv"].item()) * len(x)) == errors


@every_threat
def test_with_two_classes_the_loss_is_the_cross_entropy_at_the_worst_images(threat):
    model, (x, y) = network(), digits()
    loss, logs = LinearExact(threat).loss(model, Clean(x, y))
    worst = fgsm(model, x, y, threat=unclipped(threat=threat))
    assert loss.item() == pytest.approx(cross_entropy(model(worst), y).mean().item(), abs=1e-12)
    hit = (model(worst).argmax(1) == y).double().mean().item()
    assert logs["acc_adv"].item() == pytest.approx(hit, abs=1e-6)
    assert logs["acc"].item() > logs["acc_adv"].item()


def test_smoothed_labels_act_on_the_worst_images_too():
    model, (x, y), threat = network(), digits(), Linf(0.15)
    loss, _ = LinearExact(threat, label_smoothing=0.1).loss(model, Clean(x, y))
    worst = fgsm(model, x, y, threat=unclipped(threat=threat))
    smooth = cross_entropy(model(worst), y, 0.1).mean()
    assert loss.item() == pytest.approx(smooth.item(), abs=1e-12)


@every_threat
def test_gradients_are_those_of_the_closed_form(threat):
    """d/dtheta = mean(-s y x) + eps mean(s) d||theta||, d/db = mean(-s y), s = sigma(-margin)."""
    model, (x, y) = network(), digits()
    LinearExact(threat).loss(model, Clean(x, y))[0].backward()
    weight, bias = (part.detach() for part in theta(model))
    sign = 2.0 * y - 1
    length, slope = {
        "linf": (weight.abs().sum(), weight.sign()),
        "l2": (weight.norm(), weight / weight.norm()),
        "l1": (weight.abs().max(), weight.sign() * (weight.abs() == weight.abs().max())),
    }[threat.norm]
    s = torch.sigmoid(threat.eps * length - sign * (x @ weight + bias))
    expected = (-(s * sign)[:, None] * x).mean(0) + threat.eps * s.mean() * slope
    rows = model.head.weight.grad
    assert torch.allclose(rows[1], expected, rtol=0, atol=1e-12)
    assert torch.allclose(rows[0], -expected, rtol=0, atol=1e-12)
    assert model.head.bias.grad[1].item() == pytest.approx((-s * sign).mean().item(), abs=1e-12)


@every_threat
def test_with_more_classes_the_loss_bounds_every_attack_and_its_accuracy_is_exact(threat):
    model, x, y = trained()
    loss, logs = LinearExact(threat).loss(model, Clean(x, y))
    free = unclipped(threat=threat)
    attacked = pgd(model, x, y, threat=free, steps=20, step_size=threat.eps / 4)
    assert cross_entropy(model(attacked), y).mean() < loss
    assert (model(attacked).argmax(1) == y).double().mean() >= logs["acc_adv"]
    stands = model(exact(model, x, y, threat=free)).argmax(1) == y
    assert stands.double().mean().item() == pytest.approx(logs["acc_adv"].item(), abs=1e-6)


def test_a_step_costs_one_pass_forward_and_one_to_the_weights():
    model, (x, y), method = network(10), digits(10), LinearExact(Linf(0.1))
    method.craft(model, x, y, NOW)

    def step():
        method.loss(model, method.craft(model, x, y, NOW))[0].backward()

    assert units(model, x, step) == pytest.approx(2)


def test_the_loss_is_a_function_of_the_weights_alone():
    model, (x, y), method = network(), digits(), LinearExact(L2(0.5))
    parcel = method.craft(model, x, y, NOW)
    before = method.loss(model, parcel)[0]
    assert torch.equal(method.loss(model, parcel)[0], before)
    model.head.weight.data *= 2
    assert not torch.equal(method.loss(model, parcel)[0], before)


def corner(x, w, threat):
    """The largest <w, d> over ball and box, found otherwise: by hand, LP, or bisection."""
    low, high = -x, 1 - x
    if threat.norm == "linf":
        return np.where(w > 0, np.minimum(high, threat.eps), np.maximum(low, -threat.eps)) @ w
    if threat.norm == "l1":
        room = [(0, part) for part in (*high, *-low)]
        ones = np.ones((1, 2 * len(x)))
        return -linprog(np.r_[-w, w], A_ub=ones, b_ub=[threat.eps], bounds=room).fun
    a, b = 0.0, 1e9
    for _ in range(200):
        middle = (a + b) / 2
        fits = np.linalg.norm(np.clip(middle * w, low, high)) <= threat.eps
        a, b = (middle, b) if fits else (a, middle)
    return np.clip(a * w, low, high) @ w


@pytest.mark.parametrize("threat", [*THREATS, L2(2.5), L1(6.0), Linf(0.7), Linf(0.0)], ids=str)
def test_farthest_is_the_optimum_within_ball_and_box(threat):
    generator = torch.Generator().manual_seed(0)
    x = (torch.rand(40, 12, generator=generator) * 1.5 - 0.25).clamp(0, 1).double()
    w = torch.randn(40, 12, generator=generator).double()
    w[0], w[1, :6] = 0, 0
    z = farthest(x, w, threat)
    pairs = zip(x.numpy(), w.numpy(), strict=True)
    best = torch.tensor([corner(*pair, threat) for pair in pairs], dtype=torch.float64)
    assert torch.allclose(((z - x) * w).sum(1), best, rtol=0, atol=5e-7)
    assert (z >= 0).all() and (z <= 1).all()
    assert (threat.distance(z, x) <= threat.eps * (1 + 1e-6)).all()
    assert torch.equal(z[0], x[0])


@every_threat
def test_without_a_box_margins_are_those_of_the_closed_form(threat):
    model, x, y = trained()
    weight, free = model.head.weight.detach(), unclipped(threat=threat)
    rises = torch.stack([threat.support(weight - weight[k]) for k in y])
    closed = margin((model(x) + rises).detach(), y)
    found = margin(model(exact(model, x, y, threat=free)).detach(), y)
    assert torch.allclose(found, closed, rtol=0, atol=1e-10)
    others = F.one_hot(y, 10) == 0
    ways = lead(model(x).detach(), y)[others] / (rises / threat.eps)[others]
    least = ways.view(len(x), 9).amin(1)  # the distance to the nearest point with another label
    assert torch.equal(least < threat.eps, found > 0)


def lead(logits, y):
    """z_y - z_j for each class j, (N, K)."""
    return logits.gather(1, y.unsqueeze(1)) - logits


@pytest.mark.parametrize("box", [True, False], ids=["clipped", "unclipped"])
@pytest.mark.parametrize("threat", [Linf(0.1), L2(0.5)], ids=lambda threat: threat.norm)
def test_targeted_pgd_reaches_the_exact_margin_and_untargeted_overstates(threat, box):
    model, x, y = trained()
    threat = threat if box else unclipped(threat=threat)
    found = margin(model(exact(model, x, y, threat=threat)).detach(), y)
    keys = {"threat": threat, "steps": 60, "step_size": threat.eps / 4}
    against = []
    for target in range(10):

        def objective(model, x, y, target=target):
            return lambda z: -lead(model(z), y)[:, target]

        logits = model(pgd(model, x, y, objective=objective, **keys)).detach()
        against.append(margin(logits, y))
    best = torch.stack(against).amax(0)
    assert (best <= found + 1e-9).all()
    if threat.norm == "linf" or not box:  # pgd's l2 projection into the box is not the nearest one
        assert (found - best).abs().max() < 1e-5
    plain = margin(model(pgd(model, x, y, objective=margin_objective, **keys)).detach(), y)
    assert (plain > 0).sum() <= (found > 0).sum()


def test_the_exact_attack_reads_any_callable_and_survives_an_empty_batch():
    weight = torch.randn(3, 64, generator=torch.Generator().manual_seed(0)).double()
    x, y = digits(3)
    read = affine.read(lambda x: x.flatten(1) @ weight.T - 1, x[:3])
    assert torch.allclose(read.weight, weight) and torch.allclose(
        read.bias, -torch.ones(3).double()
    )
    normalised = linear((1, 8, 8), 3, mean=[0.3], std=[0.2]).double()
    x_adv = exact(normalised, x, y, threat=Linf(0.1))
    assert (margin(normalised(x_adv), y) >= margin(normalised(x), y)).all()
    assert exact(normalised, x[:0], y[:0], threat=Linf(0.1)).shape == (0, 64)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (small_cnn((1, 8, 8), 2, mean=None, std=None), "are in Conv2d, .* Use model=linear"),
        (linear((1, 8, 8), 2, mean=[0.1], std=[0.3]), "are in Normalise, Linear"),
        (nn.Sequential(nn.Flatten(), nn.ReLU()), "in no layer"),
    ],
    ids=["deep", "normalised", "empty"],
)
def test_networks_that_are_not_one_layer_on_pixels_are_refused_before_training(model, message):
    with pytest.raises(ValueError, match=message):
        LinearExact(Linf(0.1)).requires(model)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Sequential(nn.Flatten(), nn.Linear(64, 2), nn.Tanh()), "not linear in the pixels"),
        (nn.Sequential(nn.Flatten(), nn.Linear(64, 2), nn.ReLU()), "not linear in the pixels"),
        (nn.Sequential(nn.AvgPool2d(2), nn.Flatten(), nn.Linear(16, 2)), "changes the pixels"),
    ],
    ids=["tanh", "relu", "pool"],
)
def test_what_weights_do_not_show_is_refused_at_the_first_batch(model, message):
    x, y = digits()
    method = LinearExact(Linf(0.1))
    method.requires(model)
    with pytest.raises(ValueError, match=message):
        method.craft(model, x.float().view(-1, 1, 8, 8), y, NOW)


def test_the_program_refuses_a_deep_network_with_a_sentence(tmp_path, capsys):
    status = run(tmp_path, *FITTING, "eval=none", "defense=linear_exact", "model=small_cnn")
    assert status["exit_code"] == 2 and "Use model=linear" in status["error"]
    assert not (tmp_path / "metrics.jsonl").exists()
    assert configuration("defense=linear_exact")["model"]["_target_"].endswith("linear.linear")
    capsys.readouterr()
    bad = run(tmp_path / "row", *FITTING, "eval=linear", "defense=standard", "model=small_cnn")
    assert bad["exit_code"] == 1 and "exact: The logits are not linear" in bad["error"]


def test_images_outside_the_box_count_only_in_a_row_that_says_so():
    model, x, y = trained(classes=2)
    boxed, free, at = Linf(0.15), unclipped(threat=Linf(0.15)), tuple(range(len(x)))
    subject, clean = Subject(model, model), model(x).argmax(1) == y

    def judged(attack, threat):
        return judge(subject, x, y, attack, threat, key="row", at=at, clean=clean)

    inside, outside = (judged(partial(exact, threat=each), each) for each in (boxed, free))
    refused = judged(partial(exact, threat=free), boxed)
    assert (inside.outside, outside.outside, refused.outside) == (0, 0, len(x))
    assert refused.robust.count("0") == int((~clean).sum())
    assert 0 < outside.robust.count("1") < inside.robust.count("1")
    assert (norm_of(boxed), norm_of(free)) == ("linf", "linf unclipped")


def test_a_run_reports_exact_rows_beside_pgd_and_keeps_the_unclipped_one_apart(tmp_path):
    status = run(
        tmp_path,
        *FITTING,
        *("defense=linear_exact", "eval=linear", "optimizer.lr=0.05", "epochs=5"),
        *("dataset.train_size=400", "dataset.test_size=200"),
    )
    assert status["state"] == "done", status["error"]
    results = json.loads((tmp_path / "results.json").read_text())
    rows = {row["name"]: row for row in results["rows"]}
    accuracy = {name: row["accuracy"] for name, row in rows.items()}
    assert accuracy["clean"] > 0.5
    assert accuracy["clean"] >= accuracy["pgd_linf"] >= accuracy["exact"]
    assert accuracy["exact"] >= accuracy["exact_unclipped"]
    assert rows["exact_unclipped"]["norm"] == "linf unclipped"
    assert results["worst_case"]["linf"] == accuracy["exact"]
    assert set(results["worst_case"]) == {"linf", "l2"}
    with np.load(tmp_path / "examples.npz") as kept:
        assert str(kept["row"]) == "exact_unclipped" and kept["adversarial"].min() < 0
    assert (tmp_path / "plots" / "examples.png").stat().st_size > 0


def test_robust_training_gains_on_the_zeros_and_ones_of_digits():
    x, y = digits()
    shares = []
    for eps in (0.0, 0.2):
        model, method = network(), LinearExact(Linf(eps))
        optimizer = torch.optim.SGD(model.parameters(), 0.05)
        for _ in range(300):
            optimizer.zero_grad()
            method.loss(model, Clean(x, y))[0].backward()
            optimizer.step()
        worst = exact(model, x, y, threat=unclipped(threat=Linf(0.2)))
        shares.append((model(worst).argmax(1) == y).double().mean().item())
    assert shares[1] > shares[0] + 0.05


def test_the_lecture_is_a_grid_with_its_published_figures_beside_ours(tmp_path):
    found = command(
        *("-m", "experiment=linear_mnist01", *(o for o in FITTING if "batch" not in o)),
        *("dataset=digits", "validate.size=1", f"hydra.sweep.dir={tmp_path / 'sweep'}"),
        cwd=tmp_path,
    )
    assert found.returncode == 0, found.stderr
    with (tmp_path / "sweep" / "table.csv").open() as file:
        lines = {line["defense"]: line for line in csv.DictReader(file)}
    assert lines["standard"]["exact_unclipped_published"] == "0.155"
    assert lines["standard"]["clean_published"] == "0.9996"
    assert lines["linear_exact"]["exact_unclipped_published"] == "0.975"
    assert "paper" in (tmp_path / "sweep" / "table.md").read_text()
    assert lines["linear_exact"]["configuration"] == "robust"


def test_each_row_of_the_lecture_has_its_setting():
    rows = {name: f"row=linear_mnist01/{name}" for name in ("standard", "robust")}
    found = {name: configuration("experiment=linear_mnist01", row) for name, row in rows.items()}
    assert [found[name]["optimizer"]["lr"] for name in rows] == [0.5, 0.05]
    assert [found[name]["epochs"] for name in rows] == [10, 20]
    for config in found.values():
        assert config["optimizer"]["momentum"] == config["optimizer"]["weight_decay"] == 0
        assert config["batch_size"] == 100 and config["dataset"]["validation"] == 0
        assert config["threat"]["eps"] == 0.2


def test_published_figures_are_accuracies():
    with pytest.raises(ValueError, match=r"published\.clean=99\.96 is refused"):
        configuration(*DATA, "+published.clean=99.96")

"""Exact distances of linear models: the exact attack, a solver and smoothed certificates agree."""

import json
from dataclasses import replace
from functools import cache
from math import inf

import pytest
import torch
from running import DATA, FITTING, TRAINING, run
from scipy.optimize import minimize
from scipy.stats import binom
from sklearn.datasets import load_digits

from advtrain import affine
from advtrain.affine import Affine
from advtrain.attacks.linear import exact, unclipped
from advtrain.certification.linear import distances, require_norms, summary
from advtrain.certification.smoothing import Smoothed
from advtrain.models.linear import linear
from advtrain.threat import L1, L2, Linf

THREATS = [Linf(1.0), L2(1.0), L1(1.0)]
every_threat = pytest.mark.parametrize("threat", THREATS, ids=lambda threat: threat.norm)
LINEAR = ("job=eval", "logger=none", "device=cpu", "eval=linear", *DATA)


@cache
def fitted():
    """Least squares on digits as a network, in float64; the same to all, so change nothing."""
    x, y = load_digits(return_X_y=True)
    x, y = torch.from_numpy(x / 16), torch.from_numpy(y).long()
    model = linear((1, 8, 8), 10, mean=None, std=None).double()
    ones = torch.cat([x, torch.ones_like(x[:, :1])], 1)
    square = ones.T @ ones + 0.1 * torch.eye(65).double()
    weight = torch.linalg.solve(square, ones.T @ torch.eye(10).double()[y])
    model.head.weight.data, model.head.bias.data = weight[:-1].T.clone(), weight[-1].clone()
    return model.requires_grad_(False), x.view(-1, 1, 8, 8), y


@every_threat
def test_the_exact_attack_fails_just_inside_the_distance_and_succeeds_just_beyond(threat):
    model, x, _ = fitted()
    x = x[:15]
    classes, radii = distances(affine.read(model, x), x, threat.norm)
    assert torch.equal(classes, model(x).argmax(1)) and (radii > 0).all()
    for i, radius in enumerate(radii.tolist()):
        for factor, stands in ((0.999, True), (1.001, False)):
            ball = unclipped(threat=replace(threat, eps=factor * radius))
            x_adv = exact(model, x[i : i + 1], classes[i : i + 1], threat=ball)
            assert bool(model(x_adv).argmax(1) == classes[i]) is stands


def test_the_nearest_other_class_is_the_one_that_a_solver_finds():
    model, x, _ = fitted()
    weight, bias = (value.numpy() for value in affine.read(model, x[:3]))
    classes, radii = distances(affine.read(model, x[:3]), x[:3], "l2")
    for image, label, radius in zip(x[:3].flatten(1).numpy(), classes, radii, strict=True):
        lengths = []
        for k in set(range(10)) - {int(label)}:
            row, shift = weight[k] - weight[label], bias[k] - bias[label]
            even = {"type": "eq", "fun": lambda d, r=row, s=shift, i=image: r @ (i + d) + s}
            found = minimize(lambda d: d @ d, row * 0.1, jac=lambda d: 2 * d, constraints=even)
            lengths.append(found.fun**0.5)
        assert float(radius) == pytest.approx(min(lengths), rel=1e-4)


@every_threat
def test_with_the_box_distances_are_no_smaller(threat):
    model, x, _ = fitted()
    x = x[:6]
    classes, radii = distances(affine.read(model, x), x, threat.norm)
    for i, radius in enumerate(radii.tolist()):
        ball = replace(threat, eps=min(0.999 * radius, threat.largest))
        x_adv = exact(model, x[i : i + 1], classes[i : i + 1], threat=ball)
        assert int(model(x_adv).argmax(1)) == int(classes[i])


def test_norms_are_ordered_as_their_balls():
    model, x, _ = fitted()
    linf, l2, l1 = (distances(affine.read(model, x), x, t.norm).radii for t in THREATS)
    assert (linf <= l2).all() and (l2 <= l1).all() and (l2 <= 8 * linf * (1 + 1e-9)).all()


def test_smoothed_certificates_exceed_the_distance_no_more_often_than_alpha():
    """Of two classes the smoothed classifier of a linear model is the model itself."""
    model, x, _ = fitted()
    pair = linear((1, 8, 8), 2, mean=None, std=None).double().requires_grad_(False)
    pair.head.weight.data = model.head.weight[[3, 8]].clone()
    pair.head.bias.data = model.head.bias[[3, 8]].clone()
    exactly = distances(affine.read(pair, x[:400]), x[:400], "l2")
    smooth = Smoothed(pair, 2, 0.25, batch_size=4000)
    classes, radii = smooth.certify(x[:400], n0=20, n=200, alpha=0.01, seeds=range(400))
    sure = radii > 0
    other = (classes != exactly.classes) & sure
    too_far = (radii > exactly.radii) & sure | other
    assert int(sure.sum()) > 200
    assert int(too_far.sum()) <= binom.ppf(0.9999, int(sure.sum()), 0.01)


def test_classes_that_nothing_changes_and_ties_have_their_distances():
    same = Affine(torch.ones(2, 3), torch.tensor([1.0, 0.0]))
    x = torch.zeros(2, 3)
    assert distances(same, x, "l2").radii.tolist() == [inf, inf]
    assert distances(Affine(torch.ones(2, 3), torch.zeros(2)), x, "l2").radii.tolist() == [0, 0]
    assert distances(Affine(torch.eye(2, 3), torch.zeros(2)), x, "linf").radii.tolist() == [0, 0]
    endless = summary([(distances(same, x, "l2"), torch.tensor([0, 0]))], [1.0])
    assert endless == {"accuracy_at_radius": {"1.00": 1.0}, "acr": None}


def test_the_summary_counts_wrong_classes_as_nothing():
    model = Affine(torch.tensor([[0.0], [2.0]]), torch.tensor([0.0, 0.0]))
    x = torch.tensor([[0.5], [0.25], [-0.5], [-1.0]])
    found = distances(model, x, "linf")
    assert found.classes.tolist() == [1, 1, 0, 0] and found.radii.tolist() == [0.5, 0.25, 0.5, 1]
    halves = [(found._replace(classes=found.classes[i], radii=found.radii[i]), torch.tensor([1, 0]))
              for i in (slice(0, 2), slice(2, 4))]  # fmt: skip
    assert summary(halves, [0.25, 0.5, 0.75]) == {
        "accuracy_at_radius": {"0.25": 0.5, "0.50": 0.5, "0.75": 0.25},
        "acr": (0.5 + 1.0) / 4,
    }


def test_norms_without_a_distance_are_refused():
    require_norms(["l1", "l2"])
    for given in ([], ["l0"]):
        with pytest.raises(ValueError, match="linf, l2, l1"):
            require_norms(given)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    directory = tmp_path_factory.mktemp("trained")
    assert run(directory, *TRAINING)["state"] == "done"
    return directory


def test_an_evaluation_agrees_with_the_exact_attack_of_its_rows(tmp_path, trained):
    status = run(tmp_path, *LINEAR, f"checkpoint={trained}", "eval.exact.linf=[0.02,0.15]")
    assert status["state"] == "done", status["error"]
    found = json.loads((tmp_path / "results.json").read_text())
    accuracy = {row["name"]: row["accuracy"] for row in found["rows"]}
    assert found["exact"].keys() == {"linf", "l2"}
    at = found["exact"]["linf"]["accuracy_at_radius"]
    assert (
        at["0.15"] == accuracy["exact_unclipped"] <= accuracy["exact"] and at["0.02"] >= at["0.15"]
    )
    assert 0 < found["exact"]["linf"]["acr"] < found["exact"]["l2"]["acr"]


def test_a_network_that_is_not_linear_is_refused_in_a_sentence(tmp_path):
    kept = [each for each in FITTING if not each.startswith(("model=", "validate."))]
    deep = ("model=small_cnn", "defense=standard", *kept, "eval=linear")
    status = run(tmp_path, *deep)
    assert status["exit_code"] == 1
    assert status["error"].startswith("exact: The logits are not linear in the pixels")
    assert not (tmp_path / "verdicts.jsonl").exists()  # told before any row


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("+eval.exact.l0=[1]", "exact has the norms"),
        ("eval.exact.l2=[-1]", "eval.exact"),
        ("eval.exact.l2=0.5", "eval.exact"),
    ],
)
def test_wrong_norms_and_radii_end_with_their_key_in_a_sentence(tmp_path, override, told):
    status = run(tmp_path, *FITTING, "eval=linear", override)
    assert status["exit_code"] == 2 and told in status["error"], status["error"]

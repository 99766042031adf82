"""Attacks on certificates: true ones stand, and wrong certifiers are caught."""

import json
from functools import partial
from shutil import copytree

import pytest
import torch
from running import DATA, FITTING, TRAINING, configuration, run
from test_smoothing import HalfSpace
from torch import nn

from advtrain import run_soundness
from advtrain.attacks.apgd import apgd
from advtrain.attacks.autoattack import AutoAttack
from advtrain.attacks.clean import clean
from advtrain.attacks.linear import unclipped
from advtrain.attacks.objectives import margin
from advtrain.attacks.pgd import pgd
from advtrain.certification.smoothing import Smoothed
from advtrain.certification.soundness import (
    ATTEMPTS,
    LEVEL,
    Attempt,
    Rescaled,
    challenge,
    parse,
    report,
    require_rescaled,
    unsound,
)
from advtrain.models.views import smoothed
from advtrain.modes import crafting
from advtrain.precision import is_low
from advtrain.threat import L2, Linf

INSIDE = unclipped(threat=L2(0.99))
ATTACK = partial(pgd, threat=INSIDE, steps=12, step_size=0.2, objective=margin)
SMALL = (
    *("job=eval", "logger=none", "device=cpu", "eval=soundness", "scale.steps=10", *DATA),
    *("eval.certify.n=300", "eval.certify.n0=20", "eval.certify.attack_draws=8"),
)


def attempts(model, classes, x, claims, *, sigma=0.25, attack=ATTACK, draws=16):
    """What becomes of `claims`, class and radius of each image."""
    g, found = Smoothed(model, classes, sigma), []
    view = smoothed(model, sigma=sigma, draws=draws, seed=1)
    with torch.random.fork_rng(), crafting(model, "eval"):
        torch.manual_seed(0)  # of attacks' starts
        for i, (label, radius) in enumerate(claims):
            seeds = (2 * i, 2 * i + 1)
            point = challenge(
                g, view, x[i : i + 1], label, radius, attack=attack, draws=100, seeds=seeds
            )
            found.append(Attempt(i, label, label, radius, *point, 0.0))
    return found


def test_a_halfspace_stands_inside_its_distance_and_falls_beyond():
    x = torch.rand(12, 1, 3, 3, generator=torch.Generator().manual_seed(0))
    x[:, 0, 0, 0] = torch.linspace(0.05, 0.95, 12)
    distance, labels = (x[:, 0, 0, 0] - 0.5).abs(), (x[:, 0, 0, 0] > 0.5).long()

    def claims(factor):
        return list(zip(labels.tolist(), (factor * distance).tolist(), strict=True))

    for tried in attempts(HalfSpace(), 2, x, claims(1.0)):
        assert not tried.broken and tried.answer in (tried.prediction, -1)
        assert tried.distance == pytest.approx(0.99 * tried.radius, rel=1e-4)
    for tried in attempts(HalfSpace(), 2, x, claims(1.5)):
        assert tried.broken and tried.answer == 1 - tried.prediction and tried.p_value <= LEVEL
        assert tried.radius / 1.5 < tried.distance < tried.radius


def test_attacks_that_drop_finished_examples_go_as_well():
    attack, x = partial(apgd, threat=INSIDE, steps=8), torch.full((1, 1, 2, 2), 0.3)
    (true,) = attempts(HalfSpace(), 2, x, [(0, 0.2)], attack=attack)
    (false,) = attempts(HalfSpace(), 2, x, [(0, 0.5)], attack=attack)
    assert not true.broken and false.broken


def test_the_configuration_is_that_of_the_paper():
    found = configuration("eval=certify")["eval"]
    paper = {"n0": 100, "n": 100_000, "alpha": 0.001, "size": 500, "attack": None}
    assert found["attacks"] == {} and paper.items() <= found["certify"].items()
    attacked = configuration("eval=soundness")["eval"]["certify"]
    assert attacked["n"] == 100_000 and attacked["attack"]["steps"] == 100


@pytest.fixture(scope="module")
def noisy(digits):
    """A network trained on digits with noise of 0.25, in a second or two."""
    from sklearn.datasets import load_digits

    data = load_digits()
    x = torch.tensor(data.images / 16.0, dtype=torch.float32).unsqueeze(1)
    y = torch.tensor(data.target, dtype=torch.int64)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
        optimizer = torch.optim.Adam(model.parameters(), lr=4e-3)
        for _ in range(12):
            for batch in torch.randperm(len(x)).split(64):
                optimizer.zero_grad()
                noise = 0.25 * torch.randn_like(x[batch])
                nn.functional.cross_entropy(model(x[batch] + noise), y[batch]).backward()
                optimizer.step()
    return model.eval()


def test_certificates_of_a_network_stand_and_inflated_ones_fall(noisy, digits):
    x = digits.x[:25]
    classes, radii = Smoothed(noisy, 10, 0.25).certify(x, n=1000, seeds=range(25))
    sure = radii > 0.1
    claims = list(zip(classes[sure].tolist(), radii[sure].tolist(), strict=True))
    assert len(claims) > 15
    honest = attempts(noisy, 10, x[sure], claims)
    assert not any(each.broken for each in honest)
    inflated = attempts(noisy, 10, x[sure], [(label, 3 * r) for label, r in claims])
    assert sum(each.broken for each in inflated) > 0.8 * len(claims)
    other = attempts(noisy, 10, x[sure], [((label + 1) % 10, r) for label, r in claims])
    assert all(each.broken for each in other)  # certificates of another class


def test_chance_alone_breaks_nothing():
    """On the boundary, where each class is a coin flip, LEVEL keeps the judge from a claim."""
    x = torch.full((80, 1), 0.5)
    found = attempts(HalfSpace(), 2, x, [(0, 1.0)] * 80, attack=partial(clean, threat=INSIDE))
    assert not any(each.broken for each in found)
    assert min(each.p_value for each in found) < 0.1


@pytest.mark.parametrize("move", [3.0, float("nan")], ids=["outside", "not finite"])
def test_points_that_are_not_inside_the_radius_count_as_the_image(move):
    def cheat(model, x, y):
        return x + move

    (tried,) = attempts(HalfSpace(), 2, torch.full((1, 1), 0.2), [(0, 0.2)], attack=cheat)
    assert tried.distance == 0 and tried.answer == 0 and not tried.broken


def test_the_certified_radius_is_the_unit_of_the_attack():
    x = torch.rand(1, 1, 3, 3)
    scaled = Rescaled(lambda images: images.flatten(1), x, 0.4)
    z = x + torch.eye(9).view(9, 1, 3, 3)
    assert torch.allclose(scaled(z), (x + 0.4 * torch.eye(9).view(9, 1, 3, 3)).flatten(1))
    assert torch.equal(scaled(x), x.flatten(1))


def test_an_attempt_is_read_back_from_its_line():
    tried = Attempt(3, 1, 2, 0.5, 0.4992307, 7, 1.25e-300, 2.5)
    assert tried.broken and parse(tried.line()) == tried
    assert not Attempt(3, 1, 2, 0.5, 0.4, 7, 1e-5, 2.5).broken  # by chance, perhaps
    assert not Attempt(3, 1, 2, 0.5, 0.4, 2, 1e-50, 2.5).broken
    assert not Attempt(3, 1, 2, 0.5, 0.5, 7, 1e-50, 2.5).broken  # the ball is open


def test_what_is_broken_is_a_warning_with_what_was_to_be_expected():
    tried = [Attempt(3, 1, 2, 0.5, 0.49, 7, 1e-30, 2.5), Attempt(4, 2, 2, 0.5, 0.49, 2, 0.0, 1.0)]
    found = report(tried, "pgd(steps=20)", 32)
    assert (found["examples"], found["attack"]) == (2, "pgd(steps=20)")
    assert found["broken"] == [
        {
            **{"idx": 3, "label": 1, "predict": 2, "radius": 0.5},
            **{"distance": 0.49, "answer": 7, "p_value": 1e-30},
        }
    ]
    (warning,) = unsound({"alpha": 0.001, "soundness": found})
    assert warning["check"] == "unsound" and "1 of 2 certificates are broken" in warning["message"]
    assert "0.002 false ones are to be expected" in warning["message"]
    assert unsound({"alpha": 0.001, "soundness": report(tried[1:], "", 1)}) == []
    assert unsound({"alpha": 0.001, "soundness": None}) == unsound(None) == []


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    directory = tmp_path_factory.mktemp("trained")
    assert run(directory, *TRAINING)["state"] == "done"
    return directory


@pytest.fixture(scope="module")
def whole(trained, tmp_path_factory):
    directory = tmp_path_factory.mktemp("attacked") / "run"
    assert run(directory, *SMALL, f"checkpoint={trained}")["exit_code"] == 0
    return directory


@pytest.fixture
def attacked(whole, tmp_path):
    """A copy of a finished run."""
    return copytree(whole, tmp_path / "run")


def results(directory):
    return json.loads((directory / "results.json").read_text())


def test_a_run_attacks_its_certificates_and_finds_forged_ones(attacked, trained, caplog):
    found = results(attacked)
    soundness = found["certified"]["soundness"]
    log = attacked / "certify.tsv"
    certified = [line for line in log.read_text().splitlines()[1:] if "\t-1\t" not in line]
    assert soundness["examples"] == len(certified) > 5 and soundness["broken"] == []
    assert soundness["attack"].startswith("pgd(") and "steps=10" in soundness["attack"]
    assert not any(each["check"] == "unsound" for each in found["warnings"])
    tried = ATTEMPTS.read(attacked / "soundness.tsv").lines
    assert all(0 < each.distance < each.radius for each in tried)

    forged = [line.split("\t") for line in log.read_text().splitlines()]
    for columns in forged[1:]:
        columns[3] = f"{5 * float(columns[3]):.9f}" if columns[2] != "-1" else columns[3]
    log.write_text("".join("\t".join(columns) + "\n" for columns in forged))
    status = run(attacked, *SMALL, f"checkpoint={trained}")
    assert (status["exit_code"], status["state"]) == (1, "failed")
    found = results(attacked)
    broken = found["certified"]["soundness"]["broken"]
    assert len(broken) > len(certified) / 2 and found["certified"]["acr"] > 0
    assert found["warnings"][0]["check"] == "unsound"
    assert f"{len(broken)} of {len(certified)} certificates are broken" in status["error"]
    for each in broken:
        assert each["distance"] < each["radius"] and each["answer"] != each["predict"]
    errors = [record for record in caplog.records if record.levelname == "ERROR"]
    assert len([each for each in errors if "is broken" in each.getMessage()]) == len(broken)
    assert (attacked / "table.md").exists() and (attacked / "report.html").exists()


def test_certificates_of_bf16_are_asked_in_bf16_where_no_copy_is_attacked(
    trained, tmp_path, monkeypatch
):
    seen = []

    def challenged(g, *args, **keys):
        seen.append(is_low(g.model))
        return challenge(g, *args, **keys)

    monkeypatch.setattr(run_soundness, "challenge", challenged)
    monkeypatch.setattr(run_soundness, "swift", lambda model, x: model)
    given = (*SMALL, f"checkpoint={trained}", "eval.size=4", "eval.certify.precision=bf16")
    assert run(tmp_path, *given)["exit_code"] == 0
    assert seen and all(seen)


def test_a_killed_check_goes_on_after_its_last_line(attacked, trained):
    log = attacked / "soundness.tsv"
    whole = log.read_text()
    log.write_text(whole[: len(whole) // 2])
    kept = log.read_text().rpartition("\n")[0]
    assert run(attacked, *SMALL, f"checkpoint={trained}")["exit_code"] == 0
    assert log.read_text().startswith(kept)
    now, before = log.read_text().splitlines(), whole.splitlines()
    assert [line.rpartition("\t")[0] for line in now] == [
        line.rpartition("\t")[0] for line in before
    ]


@pytest.mark.parametrize(
    ("attack", "told"),
    [
        (partial(pgd, threat=Linf(0.5)), "a ball in linf"),
        (partial(pgd, threat=L2(0.999)), "pixels from 0"),
        (partial(pgd, threat=unclipped(threat=L2(1.0))), "eps=1 "),
        (partial(pgd, threat=unclipped(threat=L2(0.0))), "eps=0 "),
        (partial(pgd, steps=3), "no single attack with a threat"),
        (AutoAttack(L2(0.5)), "no single attack with a threat"),
    ],
)
def test_an_attack_that_cannot_refute_a_radius_is_refused(attack, told):
    with pytest.raises(ValueError, match=told):
        require_rescaled(attack)


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("eval.certify.attack.threat.threat.eps=1", "eval.certify: attack.threat has eps=1"),
        ("eval.certify.attack.threat=${threat}", "eval.certify: attack.threat is a ball in linf"),
        ("eval.certify.attack=3", "eval.certify.attack=3"),
        ("eval.certify.attack_draws=0", "eval.certify.attack_draws=0"),
    ],
)
def test_a_wrong_check_ends_with_its_key_in_a_sentence(tmp_path, override, told):
    status = run(tmp_path, *FITTING, "eval=soundness", override)
    assert status["exit_code"] == 2 and told in status["error"], status["error"]

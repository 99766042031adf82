"""TLA: its loss against the formula, its partners in the batch, the networks it takes, its cost."""

import copy
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from passes import units
from running import TRAINING, run
from test_attack_contract import HostReads
from torch import nn

from advtrain.attacks.pgd import pgd
from advtrain.averages import Last
from advtrain.defenses.tla import Tla, Triplets, directions, distance
from advtrain.descents.awp import Awp
from advtrain.descents.plain import Plain
from advtrain.models.network import Network
from advtrain.modes import crafting
from advtrain.threat import Linf
from advtrain.training import Method, TrainState, train_step
from advtrain.types import Moment

NOW = Moment(0, 0.0, 0.0)
K = 3
ATTACK = partial(pgd, threat=Linf(0.1), steps=K, step_size=0.04)


def tla(weight=2.0, margin=0.03, norm_weight=1e-3, clean_weight=0.0, noise=0.0, **more):
    return Tla(ATTACK, weight, margin, norm_weight, clean_weight, noise, **more)


def network(hidden=64, classes=3):
    """For images (B, 1, 2, 2); the head is a small part of a pass."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers: list[nn.Module] = [nn.Flatten(), nn.Linear(4, hidden), nn.BatchNorm1d(hidden)]
        for _ in range(3):
            layers += [nn.ReLU(), nn.Linear(hidden, hidden)]
        body = nn.Sequential(*layers, nn.ReLU())
        return Network(nn.Identity(), body, nn.Linear(hidden, classes), accepts=(1, 2, 2))


def batch(labels):
    y = torch.tensor(labels)
    return torch.rand(len(y), 1, 2, 2, generator=torch.Generator().manual_seed(1)), y


def craft(method, model, x, y):
    with crafting(model, method.craft_mode):
        return method.craft(model, x, y, NOW)


def written_out(features, anchors, parcel, margin=0.03, norm_weight=1e-3):
    """Both T by loops over triplets, as in the paper."""
    terms = {"own": [], "shared": []}
    for i, y in enumerate(parcel.y):
        if all(other == y for other in parcel.y):
            continue
        partners = {"own": i}
        if (parcel.y == y).sum() > 1:
            partners["shared"] = int(parcel.alike[i])
        for name, j in partners.items():
            a, p, n = anchors[i], features[j], features[int(parcel.unlike[i])]
            near, far = (1 - abs(a @ v / (a.norm() * v.norm())) for v in (p, n))
            size = (a**2 + p**2 + n**2).mean()
            terms[name].append(max(0 * near, near - far + margin) + norm_weight * size)
    return sum(torch.stack(each).mean() for each in terms.values() if each)


@pytest.mark.parametrize(
    "labels",
    [[0, 0, 1, 1, 2, 2, 0, 1], [0, 0, 0, 1, 2, 2], [0, 1, 2], [1, 1, 1]],
    ids=["pairs", "one alone", "all alone", "one class"],
)
def test_loss_and_gradients_are_those_of_the_formula(labels):
    """Means are over the triplets that exist; the distance is that of cosines without sign.

    The authors' arithmetic (1e-20 added under each root) was run beside ours on networks with batch
    norm in training mode, 10 batches of 30 in three classes: loss within 4.5e-16, gradient within
    7.2e-16 (relative), in float64.
    """
    model, (x, y) = network().double(), batch(labels)
    x = x.double()
    parcel = craft(tla(), model, x, y)
    model.eval()
    loss, logs = tla(clean_weight=0.3).loss(model, parcel)
    gradient = torch.autograd.grad(loss, tuple(model.parameters()))
    features, anchors = model.features(x), model.features(parcel.x_adv)
    expected = F.cross_entropy(model.head(anchors), y) + 0.3 * F.cross_entropy(model(x), y)
    triplets = written_out(features, anchors, parcel)
    assert logs["triplet"].item() == pytest.approx(
        float(torch.as_tensor(triplets).detach()), abs=1e-12
    )
    expected = expected + 2 * triplets
    torch.testing.assert_close(loss, expected, atol=1e-12, rtol=1e-12)
    theirs = torch.autograd.grad(expected, tuple(model.parameters()))
    for mine, other in zip(gradient, theirs, strict=True):
        torch.testing.assert_close(mine, other, atol=1e-12, rtol=1e-9)
    assert {"ce", "ce_adv", "triplet", "acc", "acc_adv"} == logs.keys()
    assert not any(log.requires_grad for log in logs.values())


def test_partners_are_another_image_of_the_class_and_the_most_similar_of_another_class():
    model, (x, y) = network(), batch([0, 0, 0, 1, 1, 2])
    model.train()
    drawn = set()
    for seed in range(20):
        torch.manual_seed(seed)
        parcel = craft(tla(), model, x, y)
        assert (y[parcel.alike[:5]] == y[:5]).all() and (parcel.alike[:5] != torch.arange(5)).all()
        drawn.add(parcel.alike[0].item())
    assert drawn == {1, 2}  # by chance among the others of the class
    assert parcel.paired.tolist() == [1, 1, 1, 1, 1, 0] and parcel.opposed.tolist() == [1] * 6
    model.eval()
    clean, adv = model.features(x), model.features(parcel.x_adv)
    for i in range(6):
        similar = F.cosine_similarity(adv[i : i + 1], clean)
        best = max((j for j in range(6) if y[j] != y[i]), key=lambda j: similar[j])
        assert parcel.unlike[i] == best


def test_distance_is_that_of_directions_whichever_way_they_point():
    u = torch.tensor([[3.0, 4.0], [1.0, 0.0], [0.0, 2.0]])
    v = torch.tensor([[-6.0, -8.0], [0.0, 5.0], [1.0, 1.0]])
    torch.testing.assert_close(distance(u, v), torch.tensor([0.0, 1.0, 1 - 0.5**0.5]))


def test_features_that_died_have_no_direction_and_send_no_gradient():
    dead = torch.zeros(2, 4, requires_grad=True)
    gap = distance(dead, torch.ones(2, 4))
    assert gap.tolist() == [1.0, 1.0]
    (gradient,) = torch.autograd.grad(gap.sum(), dead)
    assert torch.equal(gradient, torch.zeros(2, 4))
    assert directions(torch.full((1, 4), 1e-3)).norm().item() == pytest.approx(1.0, abs=1e-6)


def test_noise_moves_the_clean_images_within_the_box():
    model, (x, y) = network(), batch([0, 1, 2, 0])
    assert torch.equal(craft(tla(), model, x, y).x, x)
    moved = (craft(tla(noise=0.05), model, x, y).x - x).abs()
    assert 0.02 < moved.max() <= 0.05 + 1e-6


def test_crafting_and_loss_never_make_the_host_wait():
    model, (x, y) = network(), batch([0, 0, 1, 2, 2, 2])
    with HostReads() as reads:
        parcel = craft(tla(noise=0.01), model, x, y)
        tla().loss(model, parcel)[0].backward()
    assert reads.count == 0


def test_the_loss_is_a_function_of_the_weights_alone():
    model, (x, y) = network(), batch([0, 0, 1, 2, 2, 2])
    parcel = craft(tla(), model, x, y)
    before, state = copy.deepcopy(parcel), torch.get_rng_state()
    first, second = (tla().loss(model, parcel)[0] for _ in range(2))
    assert torch.equal(first, second) and torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(parcel, before, strict=True))
    assert isinstance(parcel, Triplets)


@pytest.mark.parametrize(
    ("descent", "cost"),
    [(Plain(None), 2 * K + 8), (Awp(0.01, 0.0, Plain(None)), 2 * K + 14)],
    ids=["plain", "awp"],
)
def test_a_step_costs_2k_plus_8_passes(descent, cost):
    """Two more than the paper's loss itself: they choose the negative examples."""
    model, (x, y) = network(hidden=256), batch([0, 1, 2, 0, 1, 2, 0, 1])
    state = TrainState(model, torch.optim.SGD(model.parameters(), 0.1), Last(model, 12), tla())
    method = Method(descent, {}, {}, seed=0)
    assert units(model, x, lambda: train_step(state, x, y, NOW, method)) == pytest.approx(
        cost, abs=0.2
    )


class Headless(nn.Module):
    """`features` as a module, as torchvision has it, and no head."""

    def __init__(self):
        super().__init__()
        self.features = nn.Flatten()

    def forward(self, x):
        return self.features(x)[:, :3]


@pytest.mark.parametrize("model", [nn.Flatten(), Headless()], ids=["none", "a module"])
def test_a_network_without_features_is_refused(model):
    with pytest.raises(ValueError, match=r"no method `features` with a `head`.*our models"):
        tla().requires(model)
    with pytest.raises(ValueError, match="no method `features`"):
        craft(tla(), model, *batch([0, 1, 2]))
    tla().requires(network())


def test_the_program_trains_with_it(tmp_path):
    status = run(tmp_path, *TRAINING, "defense=tla")
    assert status["state"] == "done", status["error"]


def test_the_program_refuses_a_network_without_features_before_training(tmp_path, monkeypatch):
    (tmp_path / "bare_network.py").write_text(
        "from torch import nn\n\n\ndef make(shape, classes):\n"
        "    size = shape[0] * shape[1] * shape[2]\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(size, classes))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    chosen = [each for each in TRAINING if each != "model=linear"]
    custom = ("model=custom", "model.factory=bare_network.make")
    status = run(tmp_path / "run", *chosen, *custom, "defense=tla")
    assert status["exit_code"] == 2 and "Sequential has no method `features`" in status["error"]
    assert not (tmp_path / "run/checkpoints/last.pt").exists()


def test_it_trains_in_bfloat16(tmp_path):
    """Features and logits come out in float32, by two calls that the network makes in one."""
    chosen = [each for each in TRAINING if each != "model=linear"]
    status = run(tmp_path, *chosen, "defense=tla", "model=mnist_cnn", "precision=bf16")
    assert status["state"] == "done", status["error"]

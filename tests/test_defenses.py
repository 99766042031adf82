import copy
import io
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from method_cases import ADV_LOGITS, CLEAN_LOGITS, LABELS, batch, network
from passes import deep_network, units
from torch import Tensor, nn

from advtrain.attacks import starts
from advtrain.attacks.objectives import kl_to_clean
from advtrain.attacks.pgd import fgsm, pgd
from advtrain.averages import Last
from advtrain.defenses.base import Clean, Pair, warmed
from advtrain.defenses.free import Free, Warm
from advtrain.defenses.mixed_at import MixedAt
from advtrain.defenses.pgd_at import PgdAt
from advtrain.defenses.standard import Standard
from advtrain.defenses.trades import Trades
from advtrain.descents.awp import Awp
from advtrain.descents.plain import Plain
from advtrain.modes import crafting
from advtrain.threat import L2, Linf
from advtrain.training import Method, TrainState, train_step
from advtrain.types import Moment

NOW = Moment(0, 0.0, 0.0)
K = 3
ATTACK = partial(pgd, threat=Linf(0.1), steps=K, step_size=0.04)
REPLAYS, SIZES = 3, (8, 8, 5, 8)  # twelve updates of Free, with a short batch in between


def methods() -> dict[str, object]:
    return {
        "standard": Standard(),
        "pgd_at": PgdAt(ATTACK, "eval"),
        "mixed_at": MixedAt(ATTACK, 0.5, "eval"),
        "trades": Trades(ATTACK, starts.normal(std=0.001), 6.0),
        "free": Free(Linf(0.1), 0.1),
    }


def craft(method, model, x, y):
    with crafting(model, mode=method.craft_mode):
        return method.craft(model, x, y, NOW)


def gradients(method, model, parcel) -> list[Tensor]:
    model.zero_grad()
    method.loss(model, parcel)[0].backward()
    return [parameter.grad.clone() for parameter in model.parameters()]


class Recorder:
    """An attack that notes how it was asked, and whether the model trained meanwhile."""

    def __init__(self) -> None:
        self.calls: list[tuple[bool, dict[str, object]]] = []

    def __call__(self, model, x, y, *, objective=None, start=None):
        self.calls.append((model.training, {"objective": objective, "start": start}))
        return (x + 0.01).clamp(0, 1)


@pytest.mark.parametrize(
    ("method", "parcel", "value"),
    [
        (Standard(), Clean(CLEAN_LOGITS, LABELS), 0.5460261236445726),
        (PgdAt(ATTACK, "eval"), Pair(CLEAN_LOGITS, ADV_LOGITS, LABELS), 1.2144667682921197),
        (MixedAt(ATTACK, 0.5, "eval"), Pair(CLEAN_LOGITS, ADV_LOGITS, LABELS), 0.8802464459683461),
        (
            Trades(ATTACK, starts.clean, 6.0),
            Pair(CLEAN_LOGITS, ADV_LOGITS, LABELS),
            2.0243743323293684,
        ),
    ],
    ids=["standard", "pgd_at", "mixed_at", "trades"],
)
def test_losses_have_their_values_on_given_logits(method, parcel, value):
    loss, _ = method.loss(nn.Identity(), parcel)
    assert loss.item() == pytest.approx(value, abs=1e-14)


def test_trades_reports_its_terms():
    _, logs = Trades(ATTACK, starts.clean, 6.0).loss(
        nn.Identity(), Pair(CLEAN_LOGITS, ADV_LOGITS, LABELS)
    )
    assert logs["ce"].item() == pytest.approx(0.5460261236445726, abs=1e-14)
    assert logs["kl"].item() == pytest.approx(0.24639136811413262, abs=1e-14)
    assert (logs["acc"].item(), logs["acc_adv"].item()) == (1.0, pytest.approx(0.4))


@pytest.mark.parametrize("name", methods())
def test_a_loss_is_a_function_of_the_weights_alone(name):
    method, model = methods()[name], network()
    parcel = craft(method, model, *batch())
    state = torch.get_rng_state()
    first, logs = method.loss(model, parcel)
    second, _ = method.loss(model, parcel)
    assert torch.equal(first, second) and first.ndim == 0
    assert all(not value.requires_grad and value.ndim == 0 for value in logs.values())
    assert 0 <= logs["acc"] <= 1
    before, after = gradients(method, model, parcel), gradients(method, model, parcel)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", methods())
def test_crafting_leaves_the_network_as_it_was(name):
    method, model = methods()[name], network()
    before = copy.deepcopy(model.state_dict())
    parcel = craft(method, model, *batch())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert model.training
    assert torch.equal(parcel.x, batch()[0]) and torch.equal(parcel.y, batch()[1])


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("make", [PgdAt, partial(MixedAt, share=0.5)])
def test_the_attack_sees_the_mode_that_was_chosen(make, mode):
    attack, model = Recorder(), network()
    craft(make(attack=attack, craft_mode=mode), model, *batch())
    assert [training for training, _ in attack.calls] == [mode == "train"]


def test_trades_asks_its_attack_for_the_divergence_from_its_own_start():
    attack, start = Recorder(), starts.normal(std=0.001)
    craft(Trades(attack, start, 6.0), network(), *batch())
    assert attack.calls == [(False, {"objective": kl_to_clean, "start": start})]


def test_trades_refuses_an_attack_that_cannot_be_guided():
    with pytest.raises(ValueError, match=r"Trades chooses .* takes no start\. Use attack=pgd"):
        Trades(partial(fgsm, threat=Linf(0.1)), starts.clean, 6.0)


def test_trades_raises_the_divergence_and_stays_in_the_set():
    method, model = Trades(ATTACK, starts.normal(std=0.001), 6.0), network()
    x, y = batch()
    torch.manual_seed(0)
    parcel = craft(method, model, x, y)
    model.eval()
    with torch.no_grad():
        clean, adv, noisy = (model(v) for v in (x, parcel.x_adv, x + 0.001 * torch.randn_like(x)))
    kl = partial(F.kl_div, target=clean.softmax(1), reduction="batchmean")
    assert kl(adv.log_softmax(1)) > 100 * kl(noisy.log_softmax(1))
    assert (parcel.x_adv - x).abs().max() <= 0.1 + 1e-6
    assert parcel.x_adv.min() >= 0 and parcel.x_adv.max() <= 1


def test_the_gradient_of_trades_at_the_clean_images_is_that_of_cross_entropy():
    """The divergence is 0 there and so is its gradient, in either argument."""
    model, (x, y) = network(), batch()
    trades = gradients(Trades(ATTACK, starts.clean, 6.0), model, Pair(x, x, y))
    standard = gradients(Standard(), model, Clean(x, y))
    for ours, theirs in zip(trades, standard, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)


def test_the_gradient_of_trades_flows_into_both_arguments():
    """Against the formula written out: cross-entropy and 6 sum p (log p - log q).

    The authors' loss was run beside ours: three convolutions, with and without batch norm, 10
    batches of 32 colour images, 10 attack steps of 0.007, eps 0.031. In float64, while the noise of
    the start stays in the box: no pixel of the adversarial images differs, loss within 4e-16,
    gradient within 1.1e-15 (relative). On the same adversarial images in float32: 1.3e-6. Where
    float32 crafts too, 3 to 8 % of the pixels differ: the divergence at the start is about 1e-8,
    signs of its gradient are those of rounding; the loss then agrees within 1.1e-3.
    """
    model, (x, y) = network(), batch()
    pair = Pair(x, (x + 0.1).clamp(0, 1), y)
    ours = gradients(Trades(ATTACK, starts.clean, 6.0), model, pair)
    model.zero_grad()
    p, q = model(pair.x).softmax(1), model(pair.x_adv).softmax(1)
    loss = -p.gather(1, y[:, None]).log().mean() + 6 * (p * (p.log() - q.log())).sum(1).mean()
    loss.backward()
    for mine, parameter in zip(ours, model.parameters(), strict=True):
        torch.testing.assert_close(mine, parameter.grad, atol=1e-6, rtol=1e-5)


def test_trades_passes_clean_images_first_and_each_once():
    seen: list[Tensor] = []
    model, (x, y) = network(), batch()
    model.register_forward_pre_hook(lambda _, images: seen.append(images[0]))
    pair = Pair(x, (x + 0.1).clamp(0, 1), y)
    Trades(ATTACK, starts.clean, 6.0).loss(model, pair)
    assert len(seen) == 2 and seen[0] is pair.x and seen[1] is pair.x_adv


@pytest.mark.parametrize(("share", "same_as"), [(0.0, "x"), (1.0, "x_adv")])
def test_mixed_training_ends_in_its_two_terms(share, same_as):
    model, (x, y) = network(), batch()
    pair = Pair(x, (x + 0.1).clamp(0, 1), y)
    loss, _ = MixedAt(ATTACK, share, "eval").loss(model, pair)
    expected = F.cross_entropy(model(getattr(pair, same_as)), y)
    torch.testing.assert_close(loss, expected)


def stream() -> list[tuple[Tensor, Tensor]]:
    return [batch(size, seed=10 + i) for i, size in enumerate(SIZES) for _ in range(REPLAYS)]


def free_state(seed: int = 0) -> TrainState:
    model = network(seed)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=5e-4)
    return TrainState(model, optimizer, Last(model, 12), Free(Linf(0.1), 0.1))


def run(state: TrainState, data, descent=None) -> None:
    method = Method(descent or Plain(None), {}, {}, seed=0)
    for x, y in data:
        train_step(state, x, y, Moment(state.step, 0.0, 0.0), method)


def test_free_equals_a_loop_with_one_backward_pass_for_both_players():
    """Weights, statistics and perturbation against the algorithm written as a loop of replays.

    The loop of the authors' PyTorch code was run beside ours: three convolutions with batch norm,
    batches of 32, 32, 20 and 32 colour images, 4 replays, eps and step 4/255, SGD with momentum and
    decay. After the 16 updates weights, statistics and perturbation were equal bit for bit.
    """
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=5e-4)
    noise = torch.zeros(8, 1, 4, 4)
    for x, y in stream()[::REPLAYS]:
        for _ in range(REPLAYS):
            delta = noise[: len(x)].clone().requires_grad_()
            loss = F.cross_entropy(model((x + delta).clamp(0, 1)), y)
            optimizer.zero_grad()
            loss.backward()
            noise[: len(x)] = (delta.detach() + 0.1 * delta.grad.sign()).clamp(-0.1, 0.1)
            optimizer.step()

    state = free_state()
    run(state, stream())
    torch.testing.assert_close(state.defense.state_dict()["delta"], noise, atol=1e-6, rtol=0)
    for key, value in state.model.state_dict().items():
        torch.testing.assert_close(value, model.state_dict()[key], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("updates", [1, 7, 8, 11], ids=lambda n: f"after {n} updates")
def test_free_resumes_bit_for_bit_in_the_middle_of_a_replay(updates):
    whole, part = free_state(), free_state()
    run(whole, stream())
    run(part, stream()[:updates])
    file = io.BytesIO()
    torch.save(part.state_dict(), file)
    file.seek(0)
    resumed = free_state(seed=9)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    run(resumed, stream()[updates:])
    for ours, theirs in zip(
        whole.model.state_dict().values(), resumed.model.state_dict().values(), strict=True
    ):
        assert torch.equal(ours, theirs)
    assert torch.equal(whole.defense.state_dict()["delta"], resumed.defense.state_dict()["delta"])


def test_saving_free_changes_nothing():
    watched, alone = free_state(), free_state()
    for pair in stream():
        run(watched, [pair])
        watched.state_dict()
    run(alone, stream())
    for ours, theirs in zip(
        watched.model.state_dict().values(), alone.model.state_dict().values(), strict=True
    ):
        assert torch.equal(ours, theirs)


def test_the_perturbation_of_free_outlives_batches_and_short_ones_move_their_rows_alone():
    state = free_state()
    run(state, stream()[:REPLAYS])
    before = state.defense.state_dict()["delta"].clone()
    assert before.abs().max() > 0
    run(state, stream()[2 * REPLAYS : 3 * REPLAYS])
    after = state.defense.state_dict()["delta"]
    assert torch.equal(after[5:], before[5:]) and not torch.equal(after[:5], before[:5])


@pytest.mark.parametrize("threat", [Linf(0.1), L2(0.2)], ids=["linf", "l2"])
def test_the_perturbation_of_free_stays_in_the_ball_of_its_threat(threat):
    state = free_state()
    state.defense = Free(threat, threat.eps)
    run(state, stream())
    delta = state.defense.state_dict()["delta"]
    lengths = threat.distance(delta, torch.zeros_like(delta))
    assert (lengths <= threat.eps + 1e-6).all() and (lengths > 0.5 * threat.eps).any()


def test_a_pixel_that_leaves_the_box_sends_the_perturbation_no_gradient():
    method, model = Free(Linf(0.1), 0.1), network()
    x, y = batch()
    x[:, :, 0] = 1.0
    method.load_state_dict({"delta": torch.full_like(x, 0.1)})
    parcel = craft(method, model, x, y)
    method.loss(model, parcel)[0].backward()
    assert (parcel.delta.grad[:, :, 0] == 0).all() and (parcel.delta.grad[:, :, 3] != 0).any()


def test_weight_perturbation_does_not_count_the_gradient_of_free_twice():
    """Free under AWP: delta's gradient is that of the evaluation at shifted weights alone."""
    descent = Awp(0.01, 0.0, Plain(None))
    x, y = batch()
    state, model = free_state(), network()
    run(state, [(x, y)], descent)
    parcel = Warm(x, torch.zeros_like(x).requires_grad_(), y)
    with descent.perturbed(model, partial(state.defense.loss, model, parcel)):
        assert parcel.delta.grad is None
        state.defense.loss(model, parcel)[0].backward()
    torch.testing.assert_close(
        state.defense.shown.delta.grad, parcel.delta.grad, atol=1e-9, rtol=1e-5
    )


@pytest.mark.parametrize(
    ("name", "plain", "awp"),
    [
        ("standard", 3, 6),
        ("pgd_at", 2 * K + 3, 2 * K + 6),
        ("mixed_at", 2 * K + 6, 2 * K + 12),
        ("trades", 2 * K + 7, 2 * K + 13),
        ("free", 3, 6),
    ],
)
def test_steps_cost_the_fewest_passes(name, plain, awp):
    """Units of one forward pass: a step of plain descent, and one of weight perturbation."""
    for descent, expected in ((Plain(None), plain), (Awp(0.01, 0.0, Plain(None)), awp)):
        model = deep_network()
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        state = TrainState(model, optimizer, Last(model, 12), methods()[name])
        x, y = batch(side=2)
        measured = units(model, x, partial(run, state, [(x, y)], descent))
        assert measured == pytest.approx(expected, abs=0.15)


@pytest.mark.parametrize("name", methods())
def test_label_smoothing_reaches_the_loss_and_no_attack(name):
    """With logits of 0 the smoothed and the plain cross-entropy agree; elsewhere they do not."""
    plain, smooth = methods()[name], methods()[name]
    smooth.label_smoothing = 0.3
    model, (x, y) = network(), batch()
    torch.manual_seed(0)
    first = craft(plain, model, x, y)
    torch.manual_seed(0)
    second = craft(smooth, model, x, y)
    assert all(map(torch.equal, first, second))
    assert plain.loss(model, first)[0] != smooth.loss(model, first)[0]
    nn.init.zeros_(model[-1].weight), nn.init.zeros_(model[-1].bias)
    torch.testing.assert_close(plain.loss(model, first)[0], smooth.loss(model, first)[0])


class Turns:
    """Two attacks in turns."""

    def __init__(self, *attacks):
        self.attacks = attacks

    def at(self, now):
        return self.attacks[now.batch % len(self.attacks)]

    def members(self):
        return self.attacks


def test_a_rotation_of_attacks_is_asked_for_the_one_of_the_moment():
    turns = Turns(ATTACK, partial(ATTACK, steps=1))
    assert warmed(turns, 0.0, Moment(5, 1.0, 0.5, batch=2)) is ATTACK
    half = warmed(turns, 0.5, Moment(5, 1.0, 0.25, batch=1))
    assert half.keywords["steps"] == 1 and half.keywords["threat"].eps == pytest.approx(0.05)


def test_a_rotation_with_one_attack_that_cannot_be_guided_is_refused():
    with pytest.raises(ValueError, match=r"Trades chooses .* takes no start\. Use attack=pgd"):
        Trades(Turns(ATTACK, partial(fgsm, threat=Linf(0.1))), starts.clean, 6.0)


def test_the_radius_grows_in_a_line_along_the_warm_up_and_then_stays():
    attack = partial(pgd, threat=Linf(0.2), steps=3, step_size=0.1)
    seen = []
    for progress in (0.0, 0.1, 0.25, 0.5, 0.9):
        keywords = warmed(attack, 0.5, Moment(0, 0.0, progress)).keywords
        assert keywords["step_size"] == pytest.approx(keywords["threat"].eps / 2)
        seen.append(keywords["threat"].eps)
    assert seen == pytest.approx([0.0, 0.04, 0.1, 0.2, 0.2])
    assert warmed(attack, 0.0, Moment(0, 0.0, 0.0)) is attack


def test_a_method_crafts_within_the_radius_of_the_moment():
    attack = partial(pgd, threat=Linf(0.2), steps=3, step_size=0.1)
    x, y = batch()
    for method in (
        PgdAt(attack, "eval", warmup=0.5),
        MixedAt(attack, 0.5, "eval", warmup=0.5),
        Trades(attack, starts.normal(std=0.001), 6.0, warmup=0.5),
    ):
        parcel = method.craft(network(), x, y, Moment(0, 0.0, 0.25))
        assert 0.05 < (parcel.x_adv - x).abs().max() <= 0.1 + 1e-6


def test_free_moves_a_perturbation_off_black_pixels_only_where_the_image_keeps_it():
    """Of black pixels pushed below 0: dead in the graph, cut to 0 and pushed up by the image."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2, bias=False))
    model[1].weight.data = torch.tensor([[-1.0] * 4, [1.0] * 4])
    x, down, up = torch.zeros(1, 1, 2, 2), torch.tensor([1]), torch.tensor([0])
    found = {}
    for box in ("graph", "image"):
        method = Free(Linf(0.1), 0.1, box)
        for y in (down, up, up):
            loss, _ = method.loss(model, method.craft(model, x, y, Moment(0, 0.0, 0.0)))
            loss.backward()
        method.ascend()
        found[box] = method.delta.unique().tolist()
    assert found["graph"] == pytest.approx([-0.1]) and found["image"] == pytest.approx([0.1])

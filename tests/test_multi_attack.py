"""Training against several attacks: who attacks when, what is trained on, and at which cost."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from method_cases import network
from passes import deep_network, units
from running import DATA, configuration, run
from test_attack_contract import HostReads
from torch import nn

from advtrain.attacks import starts
from advtrain.attacks.mim import mim
from advtrain.attacks.multi import Cycle, Lot
from advtrain.attacks.pgd import fgsm, pgd
from advtrain.averages import Last
from advtrain.defenses.multi_attack import Crafted, MultiAttack
from advtrain.defenses.pgd_at import PgdAt
from advtrain.defenses.trades import Trades
from advtrain.descents.plain import Plain
from advtrain.modes import crafting
from advtrain.threat import L2, Linf
from advtrain.training import Method, TrainState, train_step
from advtrain.types import Moment, Rotation

STEPS = {"mim": 2, "pgd": 4}
ATTACKS = {
    "fgsm": partial(fgsm, threat=Linf(0.1)),
    "mim": partial(mim, threat=Linf(0.1), steps=2, step_size=0.05, decay=1.0),
    "pgd": partial(pgd, threat=Linf(0.1), steps=4, step_size=0.05),
}
QUICK = ("logger=none", "device=cpu", "epochs=1", "batch_size=16", "eval=none", *DATA)


def now(batch=0, step=0, progress=0.0):
    return Moment(step, 0.0, progress, batch=batch)


def shifted(by):
    """An attack that moves every pixel by as much."""
    return lambda model, x, y: x + by


def multi(rule, attacks=None, **more):
    return MultiAttack(attacks or ATTACKS, rule, 0, "eval", **more)


def craft(method, model, x, y, moment=None):
    with crafting(model, method.craft_mode):
        return method.craft(model, x, y, moment or now())


def batch(size=8, side=4):
    generator = torch.Generator().manual_seed(1)
    return torch.rand((size, 1, side, side), generator=generator), torch.arange(size) % 3


def test_a_cycle_takes_its_attacks_in_order_and_begins_anew_at_each_epoch():
    cycle = Cycle(ATTACKS)
    assert isinstance(cycle, Rotation) and cycle.members() == tuple(ATTACKS.values())
    turns = [cycle.at(now(batch, step=7 * epoch + batch)) for epoch in (0, 1) for batch in range(7)]
    fgsm, mim, pgd = ATTACKS.values()
    assert turns == 2 * [fgsm, mim, pgd, fgsm, mim, pgd, fgsm]


def test_lots_depend_on_seed_and_step_alone_and_fall_evenly():
    drawn = [[Lot(ATTACKS, seed).at(now(step=s)) for s in range(900)] for seed in (0, 1)]
    state = torch.get_rng_state()
    assert drawn[0] == [Lot(ATTACKS, 0).at(now(batch=5, step=s)) for s in range(900)]
    assert drawn[0] != drawn[1] and torch.equal(torch.get_rng_state(), state)
    counts = [drawn[0].count(attack) for attack in ATTACKS.values()]
    assert all(240 < count < 360 for count in counts)  # 300 expected, standard deviation 14


@pytest.mark.parametrize(
    "make",
    [Cycle, partial(Lot, seed=0), partial(MultiAttack, rule="max", seed=0, craft_mode="eval")],
)
def test_no_attack_at_all_is_refused(make):
    with pytest.raises(ValueError, match="attacks is empty; give at least one"):
        make({})


@pytest.mark.parametrize("rule", ["cyclic", "random"])
def test_one_attack_per_batch_is_what_that_attack_makes(rule):
    model, (x, y) = network(), batch()
    seen = set()
    for step in range(12):
        torch.manual_seed(step)
        parcel = craft(multi(rule), model, x, y, now(step, step))
        rotation = Cycle(ATTACKS) if rule == "cyclic" else Lot(ATTACKS, 0)
        torch.manual_seed(step)
        expected = craft(PgdAt(rotation, "eval"), model, x, y, now(step, step))
        assert torch.equal(parcel.x_adv, expected.x_adv) and torch.equal(parcel.y, y)
        seen.add(parcel.x_adv.sum().item())
    assert len(seen) >= 3


def test_max_keeps_for_each_example_the_image_of_highest_loss():
    model, (x, y) = network(), batch()
    attacks = {"up": shifted(0.3), "down": shifted(-0.3), "none": shifted(0.0)}
    parcel = craft(multi("max", attacks), model, x, y)
    model.eval()
    losses = [F.cross_entropy(model(x + by), y, reduction="none") for by in (0.3, -0.3, 0.0)]
    chosen = torch.stack(losses).argmax(0)
    assert len(chosen.unique()) > 1, "a test without a choice shows nothing"
    shifts = torch.tensor([0.3, -0.3, 0.0])[chosen][:, None, None, None]
    torch.testing.assert_close(parcel.x_adv, x + shifts)
    assert torch.equal(parcel.y, y)


@pytest.mark.parametrize("rule", ["cyclic", "random", "max", "avg"])
def test_crafting_never_makes_the_host_wait(rule):
    model, (x, y) = network(), batch()
    with HostReads() as reads:
        craft(multi(rule), model, x, y)
    assert reads.count == 0


def test_of_equal_losses_max_keeps_the_first():
    model, (x, y) = network(), batch()
    parcel = craft(multi("max", {"a": shifted(0.0), "b": shifted(0.0)}), model, x, y)
    assert torch.equal(parcel.x_adv, x)


def test_avg_is_the_mean_of_the_losses_of_all_attacks_in_one_pass():
    model, (x, y) = network().double(), batch()
    x = x.double()
    attacks = {"up": shifted(0.1), "down": shifted(-0.2)}
    parcel = craft(multi("avg", attacks), model, x, y)
    assert torch.equal(parcel.x_adv, torch.cat([x + 0.1, x - 0.2]))
    assert torch.equal(parcel.y, torch.cat([y, y]))
    model.eval()
    loss, _ = multi("avg", attacks).loss(model, parcel)
    expected = sum(F.cross_entropy(model(x + by), y) for by in (0.1, -0.2)) / 2
    torch.testing.assert_close(loss, expected, atol=1e-12, rtol=1e-12)


def test_the_loss_is_cross_entropy_on_what_was_crafted():
    logits = torch.tensor([[2, -1, 0.5], [0, 1, -2]], dtype=torch.float64)
    y = torch.tensor([0, 2])
    loss, logs = multi("max").loss(nn.Identity(), Crafted(logits, y))
    assert loss.item() == pytest.approx(F.cross_entropy(logits, y).item(), abs=1e-12)
    assert logs.keys() == {"acc"} and logs["acc"].item() == 0.5


@pytest.mark.parametrize("rule", ["cyclic", "random", "max", "avg"])
def test_each_attack_keeps_to_its_own_set_at_the_radius_of_the_moment(rule):
    attacks = {
        "linf": partial(pgd, threat=Linf(0.2), steps=3, step_size=0.1),
        "l2": partial(pgd, threat=L2(0.4), steps=3, step_size=0.2),
    }
    model, (x, y) = network(), batch()
    for step in range(4):
        method = multi(rule, attacks, warmup=0.5)
        parcel = craft(method, model, x, y, now(step, step, progress=0.25))
        delta = parcel.x_adv - x.repeat(len(parcel.x_adv) // len(x), 1, 1, 1)
        linf, l2 = delta.abs().amax((1, 2, 3)), delta.flatten(1).norm(dim=1)
        assert ((linf <= 0.1 + 1e-6) | (l2 <= 0.2 + 1e-6)).all() and (l2 > 0.05).all()


def cost(defense, batch_index=0):
    model, (x, y) = deep_network(), batch(side=2)
    state = TrainState(model, torch.optim.SGD(model.parameters(), 0.1), Last(model, 12), defense)
    method = Method(Plain(None), {}, {}, seed=0)
    return units(model, x, lambda: train_step(state, x, y, now(batch_index), method))


@pytest.mark.parametrize("defense", [multi("cyclic"), PgdAt(Cycle(ATTACKS), "eval")])
def test_a_cycle_costs_the_mean_of_its_attacks_and_three(defense):
    """(2 + 2 T_MIM + 2 T_PGD) / 3 + 3."""
    measured = [cost(defense, index) for index in range(3)]
    assert measured == pytest.approx([2 + 3, 2 * 2 + 3, 2 * 4 + 3], abs=0.15)
    assert sum(measured) / 3 == pytest.approx((2 + 2 * 2 + 2 * 4) / 3 + 3, abs=0.15)


def test_max_costs_all_attacks_a_look_at_each_and_three():
    assert cost(multi("max")) == pytest.approx(2 * (1 + 2 + 4) + 3 + 3, abs=0.2)


def test_avg_costs_all_attacks_and_a_training_pass_of_each():
    assert cost(multi("avg")) == pytest.approx(2 * (1 + 2 + 4) + 3 * 3, abs=0.2)


def test_a_defense_that_guides_its_attack_refuses_a_cycle_with_fgsm_and_takes_one_without():
    guided = {name: attack for name, attack in ATTACKS.items() if name != "fgsm"}
    with pytest.raises(ValueError, match=r"Trades chooses .* takes no start\. Use attack=pgd"):
        Trades(Cycle(ATTACKS), starts.clean, 6.0)
    method, model, (x, y) = Trades(Cycle(guided), starts.normal(std=1e-3), 6.0), network(), batch()
    first, second = (craft(method, model, x, y, now(index)) for index in range(2))
    assert not torch.equal(first.x_adv, second.x_adv)


def test_the_configuration_names_the_attacks_in_their_order_and_reads_their_files():
    for node in (configuration("attack=multi")["attack"], configuration("defense=multi_attack")):
        attacks = node.get("defense", node)["attacks"]
        assert list(attacks) == ["fgsm", "mim", "pgd"]
        for name, attack in attacks.items():
            assert attack == configuration(f"attack={name}")["attack"]


@pytest.mark.parametrize(
    "overrides",
    [
        ("attack=multi",),
        ("attack=multi", "defense=mixed_at"),
        ("attack=multi", "~attack.attacks.fgsm", "defense=trades"),
        ("defense=multi_attack",),
        ("defense=multi_attack", "defense.rule=random", "defense.attacks.pgd.steps=1"),
        ("defense=multi_attack", "defense.rule=max", "~defense.attacks.mim"),
        ("defense=multi_attack", "defense.rule=avg", "+attack@defense.attacks.rfgsm=rfgsm"),
    ],
    ids=" ".join,
)
def test_the_program_trains_with_it(tmp_path, overrides):
    status = run(tmp_path, *QUICK, *overrides)
    assert status["state"] == "done", status["error"]


def test_the_program_refuses_trades_with_all_three(tmp_path):
    status = run(tmp_path, *QUICK, "attack=multi", "defense=trades")
    assert status["exit_code"] == 2 and "takes no start. Use attack=pgd" in status["error"]


def test_a_run_interrupted_between_attacks_ends_as_if_it_had_not_been(tmp_path):
    """Turns and lots are functions of the step, so nothing of them is saved."""
    states = []
    for parts in ([6], [2, 4]):
        torch.manual_seed(0)
        model, done = network(), 0
        for count in parts:
            state = TrainState(
                model, torch.optim.SGD(model.parameters(), 0.1), Last(model, 12), multi("random")
            )
            state.step = done
            for step in range(done, done + count):
                torch.manual_seed(step)
                method = Method(Plain(None), {}, {}, seed=0)
                train_step(state, *batch(), now(step % 3, step), method)
            done += count
        states.append(model.state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])

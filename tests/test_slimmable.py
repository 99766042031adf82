"""Networks of several widths in one (OATS): what is shared and trained, the authors' numbers."""

import json
from functools import partial

import pytest
import torch
from running import configuration, interrupted, run
from test_oat import EPS, NOW, fill
from torch import Tensor, nn

from advtrain.attacks.pgd import pgd
from advtrain.averages import recalibrate
from advtrain.conditions import Condition, alike, by_width, in_turn
from advtrain.config import ConfigError
from advtrain.defenses import oat
from advtrain.defenses.oat import Oat
from advtrain.inference import swift
from advtrain.models.conditional import ConditionalNetwork
from advtrain.models.network import Network
from advtrain.models.oat import oat_resnet34, oat_small_cnn, oat_wide_resnet
from advtrain.models.resnet import Basic, residual_body, small_stem
from advtrain.models.slimmable import SlimmableNetwork, SwitchableNorm
from advtrain.models.views import Unfit, at
from advtrain.modes import crafting
from advtrain.ranges import RangeError
from advtrain.reporting.frontier import frontiers
from advtrain.reporting.reading import read_run
from advtrain.reporting.tables import accuracy_table
from advtrain.runs import load_run
from advtrain.threat import Linf

WIDTHS = [0.5, 0.75, 1]
LAMBDAS = [0, 0.1, 0.2, 0.3, 0.4, 1]
KEYS = {"lambdas": LAMBDAS, "encoding": "dct", "code_size": 8, "dual": True, "film_offset": 0}
GIVEN = Condition(torch.tensor([0, 0, 0.1, 0.2, 0.3, 0.4, 1, 0.2]), 2)


def residual(channels: int, **more) -> ConditionalNetwork:
    """A ResNet of one block in each stage, from so many channels on; slimmable if told widths."""
    body = residual_body(small_stem(3, channels), Basic, (1, 1, 1, 1), channels)
    plain = Network(nn.Identity(), body, nn.Linear(8 * channels, 10), accepts=(3, None, None))
    make = SlimmableNetwork if more else ConditionalNetwork
    return make(plain, bare=lambda name: "downsample" in name, **KEYS, **more)


def slimmable() -> SlimmableNetwork:
    model = residual(8, widths=WIDTHS)
    fill(model)
    return model


def cut(model: SlimmableNetwork, width: float) -> ConditionalNetwork:
    """A plain network of that width, with the leading weights and the norms of `model`."""
    place, narrow = model.widths.index(width), residual(int(8 * width))
    full = {
        name.replace(f".norms.{place}.", "."): value for name, value in model.state_dict().items()
    }
    narrow.load_state_dict(
        {
            name: full[name][tuple(slice(size) for size in value.shape)]
            for name, value in narrow.state_dict().items()
        }
    )
    return narrow


def images() -> tuple[Tensor, Tensor]:
    return torch.rand((8, 3, 16, 16), generator=torch.Generator().manual_seed(1)), torch.arange(8)


def statistics(model: nn.Module) -> dict[str, Tensor]:
    return {name: b.clone() for name, b in model.named_buffers() if "running" in name}


@pytest.mark.parametrize("width", WIDTHS)
def test_a_width_is_the_network_that_is_cut_by_hand_in_answers_gradients_and_statistics(width):
    model, (x, y) = slimmable(), images()
    narrow = cut(model, width).train()
    network = model.train().at_width(width)
    found, expected = network(x, GIVEN), narrow(x, GIVEN)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    for logits in (found, expected):
        nn.functional.cross_entropy(logits, y).backward()
    mine = {name: weight.grad for name, weight in model.named_parameters()}
    for name, weight in narrow.named_parameters():
        place = model.widths.index(width)
        gradient = mine[name.replace(".norm.", f".norm.norms.{place}.")]
        inside = tuple(slice(size) for size in weight.shape)
        torch.testing.assert_close(gradient[inside], weight.grad, atol=1e-4, rtol=1e-4)
        outside = gradient.clone()
        outside[inside] = 0
        assert not outside.any()
    found = at(model.eval(), lam=0.2, width=width)(x)
    torch.testing.assert_close(found, at(narrow.eval(), lam=0.2)(x), atol=1e-5, rtol=1e-5)


def test_at_width_one_it_is_the_plain_network_of_the_same_seed():
    def made(**more) -> ConditionalNetwork:
        torch.manual_seed(0)
        return oat_small_cnn((1, 8, 8), 10, **{**KEYS, "encoding": "rand"}, **more).eval()

    plain, model = made(), made(widths=WIDTHS)
    x = images()[0][:, :1]
    for lam in (0.0, 0.25):
        assert torch.equal(at(model, lam=lam)(x), at(plain, lam=lam)(x))
        assert torch.equal(at(model, lam=lam, width=1)(x), at(plain, lam=lam)(x))
    shared = [name for name, _ in plain.named_parameters() if ".norm." not in name]
    mine = dict(model.named_parameters())
    assert all(torch.equal(mine[name], plain.get_parameter(name)) for name in shared)
    assert not any(isinstance(part, SwitchableNorm) for part in plain.modules())


def test_a_pass_moves_the_statistics_of_its_width_alone_and_leaves_the_full_one_chosen():
    model, (x, _) = slimmable().train(), images()
    before = statistics(model)
    model.at_width(0.75)(x, GIVEN)
    moved = [name for name, now in statistics(model).items() if not torch.equal(now, before[name])]
    assert moved and all(".norms.1." in name for name in moved)
    full = model.eval()(x, GIVEN)
    with pytest.raises(ValueError, match="conditional"):
        model.at_width(0.5)(x)
    assert torch.equal(model(x, GIVEN), full)


@pytest.mark.parametrize(
    ("build", "shape", "parameters"),
    [
        (oat_resnet34, (3, 32, 32), 33_398_026),  # their SlimmableResNet34OAT
        (partial(oat_wide_resnet, depth=16, width=8, dropout=0.3), (3, 32, 32), 16_246_922),
        (oat_small_cnn, (1, 8, 8), 75_274),
    ],
)
def test_only_batch_norms_come_on_top(build, shape, parameters):
    with torch.device("meta"):
        keys = {**KEYS, "code_size": 128}
        plain, model = build(shape, 10, **keys), build(shape, 10, widths=WIDTHS, **keys)
    norms = [part for part in plain.modules() if isinstance(part, nn.BatchNorm2d)]
    sizes = [sum(p.numel() for p in each.parameters()) for each in (plain, model)]
    assert sizes[1] == parameters
    assert sizes[1] - sizes[0] == sum(2 * 1.25 * norm.num_features for norm in norms)


# Their SlimmableBasicBlockOAT, one in each stage from 8 channels on, with these weights, images,
# lambdas and noise, by their PGD and loss, widths one after the other in three steps of SGD (their
# repository has the networks alone; adversarial images before the clean pass). Images agreed in all
# pixels, losses to 8e-8, weights and statistics after the steps to a relative 1.2e-7; of their
# whole network, ResNet-34, the first loss and all pixels, too.
LOSSES = (8.842187643051147, 4.187052130699158, 2.3603710532188416)
MOVES = {
    0.5: (0.025772199034690857, 0.025222089141607285, 0.025154955685138702),
    0.75: (0.02518938109278679, 0.02491452358663082, 0.024608559906482697),
    1.0: (0.025074195116758347, 0.02490987256169319, 0.024668453261256218),
}
LOGITS = {
    (0.0, 0.5): (7.984957695007324, 5.231652736663818, -5.484156608581543, -1.598764419555664),
    (0.0, 1.0): (7.628927707672119, 27.414426803588867, -12.568551063537598, 12.850260734558105),
    (0.3, 0.5): (1.7261241674423218, 2.4626877307891846, -2.2949938774108887, 0.852689802646637),
    (0.3, 0.75): (0.35937824845314026, 3.5202596187591553, -2.203517436981201, 2.171657085418701),
    (1.0, 1.0): (2.0893633365631104, 2.9012558460235596, -3.675240993499756, 2.5749351978302),
}


def test_losses_attacks_and_updates_are_those_of_the_authors_networks(monkeypatch):
    model = slimmable()
    draws = torch.Generator().manual_seed(1)
    x, y = torch.rand((8, 3, 32, 32), generator=draws), torch.arange(8)
    noise = (2 * torch.rand((6, 3, 32, 32), generator=draws) - 1) * EPS
    monkeypatch.setattr(oat, "drawn", lambda *given: GIVEN)
    attack = partial(
        pgd,
        threat=Linf(EPS),
        steps=7,
        step_size=min(1.25 * EPS, EPS + 4 / 255) / 7,
        start=lambda x, threat, generator=None: x + noise,
    )
    method = Oat(attack, [1])
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9, weight_decay=5e-4)
    model.train()
    for step, expected in enumerate(LOSSES):
        with crafting(model, method.craft_mode):
            parcel = method.craft(model, x, y, NOW)
        loss, _ = method.loss(model, parcel)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert loss.item() == pytest.approx(expected, rel=2e-5)
        for part, moves in zip(parcel, MOVES.values(), strict=True):
            moved = (part.x_adv - x[2:]).abs().mean().item()
            assert moved == pytest.approx(moves[step], rel=2e-5)
    model.eval()
    for (lam, width), expected_logits in LOGITS.items():
        found = at(model, lam=lam, width=width)(x)[0, :4]
        torch.testing.assert_close(found, torch.tensor(expected_logits), atol=5e-3, rtol=5e-3)


def test_a_step_sums_the_losses_of_all_widths_which_are_told_by_name():
    model, (x, y) = slimmable().eval(), images()
    method = Oat(partial(pgd, threat=Linf(0.1), steps=1, step_size=0.05), [1])
    parcel = method.craft(model, x, y, NOW)
    assert all(torch.equal(part.condition.lambdas, parcel[0].condition.lambdas) for part in parcel)
    loss, logs = method.loss(model, parcel)
    parts = [
        method.weighed(network, part)[0]
        for network, part in zip(by_width(model).values(), parcel, strict=True)
    ]
    assert loss.item() == pytest.approx(sum(part.item() for part in parts))
    names = {"ce", "acc", "ce_adv", "acc_adv"}
    suffixes = ("[width=0.5]", "[width=0.75]", "")
    assert logs.keys() == {f"{name}{suffix}" for name in names for suffix in suffixes}


def test_statistics_of_an_average_are_estimated_anew_at_every_width():
    model, (x, y) = slimmable().eval(), images()
    recalibrate(model, [(x, y)])
    for width in WIDTHS:
        alone = cut(model, width).eval()
        recalibrate(alone, [(x, y)])
        condition = in_turn(model, len(x))
        torch.testing.assert_close(
            model.at_width(width)(x, condition), alone(x, condition), atol=1e-4, rtol=1e-4
        )


@pytest.mark.parametrize("width", [0.5, 1.0])
def test_the_faster_copy_of_a_view_answers_the_same(width):
    view, (x, _) = at(slimmable().eval(), lam=0.2, width=width), images()
    torch.testing.assert_close(swift(view, x)(x), view(x), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("widths", "message"),
    [
        ([0.5, 1.5], r"model.widths is 1.5; allowed is a number in \(0, 1\]"),
        ([0, 1], "model.widths is 0; allowed"),
        ([0.5, 0.75], "and 1, the full network, among them"),
        ([0.5, 0.5, 1], "distinct"),
        ([], "distinct"),
        ([0.3, 1], "has 0.3, and a layer has 32 channels, of which that is 9.6"),
    ],
)
def test_impossible_widths_are_refused(widths, message):
    with pytest.raises(ValueError, match=message):
        oat_small_cnn((1, 8, 8), 10, widths=widths, **KEYS)


def test_a_width_that_a_network_does_not_have_is_refused():
    with pytest.raises(ValueError, match=r"width is 0.6, .* the widths 0.5, 0.75, 1"):
        at(slimmable(), lam=0.2, width=0.6)
    with pytest.raises(Unfit, match=r"Train one with model.widths"):
        at(residual(8), lam=0.2, width=0.5)
    with pytest.raises(RangeError):
        alike(2.0, images()[0])


RUN = (
    *("defense=oat", "model.widths=[0.5,1]", "logger=none", "device=cpu", "epochs=2"),
    *("dataset.train_size=60", "dataset.test_size=40", "dataset.validation=20", "batch_size=30"),
    *("attack.steps=1", "validate.attack.steps=1", "defense.judged_at=[0.2]", "scale.steps=1"),
)
JUDGED = ("eval.views=${lambdas:[0,1],[0.5,1]}", "~eval.attacks.pgd_7")


def test_a_run_tells_the_width_in_rows_metrics_and_the_frontier_and_resumes_exactly(tmp_path):
    status = run(tmp_path / "a", *RUN, *JUDGED)
    assert status["state"] == "done", status["error"]
    results = json.loads((tmp_path / "a" / "results.json").read_text())
    views = list(dict.fromkeys(row["view"] for row in results["rows"]))
    assert views == [f"lambda={lam},width={width}" for width in (0.5, 1) for lam in (0, 1)]
    report = json.loads((tmp_path / "a" / "metrics.jsonl").read_text().splitlines()[-1])
    assert {"train_acc", "train_acc[width=0.5]", "val_acc[lambda=0.2]"} <= report.keys()
    (frontier,) = frontiers(accuracy_table([read_run(tmp_path / "a")]))
    assert [curve.label.rpartition(", ")[2] for curve in frontier.curves] == [
        "width 0.5",
        "width 1",
    ]
    assert [point.lam for point in frontier.curves[0].points] == [0, 1]
    model, _ = load_run(tmp_path / "a")
    assert isinstance(model, SlimmableNetwork) and model.widths == (0.5, 1)
    assert at(model, lam=0.3, width=0.5)(torch.rand(2, 1, 8, 8)).shape == (2, 10)

    interrupted(tmp_path / "b", 3, *RUN, "job=train")
    assert run(tmp_path / "b", *RUN, "job=train")["state"] == "done"
    whole, resumed = (load_run(tmp_path / name, which="last")[0].state_dict() for name in "ab")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)

    quick = ("eval=oat", "~eval.attacks.pgd", "~eval.attacks.pgd_7", "logger=none", "eval.size=10")
    again = run(tmp_path / "c", "job=eval", f"checkpoint={tmp_path / 'a'}", *quick)
    assert again["state"] == "done", again["error"]
    rows = json.loads((tmp_path / "c" / "results.json").read_text())["rows"]
    assert len({row["view"] for row in rows}) == 2 * len(LAMBDAS)  # eval=oat: at all widths


def test_views_at_widths_come_by_themselves_and_from_the_command_line():
    found = configuration("defense=oat", "model.widths=[0.5,1]")["eval"]["views"]
    assert list(found)[:2] == ["lambda=0.0,width=0.5", "lambda=0.1,width=0.5"]
    assert len(found) == 12 and found["lambda=1.0,width=1"]["width"] == 1
    one = configuration("defense=oat", "eval.views=${lambdas:0.2,0.5}")["eval"]["views"]
    assert list(one) == ["lambda=0.2,width=0.5"]


@pytest.mark.parametrize("widths", ["[0.5]", "[0.3,1]", "[2,1]", "[]"])
def test_a_run_with_impossible_widths_is_refused_in_a_sentence(tmp_path, widths):
    try:
        error = run(tmp_path, *RUN, *JUDGED[1:], f"model.widths={widths}")["error"]
    except ConfigError as refused:
        error = str(refused)
    assert "model.widths" in error and "\n" not in error.strip()

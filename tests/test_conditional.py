"""Conditional networks: FiLM, dual batch norm, codes of lambda, views at a lambda."""

from functools import partial
from math import cos, pi

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from advtrain.averages import InTurn, recalibrate
from advtrain.conditions import Condition, alike, drawn, in_turn, leading, require_conditional
from advtrain.inference import swift
from advtrain.models.conditional import (
    ConditionalNetwork,
    ConditionalNorm,
    DualNorm,
    Film,
    ascending,
    matrix,
)
from advtrain.models.oat import oat_resnet34, oat_small_cnn, oat_wide_resnet
from advtrain.models.small import small_cnn
from advtrain.models.views import At, Unfit, at
from advtrain.precision import low_precision
from advtrain.ranges import RangeError

LAMBDAS = [0, 0.1, 0.2, 0.3, 0.4, 1]
USUAL = {
    "lambdas": LAMBDAS,
    "encoding": "rand",
    "code_size": 128,
    "dual": True,
    "film_offset": 0,
}
DIGITS = (1, 8, 8)


def network(**changed) -> ConditionalNetwork:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return oat_small_cnn(DIGITS, 10, **{**USUAL, "code_size": 8, **changed})


def images(size: int = 6) -> Tensor:
    return torch.rand((size, *DIGITS), generator=torch.Generator().manual_seed(1))


def norms(model: nn.Module) -> list[DualNorm]:
    return [part for part in model.modules() if isinstance(part, DualNorm)]


WRN_16_8 = partial(oat_wide_resnet, depth=16, width=8, dropout=0.3)
WRN_40_2 = partial(oat_wide_resnet, depth=40, width=2, dropout=0.3)


@pytest.mark.parametrize(
    ("build", "shape", "changed", "parameters", "mmac", "count"),
    [
        (oat_resnet34, (3, 32, 32), {}, 33_355_466, 1171.4, 72),
        (oat_resnet34, (3, 32, 32), {"encoding": "none", "dual": False}, 31_403_978, 1169.5, 36),
        (WRN_16_8, (3, 32, 32), {}, 16_228_922, 1553.4, 26),
        (WRN_40_2, (3, 96, 96), {}, 3_886_394, 2950.0, 74),
        (oat_small_cnn, (1, 8, 8), {}, 74_794, 0.4, 4),
        (oat_small_cnn, (1, 28, 28), {}, 144_938, 5.7, 6),
    ],
)
def test_sizes_are_those_of_the_authors(build, shape, changed, parameters, mmac, count):
    with torch.device("meta"):
        model = build(shape, 10, **{**USUAL, **changed}).eval()
        with FlopCounterMode(display=False) as counter:
            at(model, lam=0.2)(torch.empty(1, *shape))
    assert sum(each.numel() for each in model.parameters()) == parameters
    assert sum(isinstance(part, nn.BatchNorm2d) for part in model.modules()) == count
    assert round(counter.get_total_flops() / 2e6, 1) == mmac


def test_film_is_the_identity_at_scale_one_and_shift_zero():
    film, x = Film(3, 4, offset=0.0), torch.randn(2, 4, 5, 5)
    last = film.mlp[2]
    nn.init.zeros_(last.weight)
    with torch.no_grad():
        last.bias.copy_(torch.tensor([1.0] * 4 + [0.0] * 4))
    assert torch.equal(film(x, torch.randn(2, 3)), x)
    shifted = Film(3, 4, offset=1.0)
    nn.init.zeros_(shifted.mlp[2].weight)
    nn.init.zeros_(shifted.mlp[2].bias)
    assert torch.equal(shifted(x, torch.randn(1, 3)), x)


def test_film_scales_and_shifts_channels_by_the_halves_of_its_small_network():
    film, x, codes = Film(3, 4, offset=0.0), torch.randn(2, 4, 5, 5), torch.randn(2, 3)
    first, last = film.mlp[0], film.mlp[2]
    hidden = F.leaky_relu(codes @ first.weight.T + first.bias, 0.01)
    both = F.leaky_relu(hidden @ last.weight.T + last.bias, 0.01)
    for row in range(2):
        for channel in range(4):
            expected = x[row, channel] * both[row, channel] + both[row, 4 + channel]
            torch.testing.assert_close(film(x, codes)[row, channel], expected)


def test_rows_of_lambda_zero_and_no_others_move_the_statistics_of_the_first_norm():
    model, x = network().train(), images()
    before = {name: value.clone() for name, value in model.state_dict().items()}

    def moved(condition: Condition) -> set[str]:
        model.load_state_dict(before)
        model(x, condition)
        now = model.state_dict()
        changed = [name for name in now if not torch.equal(now[name], before[name])]
        return {name.split(".")[-2] for name in changed}

    some = torch.tensor([0.0, 0.0, 0.1, 0.4, 1.0, 0.2])
    assert moved(Condition(some, 2)) == {"standard", "robust"}
    assert moved(Condition(some[2:3], 0)) == {"robust"}
    assert moved(alike(0.0, x)) == {"standard"}
    model.load_state_dict(before)
    model(x, Condition(some, 2))
    inputs = model.body[0](x)
    first = norms(model)[0]
    for norm, rows in ((first.standard, inputs[:2]), (first.robust, inputs[2:])):
        torch.testing.assert_close(norm.running_mean, 0.1 * rows.mean((0, 2, 3)))


def test_each_row_is_answered_as_if_it_were_alone():
    model, x = network().eval(), images()
    lambdas = torch.tensor([0.0, 0.0, 0.1, 0.4, 1.0, 0.25])
    together = model(x, Condition(lambdas, 2))
    for row, lam in enumerate(lambdas.tolist()):
        alone = at(model, lam=lam)(x[row : row + 1])
        torch.testing.assert_close(together[row : row + 1], alone, atol=1e-5, rtol=1e-5)


def test_without_film_and_a_second_norm_nothing_is_left_of_the_condition():
    plain = small_cnn(DIGITS, 10, mean=None, std=None).eval()
    weights = plain.state_dict()
    bare = ConditionalNetwork(
        plain,
        **{**USUAL, "dual": False},
        bare=lambda name: True,
    ).eval()
    told = {name.replace(".norm.", "."): value for name, value in bare.state_dict().items()}
    assert told.keys() - weights.keys() == {"values", "codes"}
    twin = small_cnn(DIGITS, 10, mean=None, std=None).eval()
    twin.load_state_dict(weights)
    assert torch.equal(at(bare, lam=0.3)(images()), twin(images()))
    assert torch.equal(at(bare, lam=0.0)(images()), twin(images()))


def test_codes_are_rows_of_their_matrices():
    assert torch.equal(matrix("onehot", 3, 5), torch.eye(5)[:3])
    from scipy.fftpack import dct

    expected = torch.tensor(dct(torch.eye(8).double().numpy(), axis=0)).float()
    torch.testing.assert_close(matrix("dct", 6, 8), expected[:6])
    assert matrix("dct", 2, 4)[1, 0].item() == pytest.approx(2 * cos(pi / 8))
    random = matrix("rand", 6, 16)
    torch.testing.assert_close(random @ random.T, torch.eye(6), atol=1e-5, rtol=0)
    assert {"codes", "values"} <= network().state_dict().keys()


@pytest.mark.parametrize("encoding", ["none", "onehot", "dct", "rand"])
def test_a_lambda_between_two_of_the_training_has_the_code_between_theirs(encoding):
    model = network(encoding=encoding)
    known = model.encode(model.values)
    if encoding != "none":
        assert torch.equal(known, model.codes)
    between = model.encode(torch.tensor([0.15, 0.7, 0.05]))
    expected = torch.stack([known[1] + known[2], known[4] + known[5], known[0] + known[1]]) / 2
    torch.testing.assert_close(between, expected, atol=1e-6, rtol=1e-5)


def test_lambdas_beyond_the_list_take_the_code_of_the_last():
    model = network(lambdas=[0.2, 0.6])
    assert torch.equal(model.encode(torch.tensor([0.1, 0.9])), model.codes)
    single = network(lambdas=[0.5])
    assert torch.equal(single.encode(torch.tensor([0.1, 0.5])), single.codes.expand(2, -1))


def test_a_conditional_network_without_a_lambda_names_the_view():
    for call in (network(), network().features):
        with pytest.raises(ValueError, match=r"view=at\(lambda\)"):
            call(images())


@pytest.mark.parametrize("lam", [-0.1, 1.0001, float("nan")])
def test_a_lambda_outside_zero_to_one_is_refused_before_the_first_batch(lam):
    with pytest.raises(RangeError, match="lambda is"):
        at(network(), lam=lam)
    with pytest.raises(RangeError, match="lambda is"):
        alike(lam, images())


def test_a_plain_network_has_no_view_at_a_lambda():
    with pytest.raises(Unfit, match="takes no lambda"):
        at(small_cnn(DIGITS, 10, mean=None, std=None), lam=0.5)
    with pytest.raises(ValueError, match="oat_small_cnn"):
        require_conditional(nn.Linear(2, 2), "oat")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"lambdas": [0, 2]}, "model.lambdas is 2"),
        ({"lambdas": [0.1, 0.1]}, "distinct"),
        ({"lambdas": []}, "distinct"),
        ({"code_size": 5}, "model.code_size=6 or more"),
        ({"encoding": "random"}, "none, onehot, dct and rand"),
    ],
)
def test_impossible_lambdas_and_codes_are_refused(changed, message):
    with pytest.raises(ValueError, match=message):
        network(**changed)


def test_a_view_has_the_mode_and_the_weights_of_its_network_inside():
    model = network().eval()
    view = at(model, lam=0.5)
    assert isinstance(view, At) and not view.training
    assert {id(each) for each in view.parameters()} == {id(each) for each in model.parameters()}


@pytest.mark.parametrize("lam", [0.0, 0.05, 1.0])
def test_the_faster_copy_of_a_view_answers_the_same(lam):
    view, x = at(network().eval(), lam=lam), images()
    fast = swift(view, x)
    assert fast is not view
    torch.testing.assert_close(fast(x), view(x), atol=1e-5, rtol=1e-4)


def test_low_precision_keeps_logits_close():
    view, x = at(network().eval(), lam=0.2), images()
    expected = view(x)
    low_precision(view.network)
    assert (view(x) - expected).norm() < 0.05 * expected.norm()


def test_zeros_lead_and_are_as_many_as_the_authors_take():
    lambdas = ascending(LAMBDAS)
    assert leading(lambdas, 128) == 22  # ceil(128 / 6)
    assert leading(lambdas, 128, 0.5) == 64 and leading(lambdas, 3, 0.5) == 2
    assert [leading(lambdas, size) for size in (1, 2, 6, 7)] == [1, 1, 1, 2]
    assert leading((0.1, 1.0), 128) == 0 and leading((0.0,), 5) == 5


def test_other_lambdas_are_drawn_uniformly_from_those_above_zero():
    torch.manual_seed(0)
    model = network()
    condition = drawn(model, 6000)
    assert condition.zeros == 1000 and not condition.lambdas[:1000].any()
    found, counts = condition.lambdas[1000:].unique(return_counts=True)
    torch.testing.assert_close(found, model.values[1:])
    assert (counts - 1000).abs().max() < 120  # 4 standard deviations
    assert drawn(model, 1).zeros == 1 and drawn(model, 1).lambdas.shape == (1,)
    assert drawn(network(lambdas=[0.5, 1]), 7).zeros == 0


def test_lambdas_in_turn_draw_nothing():
    state = torch.get_rng_state()
    condition = in_turn(network(), 12)
    assert condition.zeros == 2
    expected = torch.tensor([0, 0, *2 * LAMBDAS[1:]])
    torch.testing.assert_close(condition.lambdas, expected)
    assert torch.equal(torch.get_rng_state(), state)
    assert in_turn(network(lambdas=[0]), 3).lambdas.tolist() == [0, 0, 0]


def test_statistics_of_both_norms_are_estimated_anew_for_an_average_of_weights():
    model, x = network().eval(), images(12)
    recalibrate(model, [(x, torch.zeros(12))])
    first = norms(model)[0]
    inputs = model.body[0](x)
    torch.testing.assert_close(first.standard.running_mean, inputs[:2].mean((0, 2, 3)))
    torch.testing.assert_close(first.robust.running_mean, inputs[2:].mean((0, 2, 3)))
    assert not model.training and InTurn(model)(x).shape == (12, 10)


def test_only_the_named_norms_go_without_film():
    wide = oat_wide_resnet((3, 8, 8), 10, depth=10, width=1, dropout=0.0, **USUAL)
    bare = [
        name
        for name, part in wide.body.named_modules()
        if isinstance(part, ConditionalNorm) and part.film is None
    ]
    assert bare == ["bn1"]
    with torch.device("meta"):
        deep = oat_resnet34((3, 32, 32), 10, **USUAL)
    films = {
        name: part.film is not None
        for name, part in deep.body.named_modules()
        if isinstance(part, ConditionalNorm)
    }
    assert len(films) == 36 and all(film != ("downsample" in name) for name, film in films.items())

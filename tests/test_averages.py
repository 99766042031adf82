import copy
import io

import pytest
import torch
from torch import nn

from advtrain.averages import Ema, Last, Swa, recalibrate

TAU = 0.9


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(12, 2))


def ema(model: nn.Module, steps: int = 100, **changed) -> Ema:
    usual = {"decay": TAU, "start": 0.0, "ramp": False, "buffers": "averaged"}
    return Ema(model, steps, **{**usual, **changed})


def walk(model: nn.Module, average, count: int) -> list[dict[str, torch.Tensor]]:
    """`count` random changes of weights and statistics, each taken in; returns all states."""
    states = []
    for _ in range(count):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
        model.train()(torch.rand(8, 1, 4, 4))
        average.update(model)
        states.append(copy.deepcopy(model.state_dict()))
    return states


def expected_ema(states, name, taus):
    value = states[0][name].double()
    for state, tau in zip(states[1:], taus, strict=True):
        value = tau * value + (1 - tau) * state[name].double()
    return value


def test_last_is_the_trained_network_itself():
    model = network()
    average = Last(model, 10)
    average.update(model)
    assert average.model is model and average.state_dict() == {}


def test_ema_after_n_steps_is_the_weighted_sum_of_all_weights():
    """sum of tau^(n-k) (1 - tau) w_k, the first with tau^(n-1): seeded by the first update."""
    model = network()
    average = ema(model)
    states = walk(model, average, 12)
    weights = [TAU**11] + [TAU ** (12 - k) * (1 - TAU) for k in range(2, 13)]
    assert sum(weights) == pytest.approx(1)
    for name, value in average.model.state_dict().items():
        if value.is_floating_point():
            closed = sum(w * s[name].double() for w, s in zip(weights, states, strict=True))
            torch.testing.assert_close(value.double(), closed, atol=1e-6, rtol=1e-6)


def test_ema_copies_counts_of_batches():
    model = network()
    average = ema(model)
    walk(model, average, 5)
    assert average.model[1].num_batches_tracked == model[1].num_batches_tracked == 5


def test_ema_takes_buffers_over_when_asked():
    model = network()
    average = ema(model, buffers="copied")
    states = walk(model, average, 4)
    assert torch.equal(average.model[1].running_mean, states[-1]["1.running_mean"])
    weight = expected_ema(states, "0.weight", [TAU] * 3)
    torch.testing.assert_close(average.model[0].weight.double(), weight, atol=1e-6, rtol=1e-6)


def test_ema_copies_during_its_first_share_of_the_run():
    model = network()
    average = ema(model, steps=40, start=0.1)
    states = walk(model, average, 4)
    assert torch.equal(average.model[0].weight, states[-1]["0.weight"])
    states = [states[-1], *walk(model, average, 1)]
    weight = expected_ema(states, "0.weight", [TAU])
    torch.testing.assert_close(average.model[0].weight.double(), weight, atol=1e-6, rtol=1e-6)


def test_ramp_is_the_decay_of_gowal_et_al():
    average = ema(network(), decay=0.995, ramp=True)
    decays = [average._decay_at(t) for t in (0, 1, 10, 100, 1790, 5000)]
    assert decays == pytest.approx([0.1, 0.181818, 0.55, 0.918182, 0.995, 0.995], abs=5e-7)


def test_the_averaged_network_stays_in_evaluation_mode_and_wants_no_gradient():
    model = network()
    for average in (ema(model), Swa(model, 10, start=0.0, every=1)):
        walk(model, average, 2)
        assert not any(module.training for module in average.model.modules())
        assert not any(parameter.requires_grad for parameter in average.model.parameters())
        assert model.training and all(p.requires_grad for p in model.parameters())


def test_swa_is_the_mean_of_the_weights_it_took():
    model = network()
    average = Swa(model, 20, start=0.25, every=3)
    walk(model, average, 5)
    assert average.model is model
    taken = walk(model, average, 9)[::3]
    for name in ("0.weight", "0.bias", "1.weight", "3.weight"):
        mean = torch.stack([state[name] for state in taken]).mean(0)
        torch.testing.assert_close(average.model.state_dict()[name], mean, atol=1e-6, rtol=0)


def test_swa_statistics_are_those_of_the_mean_over_the_batches():
    model = network()
    average = Swa(model, 4, start=0.0, every=1)
    walk(model, average, 4)
    batches = [(torch.rand(16, 1, 4, 4), torch.zeros(16)) for _ in range(3)]
    average.prepare(batches)
    hidden = [average.model[0](x) for x, _ in batches]
    means = torch.stack([h.mean((0, 2, 3)) for h in hidden]).mean(0)
    spreads = torch.stack([h.transpose(0, 1).flatten(1).var(1) for h in hidden]).mean(0)
    torch.testing.assert_close(average.model[1].running_mean, means)
    torch.testing.assert_close(average.model[1].running_var, spreads)
    assert average.model[1].momentum == 0.1 and not average.model.training


def test_swa_recalibrates_once_for_each_change():
    model = network()
    average = Swa(model, 4, start=0.0, every=1)
    walk(model, average, 1)

    def batches():
        passes.append(1)
        yield torch.rand(4, 1, 4, 4), torch.zeros(4)

    passes: list[int] = []
    for _ in range(2):
        average.prepare(batches())
    walk(model, average, 1)
    average.prepare(batches())
    assert len(passes) == 2


def test_recalibration_leaves_networks_without_batch_norm_alone():
    model = nn.Linear(2, 2)
    recalibrate(model, iter(()))
    assert model.training


@pytest.mark.parametrize("make", [ema, lambda m: Swa(m, 12, start=0.5, every=2)])
def test_an_average_resumes_exactly(make):
    model = network()
    average = make(model)
    walk(model, average, 7)
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "average": average.state_dict()}, file)
    walk_on = torch.get_rng_state()
    walk(model, average, 4)

    file.seek(0)
    saved = torch.load(file, weights_only=True)
    other = network()
    other.load_state_dict(saved["model"])
    resumed = make(other)
    resumed.load_state_dict(saved["average"])
    torch.set_rng_state(walk_on)
    walk(other, resumed, 4)
    for ours, theirs in zip(
        average.model.state_dict().values(), resumed.model.state_dict().values(), strict=True
    ):
        assert torch.equal(ours, theirs)

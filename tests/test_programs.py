"""Compiled programs: the same numbers as the plain path, one program for a size, no breaks."""

import copy
import gc
import logging
import shutil
from contextlib import nullcontext
from functools import partial
from typing import Any

import pytest
import torch
from running import TRAINING, run
from torch import Tensor, nn
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.testing import CompileCounter
from torch._inductor.scheduler import Scheduler
from torch.fx.experimental.proxy_tensor import make_fx

from advtrain import optimizers, programs, runs
from advtrain.attacks.adam import adam_pgd
from advtrain.attacks.mim import mim
from advtrain.attacks.objectives import linearity_gap, margin
from advtrain.attacks.pgd import fgsm, pgd, rfgsm
from advtrain.attacks.starts import normal, uniform
from advtrain.averages import Last
from advtrain.conditions import Condition, alike
from advtrain.config import ConfigError
from advtrain.defenses.llr import Llr
from advtrain.defenses.multi_attack import MultiAttack
from advtrain.defenses.oat import Oat
from advtrain.defenses.pgd_at import PgdAt
from advtrain.defenses.trades import Trades
from advtrain.descents.plain import Plain
from advtrain.models.oat import oat_small_cnn
from advtrain.models.resnet import cifar_resnet
from advtrain.models.small import mnist_cnn, small_cnn
from advtrain.models.wide_resnet import wide_resnet
from advtrain.modes import crafting
from advtrain.norms import nuclear_norm
from advtrain.precision import low_precision
from advtrain.programs import compiled, filled
from advtrain.runs import bfloat16, require_able
from advtrain.threat import L1, L2, Linf
from advtrain.training import Method, TrainState, train_step
from advtrain.types import Moment

RAW: dict[str, Any] = {"mean": None, "std": None}
SHAPE = (1, 8, 8)


@pytest.fixture(autouse=True)
def fresh() -> Any:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def plain() -> nn.Module:
    torch.manual_seed(0)
    return small_cnn(SHAPE, 10, **RAW)


def batch(images: int, seed: int = 1) -> tuple[Tensor, Tensor]:
    x = torch.rand(images, *SHAPE, generator=torch.Generator().manual_seed(seed))
    return x, torch.arange(images) % 10


ATTACKS = {
    "linf": partial(pgd, threat=Linf(0.1), steps=3, step_size=0.04),
    "l2": partial(pgd, threat=L2(0.5), steps=3, step_size=0.2, restarts=2),
    "any": partial(pgd, threat=Linf(0.1), steps=2, step_size=0.05, keep="any", objective=margin),
    "mim": partial(mim, threat=Linf(0.1), steps=3, step_size=0.04, decay=1.0),
    "adam": partial(adam_pgd, threat=Linf(0.1), steps=12, step_size=0.02),
    "gap": partial(pgd, threat=Linf(0.1), steps=3, step_size=0.04, objective=linearity_gap),
    "fgsm": partial(fgsm, threat=Linf(0.1)),
    "rfgsm": partial(rfgsm, threat=Linf(0.1), noise_share=0.5),
}


def attacked(name: str, **how: Any) -> list[Tensor]:
    """The points of an attack on a network as it is written, and as it is compiled."""
    model, found = plain(), []
    for each in (model, compiled(copy.deepcopy(model), **how)):
        with crafting(each, "eval"):
            torch.manual_seed(2)
            found.append(ATTACKS[name](each, *batch(12)))
    return found


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_on_a_compiled_network_gives_the_same_images(name: str) -> None:
    slow, fast = attacked(name, backend="eager")
    torch.testing.assert_close(fast, slow, atol=1e-6, rtol=0)
    assert (slow - batch(12)[0]).abs().amax() > 0.05


def moves(index: int) -> dict[str, Any]:
    """Attacks of a radius that grows with `index`."""
    threat, size = Linf(0.1 + 0.01 * index), 0.04 + 0.01 * index
    return {
        "pgd": partial(pgd, threat=threat, steps=3, step_size=size),
        "l2": partial(pgd, threat=L2(0.5 + 0.1 * index), steps=3, step_size=size),
        "l1": partial(pgd, threat=L1(2.0 + index), steps=3, step_size=size),
        "fgsm": partial(fgsm, threat=threat),
        "rfgsm": partial(rfgsm, threat=threat, noise_share=0.5),
    }


@pytest.mark.parametrize("name", moves(0))
@pytest.mark.parametrize("low", [False, True], ids=["fp32", "bf16"])
def test_steps_of_an_attack_are_one_program_whatever_its_radius_and_its_batch(
    name: str, low: bool
) -> None:
    counter = CompileCounter()
    model = compiled(low_precision(plain()) if low else plain(), backend=counter)
    for index, images in enumerate([12, 12, 12, 12, 5, 12]):  # a short one runs as it is
        with crafting(model, "eval"):
            moves(index)[name](model, *batch(images, index))
    assert counter.frame_count == 1


@pytest.mark.parametrize("name", ["mim", "adam"])
def test_what_an_attack_remembers_is_no_part_of_a_program(name: str) -> None:
    counter = CompileCounter()
    model = compiled(plain(), backend=counter)
    with crafting(model, "eval"):
        for index in range(2):
            ATTACKS[name](model, *batch(12, index))
    assert counter.frame_count == 1


class Calls:
    """A backend that counts how often its programs run."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, graph: Any, inputs: Any) -> Any:
        def run(*given: Any) -> Any:
            self.count += 1
            return graph(*given)

        return run


def test_a_loss_of_more_images_than_an_attack_leaves_the_attack_compiled() -> None:
    calls = Calls()
    model = compiled(plain(), backend=calls)
    attacks = {name: ATTACKS["linf"] for name in ("one", "two")}
    defense = MultiAttack(attacks=attacks, rule="avg", seed=0, craft_mode="eval")
    for index in range(3):
        before = calls.count
        with crafting(model, "eval"):
            parcel = defense.craft(model, *batch(8, index), Moment(index, index / 3, index / 4))
        assert calls.count == before + 6
        loss, _ = defense.loss(model.train(), parcel)
        loss.backward()
        assert calls.count == before + 7


def conditional(*, widths: list[float] | None = None) -> nn.Module:
    torch.manual_seed(0)
    keys: dict[str, Any] = {"encoding": "rand", "code_size": 4, "dual": True, "film_offset": 1.0}
    return oat_small_cnn(SHAPE, 10, lambdas=[0, 0.5, 1], widths=widths, **keys)


@pytest.mark.parametrize(
    ("widths", "low", "expected"),
    [
        (None, False, 3),  # a step of the attack, the clean pass, that of attacked images
        (None, True, 3),
        ([0.5, 1.0], False, 8),  # in place of a step a pass, and one for half as many images
    ],
    ids=["fp32", "bf16", "two widths"],
)
def test_once_for_all_training_is_compiled(
    widths: list[float] | None, low: bool, expected: int
) -> None:
    counter, gradients = CompileCounter(), []
    defense = Oat(ATTACKS["linf"], judged_at=[0.0, 1.0])
    model = low_precision(conditional(widths=widths)) if low else conditional(widths=widths)
    fast = compiled(copy.deepcopy(model), backend=counter)
    for index, images in enumerate([12, 12, 7, 12]):
        for network in (model, fast):
            torch.manual_seed(index)
            network.zero_grad()
            with crafting(network, "eval"):
                now = Moment(index, index / 4, index / 5)
                parcel = defense.craft(network, *batch(images, index), now)
            loss, _ = defense.loss(network.train(), parcel)
            loss.backward()
            found = [each.grad for each in network.parameters() if each.grad is not None]
            gradients.append(nn.utils.parameters_to_vector(found))
        assert torch.equal(gradients[-1], gradients[-2])
    assert counter.frame_count == expected


def test_a_conditional_network_is_filled_up_with_its_lambdas() -> None:
    counter, model = CompileCounter(), conditional().eval()
    fast = compiled(copy.deepcopy(model), backend=counter)
    for images in (12, 5, 6, 12, 3):
        x = batch(images)[0]
        each = Condition(torch.linspace(0.2, 1, images), 0)
        for condition in (alike(0, x), alike(0.3, x), alike(1, x), each):
            torch.testing.assert_close(fast(x, condition=condition), model(x, condition))
    assert counter.frame_count == 9  # 12, 6 and 3 images: standard, robust, each its own lambda


def test_a_network_that_is_told_anything_else_says_once_that_it_runs_as_it_is(caplog: Any) -> None:
    class Scaled(nn.Linear):
        def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
            return super().forward(x) * scale

    model = compiled(Scaled(3, 2), backend="eager")
    with caplog.at_level(logging.WARNING, "advtrain"):
        for scale in (2.0, 3.0):
            model(torch.rand(4, 3), scale)
    (told,) = [record.getMessage() for record in caplog.records]
    assert told.startswith("compile: Scaled is called with more than images and lambdas")


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_no_images_are_no_program(training: bool) -> None:
    counter = CompileCounter()
    model = compiled(plain().train(training), backend=counter)
    if not training:  # nor can batch norm do without
        assert model(batch(0)[0]).shape == (0, 10)
    assert fgsm(model, *batch(0), threat=Linf(0.1)).shape == (0, *SHAPE)
    assert counter.frame_count == 0


def test_networks_of_one_process_do_not_use_up_each_others_programs(monkeypatch: Any) -> None:
    counts = []
    monkeypatch.setattr(programs, "PROGRAMS", 2)
    with torch._dynamo.config.patch(recompile_limit=2):
        for side in range(8, 12):
            counter = CompileCounter()
            model = compiled(small_cnn((1, side, side), 10, **RAW).eval(), backend=counter)
            model(torch.rand(4, 1, side, side))
            counts.append(counter.frame_count)
            del model
    assert counts == [1] * 4


def test_a_finished_job_leaves_no_compiled_network(tmp_path: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(runs, "compiled", partial(compiled, backend="eager"))
    given = (*TRAINING[:-1], "eval=quick", "compile=true")
    assert run(tmp_path, *given)["exit_code"] == 0
    gc.collect()
    assert not programs._alive


NETWORKS = {
    "mnist_cnn": (mnist_cnn, (1, 8, 8), {}),
    "resnet": (cifar_resnet, (3, 8, 8), {"depth": 8}),
    "wide": (
        wide_resnet,
        (3, 8, 8),
        {"depth": 10, "width": 1, "dropout": 0, "initialisation": "he"},
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_here_compile_whole_with_a_step_around_them(name: str, caplog: Any) -> None:
    make, shape, more = NETWORKS[name]
    model = compiled(low_precision(make(shape, 10, **more, **RAW)), backend="eager")
    x, y = torch.rand(4, *shape), torch.arange(4)
    with caplog.at_level(logging.WARNING, "advtrain"), crafting(model, "eval"):
        ATTACKS["linf"](model, x, y)
    assert not caplog.records


def trained(model: nn.Module, defense: Any) -> nn.Module:
    optimizer = optimizers.sgd(
        model.parameters(),
        lr=0.05,
        momentum=0.9,
        weight_decay=5e-4,
        nesterov=True,
        no_decay_on_norm=False,
    )
    state = TrainState(model.train(), optimizer, Last(model, 1), defense)
    method = Method(Plain(None), {}, {}, seed=0)
    place = next(model.parameters()).device
    for index, images in enumerate([16, 16, 7, 16]):
        torch.manual_seed(index)
        now = Moment(index, index / 3, index / 4)
        x, y = batch(images, index)
        train_step(state, x.to(place), y.to(place), now, method)
    return model


def methods() -> dict[str, Any]:
    return {
        "pgd_at": PgdAt(ATTACKS["linf"], "eval"),
        "in training mode": PgdAt(ATTACKS["linf"], "train"),
        "trades": Trades(ATTACKS["linf"], normal(std=0.001), beta=6.0),
        "mim": PgdAt(ATTACKS["mim"], "eval"),
        "llr": Llr(ATTACKS["adam"], linearity_gap, uniform, 1.0, 4.0, 3.0),
        "oat": Oat(ATTACKS["linf"], judged_at=[0.0, 1.0]),
    }


def network(name: str) -> nn.Module:
    return conditional() if name == "oat" else plain()


@pytest.mark.parametrize("name", methods())
def test_compiled_training_ends_with_the_weights_of_plain_training(name: str) -> None:
    counter = CompileCounter()
    slow = trained(network(name), methods()[name])
    fast = trained(compiled(network(name), backend=counter), methods()[name])
    for mine, theirs in zip(fast.state_dict().values(), slow.state_dict().values(), strict=True):
        assert torch.equal(mine, theirs)  # the same operations, traced
    # a step of the attack, the loss, clean logits; none for the short minibatch of 7
    assert counter.frame_count <= 4


def test_evaluation_fills_batches_up_to_sizes_that_are_there() -> None:
    counter, model = CompileCounter(), plain().eval()
    fast = compiled(copy.deepcopy(model), backend=counter)
    for images in (16, 5, 8, 9, 16, 3, 7):
        x = batch(images)[0].requires_grad_()
        logits = fast(x)
        (gradient,) = torch.autograd.grad(logits.square().sum(), x)
        expected = model(x)
        (other,) = torch.autograd.grad(expected.square().sum(), x)
        torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(gradient, other, atol=1e-5, rtol=1e-4)
    assert counter.frame_count == 3  # of 16, 8 and 4 images
    assert filled(x, 9).shape == (9, *SHAPE) and filled(x, 7) is x


class Overwriting:
    """A backend that treats memory as CUDA graphs do, on a processor.

    What programs returned is lost when the next one begins, unless a backward pass is due.
    """

    def __init__(self) -> None:
        self.returned: list[Tensor] = []
        self.due = False

    def __call__(self, graph: Any, inputs: Any, mode: str) -> Any:
        assert mode == "reduce-overhead"
        backward, inference = partial(self._program, begins=False), partial(self._program)
        forward = partial(self._program, due=True)
        return aot_autograd(
            fw_compiler=forward, bw_compiler=backward, inference_compiler=inference
        )(graph, inputs)

    def _program(self, graph: Any, inputs: Any, *, begins: bool = True, due: bool = False) -> Any:
        def run(given: list[Any]) -> Any:
            if begins and not self.due:
                for each in self.returned:
                    each.data.fill_(torch.nan if each.is_floating_point() else 1)
                self.returned = []
            self.due = due
            found = graph(*given)
            theirs = {each.untyped_storage().data_ptr() for each in given if torch.is_tensor(each)}
            self.returned += [
                each
                for each in found
                if torch.is_tensor(each) and each.untyped_storage().data_ptr() not in theirs
            ]
            given.clear()
            return found

        run._boxed_call = True  # type: ignore[attr-defined]
        return run


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_keeps_nothing_that_a_graph_overwrites(name: str) -> None:
    slow, fast = attacked(name, backend=Overwriting(), graphs=True)
    torch.testing.assert_close(fast, slow, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", ["trades", "llr", "oat"])
def test_a_training_keeps_nothing_that_a_graph_overwrites(name: str) -> None:
    fast = compiled(network(name), backend=Overwriting(), graphs=True)
    ends = [trained(model, methods()[name]) for model in (network(name), fast)]
    assert apart(*ends) < 1e-6


def test_eigenvalues_which_no_graph_can_hold_stand_between_graphs(monkeypatch: Any) -> None:
    reasons: dict[str, str] = {}

    def noted(self: Any, node: Any) -> Any:
        reasons[str(getattr(node.node, "op_overload", None))] = why = judged(self, node)
        return why

    judged = Scheduler.should_partition
    monkeypatch.setattr(Scheduler, "should_partition", noted)
    a = torch.rand(7, 5, dtype=torch.float64)
    inside = {str(node.target) for node in make_fx(nuclear_norm)(a).graph.nodes}
    (decomposition,) = [name for name in inside if "linalg" in name]
    fresh = torch._inductor.config.patch(custom_should_partition_ops=[], fx_graph_cache=False)
    with fresh, torch._functorch.config.patch(enable_autograd_cache=False):
        compiled(plain(), graphs=True)
        torch.compile(torch.linalg.eigh, mode="reduce-overhead")(a.mT @ a)
    assert reasons[decomposition].startswith("custom partition op")


def refusing(graph: Any, inputs: Any) -> Any:
    raise RuntimeError("no code for this machine\nand more")


def test_what_does_not_compile_is_told_by_name_and_runs_as_it_is(caplog: Any) -> None:
    model = plain()
    fast = compiled(copy.deepcopy(model), backend=refusing)
    with caplog.at_level(logging.WARNING, "advtrain"):
        for _ in range(2):
            assert torch.equal(fast.eval()(batch(4)[0]), model.eval()(batch(4)[0]))
            with crafting(fast, "eval"), crafting(model, "eval"):
                torch.manual_seed(0)
                found = ATTACKS["linf"](fast, *batch(4))
                torch.manual_seed(0)
                assert torch.equal(found, ATTACKS["linf"](model, *batch(4)))
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 2 and "no code for this machine" in told[0]
    assert told[0].startswith("compile: Network does not compile")
    assert told[1].startswith("compile: ascend around Network does not compile")


def test_a_backward_pass_that_does_not_compile_is_told_before_it_is_asked_for(caplog: Any) -> None:
    backend = aot_autograd(fw_compiler=lambda graph, inputs: graph.forward, bw_compiler=refusing)
    model = compiled(plain().eval(), backend=backend)
    x = batch(4)[0].requires_grad_()
    with caplog.at_level(logging.WARNING, "advtrain"):
        torch.autograd.grad(model(x).sum(), x)
    assert len(caplog.records) == 1


def test_errors_of_the_network_stay_its_own() -> None:
    model = compiled(plain(), backend="eager")
    with pytest.raises(ValueError, match="it takes"):
        model(torch.rand(2, 3, 8, 8))


def test_graphs_are_for_cuda(tmp_path: Any, capfd: Any) -> None:
    found = run(tmp_path / "out", *TRAINING, "compile=reduce-overhead")
    assert found["exit_code"] == 2
    assert "compile=reduce-overhead" in capfd.readouterr().err


def test_a_gpu_without_units_for_bfloat16_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Old One")
    monkeypatch.setattr(torch.cuda, "device", nullcontext)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    with pytest.raises(ConfigError, match="precision=bf16: Old One has no units for bfloat16"):
        require_able(torch.device("cuda"), "bf16", False)
    require_able(torch.device("cuda"), "fp32", "reduce-overhead")


def test_a_processor_without_units_for_bfloat16_is_told(monkeypatch: Any, caplog: Any) -> None:
    with caplog.at_level(logging.WARNING, "advtrain"):
        for found in ({"amx_bf16": True}, {"avx2": True, "avx512_bf16": False}):
            monkeypatch.setattr(torch.cpu, "get_capabilities", lambda found=found: found)
            require_able(torch.device("cpu"), "bf16", True)
        require_able(torch.device("cpu"), "fp32", True)
    (told,) = [record.getMessage() for record in caplog.records]
    assert told.startswith("precision=bf16: this processor has no units")


@pytest.mark.parametrize("units", [False, True])
def test_before_torch_tells_of_all_processors_units_of_x86_are_asked(
    units: bool, monkeypatch: Any
) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: units, raising=False)
    assert bfloat16(torch.device("cpu")) is units


def apart(model: nn.Module, other: nn.Module) -> float:
    """The distance of the weights of two networks, over their length."""
    mine, theirs = (nn.utils.parameters_to_vector(e.parameters()).detach() for e in (model, other))
    return float((mine - theirs).norm() / mine.norm())


def require_near(ends: list[nn.Module], start: nn.Module, *, share: float) -> None:
    """Two trainings from `start` end at the same weights, but for that share of the way.

    In bfloat16 plain and compiled steps round at other places, and are apart by as much as each is
    from float32, a sixth of the way.
    """
    way = apart(start, ends[0])
    assert way > 0.02 and apart(*ends) <= share * way


def first_gradient(model: nn.Module) -> tuple[Tensor, Tensor]:
    """Logits of a minibatch, and the gradient of its loss to all weights."""
    place = next(model.parameters()).device
    x, y = (each.to(place) for each in batch(16))
    logits = model.train()(x)
    nn.functional.cross_entropy(logits, y).backward()
    gradients = [each.grad for each in model.parameters() if each.grad is not None]
    return logits.detach(), nn.utils.parameters_to_vector(gradients)


def require_low(backend: str, device: str) -> None:
    """Compiled bfloat16 has the numbers of plain bfloat16, and not those of float32."""
    full, low, fast = (model.to(device) for model in (plain(), plain(), plain()))
    fast = compiled(low_precision(fast), backend=backend)
    for exact, mine, theirs in zip(
        first_gradient(full), first_gradient(low_precision(low)), first_gradient(fast), strict=True
    ):
        assert (theirs - mine).norm() < 0.5 * (exact - mine).norm()


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_programs_of_bfloat16_compute_in_it(backend: str) -> None:
    if backend == "inductor" and shutil.which("g++") is None:
        pytest.skip("no compiler for C++")
    require_low(backend, "cpu")


@pytest.mark.skipif(shutil.which("g++") is None, reason="no compiler for C++")
def test_compiled_code_trains_to_nearly_the_same_weights() -> None:
    ends = [trained(model, methods()["pgd_at"]) for model in (plain(), compiled(plain()))]
    require_near(ends, plain(), share=1e-3)


@pytest.mark.slow
def test_a_run_compiles_from_start_to_end(tmp_path: Any, capfd: Any) -> None:
    given = (*TRAINING[:-1], "model=small_cnn", "eval=quick", "compile=true")
    assert run(tmp_path / "out", *given)["exit_code"] == 0
    assert "does not compile" not in capfd.readouterr().err


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["pgd_at", "mim", "trades", "llr", "oat"])
def test_on_a_gpu_graphs_train_to_nearly_the_same_weights(name: str, caplog: Any) -> None:
    fast = compiled(network(name).cuda(), graphs=True)
    ends = [trained(model, methods()[name]) for model in (network(name).cuda(), fast)]
    assert not caplog.records and torch._dynamo.utils.counters["frames"]["ok"]
    require_near([each.cpu() for each in ends], network(name), share=0.01)


@pytest.mark.gpu
@pytest.mark.parametrize("low", [False, True], ids=["fp32", "bf16"])
def test_on_a_gpu_compiled_training_ends_near_plain_training(low: bool, caplog: Any) -> None:
    ends = []
    for fast in (False, True):
        model = (low_precision(plain()) if low else plain()).cuda()
        ends.append(trained(compiled(model) if fast else model, methods()["pgd_at"]))
    assert not caplog.records and torch._dynamo.utils.counters["frames"]["ok"]
    require_near([each.cpu() for each in ends], plain(), share=0.25 if low else 0.01)


@pytest.mark.gpu
def test_on_a_gpu_programs_of_bfloat16_compute_in_it() -> None:
    require_low("inductor", "cuda")

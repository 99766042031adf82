"""Where memory runs out: passes in halves, with the same verdicts; or a sentence."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from running import DATA, FITTING, run
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from advtrain import averaged, footprint
from advtrain.attacks.apgd import apgd
from advtrain.attacks.gama import gama_pgd
from advtrain.attacks.objectives import guided
from advtrain.attacks.pgd import pgd
from advtrain.attacks.square import square
from advtrain.certification.smoothing import Smoothed
from advtrain.evaluation import Subject, judge
from advtrain.footprint import largest
from advtrain.models.views import mean_of
from advtrain.norms import nuclear_norm
from advtrain.portions import Room, TooLarge, out_of_memory
from advtrain.seeding import stream
from advtrain.threat import Linf

BOX = Linf(0.05)
HERE = torch.device("cpu")


class Narrow(torch.autograd.Function):
    """The identity, whose backward pass has room for so many images."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, most: int) -> Tensor:
        ctx.most = most
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        if len(gradient) > ctx.most:
            raise RuntimeError(
                "[enforce fail] DefaultCPUAllocator: can't allocate memory: 12 bytes"
            )
        return gradient, None


class Small(nn.Module):
    """A network with room for `forth` images on the way forth, and for `back` on the way back."""

    limits: ClassVar[dict[str, int]] = {"forth": 10**6, "back": 10**6}

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
        self.asked: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.asked.append(len(x))
        if len(x) > self.limits["forth"]:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        logits: Tensor = self.layer(Narrow.apply(x, self.limits["back"]))
        return logits


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch) -> Any:
    def limit(**most: int) -> None:
        monkeypatch.setattr(Small, "limits", {"forth": 10**6, "back": 10**6} | most)

    return limit


def batch() -> tuple[Tensor, Tensor]:
    """Images, and what the network says of them where it has room."""
    x = torch.rand(24, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    return x, Small().layer(x).argmax(1)


COUPLED = guided(distance=nuclear_norm, weight=4.5)  # the images of a batch hang together
ATTACKS = {
    "pgd": partial(pgd, threat=BOX, steps=3, step_size=0.02, restarts=2, keep="any"),
    "apgd": partial(apgd, threat=BOX, steps=5),
    "gama": partial(gama_pgd, threat=BOX, steps=4, weight=5),
    "nuclear": partial(pgd, threat=BOX, steps=3, step_size=0.02, objective=COUPLED),
    "square": partial(square, threat=BOX, queries=20),
}


def judged(attack: Any, room: Room) -> tuple[Any, Small]:
    (x, y), model = batch(), Small().eval()
    clean = torch.ones_like(y, dtype=torch.bool)
    with stream(HERE, 0, "row"):
        found = judge(
            Subject(model, model, room), x, y, attack, BOX, key="", at=tuple(range(24)), clean=clean
        )
    return replace(found, seconds=0.0), model


@pytest.mark.parametrize("limit", [{"forth": 7}, {"back": 7}], ids=["forth", "back"])
@pytest.mark.parametrize("name", ATTACKS)
def test_verdicts_in_halves_are_those_of_the_whole(name: str, limit: Any, limits: Any) -> None:
    whole, _ = judged(ATTACKS[name], Room())
    limits(**limit)
    room = Room()
    halves, model = judged(ATTACKS[name], room)
    assert halves == whole and {*whole.robust} == {"0", "1"}
    if name == "square" and "back" in limit:  # it takes no gradient
        assert room.size is None
    else:
        assert room.size == 6 and max(model.asked[-4:]) == 6


def test_the_next_batch_begins_with_what_is_known_to_fit(limits: Any) -> None:
    limits(back=7)
    room = Room()
    judged(ATTACKS["pgd"], room)
    _, model = judged(ATTACKS["pgd"], room)
    assert max(model.asked) == 6


def test_a_portion_keeps_nothing_of_its_forward_pass() -> None:
    x = batch()[0].requires_grad_()
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda saved: kept.append(saved) or saved, lambda saved: saved
    ):
        Room(6).ask(Small().requires_grad_(False), x)
    rows = [len(saved) for saved in kept if saved.numel()]  # torch 2.11 keeps empty ones besides
    assert rows == [6] * 4


def test_one_image_too_many_is_told_and_other_errors_pass(limits: Any) -> None:
    limits(forth=0)
    with pytest.raises(TooLarge, match=r"one image of shape \(1, 8, 8\) is too large"):
        judged(ATTACKS["pgd"], Room())

    def broken() -> None:
        raise RuntimeError("shapes do not fit")

    with pytest.raises(RuntimeError, match="shapes do not fit"):
        Room().within(broken, torch.rand(2, 3))
    assert not out_of_memory(RuntimeError("shapes")) and out_of_memory(MemoryError())
    for told in (
        "CUDA error: out of memory",
        "Triton Error [CUDA]: out of memory",
        "CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
    ):
        assert out_of_memory(RuntimeError(told))


def test_certificates_in_halves_are_those_of_the_whole(limits: Any) -> None:
    (x, _), model, room = batch(), Small().eval(), Room()
    given = {"n0": 20, "n": 300, "alpha": 0.01, "seeds": range(4)}
    whole = Smoothed(model, 10, 0.25, 100).certify(x[:4], **given)
    limits(forth=30)
    halves = Smoothed(model, 10, 0.25, 100, room=room).certify(x[:4], **given)
    assert room.size == 20 and (whole[1] > 0).any()
    assert all(torch.equal(a, b) for a, b in zip(whole, halves, strict=True))


class Cramped(TorchDispatchMode):
    """Inside, a buffer has room for so many images, and a draw fails where it is the `fails`-th."""

    def __init__(self, images: int, fails: int) -> None:
        super().__init__()
        self.images, self.fails = images, fails

    def __torch_dispatch__(self, call: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if call is torch.ops.aten.new_empty.default and args[1][0] > self.images:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        if call is torch.ops.aten.normal_.default:
            self.fails -= 1
            if self.fails == 0:
                raise torch.OutOfMemoryError("CUDA out of memory.")
        return call(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("images", "fails", "size"), [(800, 0, 600), (10**6, 4, 600), (600, 3, 300)]
)
def test_noise_of_certificates_in_halves_is_that_of_the_whole(
    images: int, fails: int, size: int
) -> None:
    (x, _), model, room = batch(), Small().eval(), Room()
    given = {"n": 900, "seeds": range(4)}  # two blocks for each image
    whole = Smoothed(model, 10, 0.25, 1200).counts(x[:4], **given)
    with Cramped(images, fails):
        halves = Smoothed(model, 10, 0.25, 1200, room=room).counts(x[:4], **given)
    assert torch.equal(whole, halves) and room.size == size
    model.asked.clear()
    Smoothed(model, 10, 0.25, 1200, room=room).counts(x[:4], **given)
    assert max(model.asked) == size  # what is known to fit


OF_SMALL = ("model=custom", "model.factory=test_portions.made", "scale=smoke", *DATA[:3])


def made(shape: Any, classes: int) -> nn.Module:
    return Small()


def results(directory: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((directory / "results.json").read_text())
    return found


def test_a_run_goes_on_in_halves_and_says_so(tmp_path: Path, limits: Any, capfd: Any) -> None:
    given = (*FITTING, *OF_SMALL, "attack.steps=2", "eval=quick", "epochs=1", "batch_size=12")
    limits(back=15)
    assert run(tmp_path / "halves", *given)["exit_code"] == 0
    assert results(tmp_path / "halves")["environment"]["portion"] == 10
    limits(back=0)
    capfd.readouterr()
    failed = run(tmp_path / "none", *given)
    told = capfd.readouterr().err
    assert failed["exit_code"] == 1 and failed["state"] == "failed"
    assert "a training step of 12 images is too large" in told and "Traceback" not in told


def test_auto_is_a_number_that_a_continued_run_keeps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = (*FITTING[:-1], *DATA, "attack.steps=2", "eval=quick", "dataset.train_size=400")
    auto = ("batch_size=auto", "eval.batch_size=auto")
    assert run(tmp_path / "out", *given, *auto, "epochs=1")["exit_code"] == 0
    config = results(tmp_path / "out")["config"]
    assert config["batch_size"] == 16 and config["eval"]["batch_size"] == 1024
    monkeypatch.setattr(footprint, "free", lambda device: 0)
    again = run(tmp_path / "out", *given, "batch_size=auto", "eval=none", "epochs=1")
    assert again["exit_code"] == 0
    none = run(tmp_path / "none", *given, *auto, "epochs=1")
    assert none["exit_code"] == 1 and "2 images are too large" in none["error"]


def test_on_a_processor_what_an_image_takes_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    def step(images: int) -> None:
        x = torch.rand(images, 1000, requires_grad=True)
        (x * 2).exp().sin().sum().backward()  # five times x at the height

    monkeypatch.setattr(footprint, "free", lambda device: 2 * 20_000 * 100)
    assert largest(step, 1024, HERE, key="batch_size") == 64
    assert largest(step, 32, HERE, key="batch_size") == 32
    assert largest(step, 1024, HERE, key="batch_size", processes=4) == 16
    monkeypatch.setattr(footprint, "free", lambda device: 20_000)
    with pytest.raises(TooLarge, match="batch_size=auto: one image"):
        largest(step, 32, HERE, key="batch_size")


def test_on_cuda_batches_are_tried_until_they_do_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[int] = []
    device, height = torch.device("cuda"), [0]

    def step(images: int) -> None:
        tried.append(images)
        height[0] = 10 * images
        if images > limit:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(footprint, "free", lambda device: 1000)
    monkeypatch.setattr(footprint, "release", lambda device: None)
    for name, value in {
        "memory_allocated": lambda device: 0,
        "reset_peak_memory_stats": lambda device: None,
        "max_memory_allocated": lambda device: height[0],
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    limit = 40
    assert largest(step, 1024, device, key="batch_size") == 32 and tried[-1] == 64
    limit = 1000
    assert largest(step, 1024, device, key="batch_size") == 64  # 80 % of the memory, and no more
    limit = 0
    with pytest.raises(TooLarge, match="one image"):
        largest(step, 1024, device, key="batch_size")


@pytest.mark.gpu
def test_on_a_gpu_a_batch_that_does_not_fit_is_halved_and_memory_is_free_again() -> None:
    device = torch.device("cuda")

    def step(images: int) -> None:
        torch.empty(images, 2**30, dtype=torch.uint8, device=device)

    free = torch.cuda.mem_get_info()[0]
    found = largest(step, 2**20, device, key="batch_size")
    assert found * 2**30 <= free < 4 * found * 2**30
    assert torch.cuda.mem_get_info()[0] >= free - 2**28

    class Heavy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            torch.empty(len(x), free // 10, dtype=torch.uint8, device=device)
            return x.flatten(1)[:, :10]

    room = Room()
    assert room.ask(Heavy(), torch.rand(64, 16, device=device)).shape == (64, 10)
    assert room.size is not None and room.size <= 8


class Drawing(Small):
    """Says that it draws for each row; so draws go through it side by side."""

    stochastic = True


@pytest.mark.parametrize("limit", [{"forth": 100}, {"back": 100}], ids=["forth", "back"])
def test_of_several_draws_rows_are_halved_and_not_images(
    limit: Any, limits: Any, caplog: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(averaged, "AT_ONCE", 144)  # six draws of 24 images
    (x, y), room, model = batch(), Room(), Drawing().eval()
    attack = partial(pgd, threat=BOX, steps=2, step_size=0.02)
    at, clean = tuple(range(24)), torch.ones_like(y, dtype=torch.bool)

    def verdicts() -> Any:
        mean = mean_of(model, draws=20)
        with stream(HERE, 0, "row"):
            found = judge(Subject(mean, mean, room), x, y, attack, BOX, key="", at=at, clean=clean)
        return replace(found, seconds=0.0)

    whole = verdicts()
    assert max(model.asked) == 144 and room.size is None
    limits(**limit)
    model.asked.clear()
    assert verdicts() == whole
    assert room.size == 72 and max(model.asked[-9:]) == 72
    assert [each.args[1:] for each in caplog.records] == [(144, 72)]


def test_portions_of_certificates_are_told_and_kept_by_a_run_that_goes_on(
    tmp_path: Path, limits: Any, no_report: None
) -> None:
    noisy = ("eval.certify.n=30", "eval.certify.n0=5", "eval.certify.alpha=0.01")
    given = (*FITTING, *OF_SMALL, "attack.steps=2", "eval=certify", "epochs=1", *noisy)
    limits(forth=25)
    assert run(tmp_path, *given, "eval.certify.batch_size=60")["exit_code"] == 0
    assert results(tmp_path)["environment"]["portion"] == 25
    limits()
    assert run(tmp_path, *given)["exit_code"] == 0
    assert results(tmp_path)["environment"]["portion"] == 25
    assert run(tmp_path, *given, "resume=false")["exit_code"] == 0
    assert results(tmp_path)["environment"]["portion"] is None


def test_memory_of_an_attack_itself_asks_for_a_smaller_batch() -> None:
    def greedy(model: Any, x: Tensor, y: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    with pytest.raises(TooLarge, match=r"beside a batch of 24.*smaller eval\.batch_size"):
        judged(greedy, Room())


@pytest.mark.parametrize(("free", "is_memory"), [(5, True), (50, False)])
def test_without_an_engine_of_cudnn_memory_ran_out_if_there_is_little(
    free: int, is_memory: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = "GET was unable to find an engine to execute this computation"
    assert not out_of_memory(RuntimeError(told))  # no device is in use
    for name, value in {
        "is_initialized": lambda: True,
        "device_count": lambda: 2,
        "memory_reserved": lambda device: device,
        "mem_get_info": lambda device: (free, 100) if device else (0, 100),  # 0: not ours
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    assert out_of_memory(RuntimeError(told)) is is_memory
    assert not out_of_memory(RuntimeError("shapes do not fit"))


def test_attacks_on_certificates_in_halves_are_those_of_the_whole(
    tmp_path: Path, limits: Any, no_report: None
) -> None:
    noisy = ("eval.certify.n=100", "eval.certify.n0=5", "eval.certify.attack_draws=20")
    given = (*FITTING, *OF_SMALL, "attack.steps=2", "epochs=1", "scale.steps=2", *noisy)
    attempts = []
    for place, limit in (("whole", {}), ("halves", {"back": 15})):
        limits(**limit)
        if limit:  # of the same weights
            source = ("job=eval", f"checkpoint={tmp_path / 'whole'}", "batch_size=15")
            assert run(tmp_path / place, *given, *source, "eval=soundness")["exit_code"] == 0
            assert results(tmp_path / place)["environment"]["portion"] == 10
        else:
            assert run(tmp_path / place, *given, "eval=soundness")["exit_code"] == 0
        lines = (tmp_path / place / "soundness.tsv").read_text().splitlines()[1:]
        attempts.append([line.rpartition("\t")[0].split("\t") for line in lines])
    whole, halves = attempts
    assert len(whole) == len(halves) > 0
    for one, other in zip(whole, halves, strict=True):
        assert one[:4] == other[:4] and one[5] == other[5]
        assert float(one[4]) == pytest.approx(float(other[4]), rel=1e-3)

"""The benchmark counts passes rightly, and its command writes the table that it promises."""

import json
import shlex
import subprocess
import sys
from argparse import Namespace
from functools import partial
from pathlib import Path
from statistics import NormalDist
from typing import Any, ClassVar

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter

sys.path.append(str(Path(__file__).parents[1] / "scripts"))

import bench_attacks
import bench_certification
import bench_gpu
import bench_lwta
import bench_peers
import bench_released
import bench_runner
import bench_subject
import bench_sweeps
import bench_training
import benchmark

from advtrain import programs, runs
from advtrain.data import readers
from advtrain.models import lwta
from advtrain.precision import full_precision, low_precision


@pytest.fixture
def counter(monkeypatch: Any) -> Any:
    """Counts the graphs of networks that scripts compile, which then run as traced."""
    torch._dynamo.reset()
    counted = CompileCounter()
    monkeypatch.setattr(benchmark, "compiled", partial(programs.compiled, backend=counted))
    yield counted
    torch._dynamo.reset()


def rows_of(out: str) -> list[list[str]]:
    """Cells of the rows of a table in Markdown, without its head."""
    rows = [line.strip("| ").split(" | ") for line in out.splitlines() if line.startswith("|")]
    return rows[2:]


def net() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(4, 3)).eval()


def test_a_tape_holds_each_pass_and_whether_a_gradient_was_taken() -> None:
    tape, x = benchmark.Tape(net()), torch.rand(5, 1, 2, 2)
    leaf = x.clone().requires_grad_()
    torch.autograd.grad(tape(leaf).sum(), leaf)
    tape(leaf)
    with torch.no_grad():
        benchmark.Taped(tape)(x[:2])
    assert tape.passes() == [(5, True, "fp32"), (5, False, "fp32"), (2, False, "fp32")]
    assert [made.units for made in tape.passes()] == [10, 5, 2]


def test_a_tape_holds_in_what_precision_a_pass_is() -> None:
    tape = benchmark.Tape(low_precision(nn.Sequential(*net(), nn.Linear(3, 3))))
    tape(torch.rand(5, 1, 2, 2))
    with full_precision(tape.model):
        tape(torch.rand(5, 1, 2, 2))
    assert [made.precision for made in tape.passes()] == ["bf16", "fp32"]


def test_the_limit_makes_these_passes_again_and_no_others() -> None:
    passes = [benchmark.Pass(3, True), benchmark.Pass(5, False), benchmark.Pass(8, True)]
    model = net()
    seen: list[tuple[int, bool]] = []
    model.register_forward_hook(
        lambda module, given, logits: seen.append((len(logits), logits.requires_grad))
    )
    benchmark.limit(model, torch.rand(5, 1, 2, 2), [*passes, benchmark.Pass(0, True)])()
    assert seen == [made[:2] for made in passes]
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


def test_contestants_run_equally_often_and_ratios_are_taken_within_rounds() -> None:
    calls: list[str] = []
    runs = {name: lambda name=name: calls.append(name) for name in "ab"}
    found = benchmark.interleaved(runs, rounds=3, clock="wall", device=torch.device("cpu"))
    assert {name: len(seconds) for name, seconds in found.items()} == {"a": 3, "b": 3}
    assert set(calls) == {"a", "b"}
    assert benchmark.ratio([2.0, 9.0, 4.0], [1.0, 3.0, 4.0]) == (2.0, 1.0, 3.0)


def test_the_command_prints_a_row_for_the_limit_and_for_each_contestant(
    monkeypatch: Any, capsys: Any
) -> None:
    kind = bench_subject.KINDS["mnist_cnn"]._replace(updates=2)
    monkeypatch.setitem(bench_subject.KINDS, "mnist_cnn", kind)
    monkeypatch.setattr(benchmark, "SHORTEST", 1e-9)
    monkeypatch.setitem(bench_attacks.PEERS, "foolbox", lambda attack, model, settings: None)
    monkeypatch.setattr(
        bench_attacks, "installed", lambda peer: "1.0" if peer == "foolbox" else None
    )
    options = "--attacks fgsm,pgd,pgd_l2,mim,apgd --batch 6 --steps 2 --rounds 2 --markdown"
    bench_attacks.main([*options.split(), "--peers", "foolbox,art"])
    out = capsys.readouterr().out
    assert "skipped: art is not installed" in out and "foolbox 1.0" in out
    table = {(row[0], row[1]): row[2:] for row in rows_of(out)}
    assert len(table) == 15 and table["fgsm", "limit"][2] == "1.00 (1.00 to 1.00)"
    assert table["fgsm", "ours"][0] == "1/1" and table["pgd", "ours, as is"][0] == "2/2"
    assert all(cells[-1] == "0" for (_, name), cells in table.items() if name == "ours")


@pytest.mark.parametrize(
    "options, told",
    [
        ("--attacks pgt", "'pgt'; allowed are fgsm, pgd"),
        ("--rounds 0", "'0'; allowed is a whole number from 1"),
        ("--clock cpu --threads 2", "Use --clock wall"),
    ],
)
def test_wrong_options_are_refused(options: str, told: str, capsys: Any) -> None:
    with pytest.raises(SystemExit):
        bench_attacks.main(options.split())
    assert told in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore")  # the peers' own, at import
@pytest.mark.parametrize("peer", bench_peers.PEERS)
def test_peers_that_are_installed_run(peer: str) -> None:
    if bench_peers.installed(peer) is None:
        pytest.skip(f"{peer} is not installed")
    settings = bench_peers.Settings(0.1, 2, 0.05, 6)
    given = torch.rand(6, 1, 2, 2), torch.arange(6) % 3
    attacks = ["apgd"] if peer == "pyautoattack" else ["fgsm", "pgd", "pgd_l2", "mim"]
    for attack in attacks:
        model = nn.Sequential(nn.Flatten(), nn.Linear(4, 10)).eval()
        run = bench_peers.PEERS[peer](attack, model, settings)
        assert run is not None and run(*given).shape == given[0].shape


CORE = """
import torch
from scipy.stats import norm, binom_test
from statsmodels.stats.proportion import proportion_confint

class Smooth:
    def __init__(self, model, classes, sigma):
        self.model = model

    def certify(self, x, n0, n, alpha, batch):
        assert torch.zeros(1, device='cuda').device.type == "cpu"
        return 3, norm.ppf(proportion_confint(n, n, alpha=2 * alpha, method="beta")[0])
"""


def test_certificates_are_timed_beside_the_bare_loop_and_the_published_code(
    tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    (tmp_path / "core.py").write_text(CORE)
    kind = bench_subject.KINDS["mnist_cnn"]._replace(updates=2)
    monkeypatch.setitem(bench_subject.KINDS, "mnist_cnn", kind)
    monkeypatch.setattr(benchmark, "SHORTEST", 1e-9)
    monkeypatch.setattr(bench_certification, "installed", lambda peer: None)
    options = "--images 3 --n0 5 --n 40 --batch 16 --rounds 2 --markdown --cohen"
    bench_certification.main([*options.split(), str(tmp_path / "core.py")])
    out = capsys.readouterr().out
    assert "skipped: art is not installed" in out and "skipped: cohen" not in out
    bare, ours, cohen = rows_of(out)
    assert [bare[0], ours[0], cohen[0]] == ["bare loop", "ours", "cohen"]
    assert bare[3] == "1.00 (1.00 to 1.00)"
    assert cohen[4] == f"3, {NormalDist().inv_cdf(0.001 ** (1 / 40)):.3f}"


def test_the_bare_loop_asks_about_as_many_images_in_full_batches() -> None:
    sizes: list[int] = []
    model = net()
    model.register_forward_hook(lambda module, given, logits: sizes.append(len(logits)))
    given = bench_subject.Subject(model, torch.rand(2, 1, 2, 2), torch.zeros(2), {}, "")
    options = bench_certification.parse(["--images=2", "--n0=5", "--n=20", "--batch=16"])
    bench_certification.bare(given, options)()
    assert sizes == [16, 16, 16, 2]


def test_bare_processes_take_turns_on_the_slots() -> None:
    assert bench_sweeps.of_processes(4, 2, 0.3) >= 0.6


@pytest.mark.parametrize("slots", [1, 2, 5])
def test_so_many_bare_processes_are_alive_at_once_as_there_are_slots(
    slots: int, monkeypatch: Any
) -> None:
    alive: list[int] = []  # after each start

    class Process:
        """One that has ended at the third look."""

        started: ClassVar[list["Process"]] = []

        def __init__(self, command: list[str]) -> None:
            self.looks = 0
            self.started.append(self)
            alive.append(sum(each.looks < 3 for each in self.started))

        def poll(self) -> int | None:
            self.looks += 1
            return 0 if self.looks >= 3 else None

    monkeypatch.setattr(bench_sweeps.subprocess, "Popen", Process)
    monkeypatch.setattr(bench_sweeps.time, "sleep", lambda seconds: None)
    bench_sweeps.of_processes(4, slots, 0.3)
    assert len(alive) == 4 and max(alive) == min(slots, 4)
    assert all(process.looks == 3 for process in Process.started)


def test_the_section_of_the_gpu_is_replaced_and_the_rest_of_the_page_stays() -> None:
    page = "# Title\n\n## One\n\ntext\n"
    once = bench_gpu.put(page, "first")
    assert once == f"{page}\n## On a GPU\n\nfirst\n"
    between = once + "\n## Two\n\nmore\n"
    assert bench_gpu.put(between, "second") == between.replace("first", "second")


def test_without_a_gpu_nothing_is_measured_and_that_is_said(
    tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="no CUDA device is here") as stopped:
        bench_gpu.main(["--page", str(tmp_path / "page.md")])
    assert stopped.value.code != 0 and not (tmp_path / "page.md").exists()


PLAN = [
    bench_gpu.Job(3, "slow.py late"),
    bench_gpu.Job(1, "bad.py"),
    bench_gpu.Job(2, "good.py ''"),
]


@pytest.fixture
def commands(monkeypatch: Any) -> list[tuple[list[str], float]]:
    """PLAN under a clock that its commands alone move; each call with the time it was given."""
    calls: list[tuple[list[str], float]] = []
    clock = [1000.0]

    def run(command: list[str], *, timeout: float, **more: Any) -> Any:
        calls.append((command, timeout))
        if "late" in command:
            clock[0] += timeout
            raise subprocess.TimeoutExpired(command, timeout, output=b"| a |\n")
        clock[0] += 10
        code = int(command[1].endswith("bad.py"))
        return subprocess.CompletedProcess(command, code, "x\n| a | b |\n", "w\nbad\n")

    monkeypatch.setattr(bench_gpu.subprocess, "run", run)
    monkeypatch.setattr(bench_gpu.time, "monotonic", lambda: clock[0])
    return calls


def test_a_command_that_fails_or_is_late_is_told_in_its_place(
    commands: list[tuple[list[str], float]],
) -> None:
    late, failed, fine = bench_gpu.measured(PLAN, "cuda")
    assert late.text.endswith("| a |\n\nIt was not done when its time was over.")
    assert failed.text.endswith("| a | b |\n\nIt failed: bad")
    assert fine.text.endswith("good.py '' --device cuda --markdown\n```\n\n| a | b |")
    assert [late.done, failed.done, fine.done] == [False, False, True]
    assert commands[2][0][2:] == ["", "--device", "cuda", "--markdown"]


def test_a_late_command_takes_its_share_and_what_others_spare_is_for_those_after_them(
    commands: list[tuple[list[str], float]],
) -> None:
    list(bench_gpu.measured(PLAN, "cuda"))
    half = bench_gpu.BUDGET / 2
    assert [given for _, given in commands] == pytest.approx([half, half / 3, half - 10])


def test_what_was_measured_is_on_the_page_when_the_rest_is_interrupted(
    tmp_path: Path, monkeypatch: Any
) -> None:
    page = tmp_path / "page.md"
    page.write_text("# Title\n")

    def run(command: list[str], **more: Any) -> Any:
        if "late" in command:
            raise KeyboardInterrupt
        return subprocess.CompletedProcess(command, 0, "| a | b |\n", "")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(bench_gpu, "header", lambda left_out: f"head {left_out}")
    monkeypatch.setattr(bench_gpu, "PLAN", PLAN[::-1])
    monkeypatch.setattr(bench_gpu.subprocess, "run", run)
    with pytest.raises(KeyboardInterrupt):
        bench_gpu.main(["--page", str(page)])
    assert page.read_text().startswith(
        "# Title\n\n## On a GPU\n\nhead True\n\n```\npython scripts/good.py"
    )
    assert page.read_text().count("| a | b |") == 2


def test_a_plan_that_did_not_come_to_its_end_ends_the_command_with_1(
    commands: list[tuple[list[str], float]], monkeypatch: Any, capsys: Any
) -> None:
    monkeypatch.setattr(bench_gpu, "SMOKE", PLAN)
    with pytest.raises(SystemExit, match="2 of 3 commands did not come to their end"):
        bench_gpu.main(["--smoke"])
    assert capsys.readouterr().out.count("```") == 6


def test_the_page_keeps_what_a_script_skipped_and_what_it_told_after_its_table() -> None:
    printed = "today\nskipped: art is not installed\n\nmatrix rate in fp32: 1 TFLOP/s\n\n"
    assert bench_gpu.tables(f"{printed}| a |\n| 1 |\n\nfgsm: to 70 %: ours 1 s\n") == (
        "skipped: art is not installed\n\nmatrix rate in fp32: 1 TFLOP/s\n\n"
        "| a |\n| 1 |\n\nfgsm: to 70 %: ours 1 s"
    )
    assert bench_gpu.tables("today\nmatrix rate in fp32: 1\n") == "matrix rate in fp32: 1"


def test_a_released_loop_is_run_last_where_it_is_named_and_takes_time_of_its_own(
    commands: list[tuple[list[str], float]], tmp_path: Path, monkeypatch: Any
) -> None:
    (tmp_path / "MNIST").mkdir()
    (tmp_path / "MNIST" / "train_mnist.py").touch()
    monkeypatch.setattr(bench_gpu, "SMOKE", PLAN[2:])
    bench_gpu.main(["--smoke", "--checkout", str(tmp_path), "--root", "my data"])
    (good, _), (command, given) = commands
    assert good[1].endswith("good.py") and command[1].endswith("bench_released.py")
    assert given == pytest.approx(bench_gpu.BUDGET + bench_gpu.RELEASED[1].seconds - 10)
    options = bench_released.parse(command[2:])
    assert (options.checkout, options.root, options.reach) == (tmp_path, "my data", 70)


@pytest.mark.parametrize(
    "options, told",
    [
        ("--checkout nowhere", "--checkout and --root go together"),
        ("--checkout nowhere --root DATA", "no MNIST/train_mnist.py is there"),
    ],
)
def test_a_released_loop_that_is_not_there_is_told_at_once(
    options: str, told: str, commands: list[tuple[list[str], float]], capsys: Any
) -> None:
    with pytest.raises(SystemExit):
        bench_gpu.main(["--smoke", *options.split()])
    assert told in capsys.readouterr().err and not commands


def test_every_command_of_the_plans_is_one_of_its_script_and_the_plan_fits_its_time() -> None:
    scripts = {
        "bench_training.py": bench_training,
        "bench_attacks.py": bench_attacks,
        "bench_certification.py": bench_certification,
    }
    assert [job.line.split()[0] for job in bench_gpu.RELEASED] == ["bench_released.py"] * 2
    _, brief = bench_gpu.RELEASED  # leaves the others of its plan enough to start in
    assert brief.seconds < sum(job.seconds for job in bench_gpu.SMOKE)
    for job in (*bench_gpu.PLAN, *bench_gpu.SMOKE):
        script, *given = shlex.split(job.line)
        scripts[script].parse([*given, "--device", "cuda", "--markdown"])
    assert sum(job.seconds for job in bench_gpu.PLAN) <= bench_gpu.BUDGET


def test_a_training_step_is_timed_beside_a_bare_loop_with_its_rate_and_memory(
    monkeypatch: Any, capsys: Any
) -> None:
    rates: dict[torch.dtype, float] = {torch.bfloat16: 1e9}
    monkeypatch.setattr(benchmark, "matrix_rate", lambda device, dtype, clock: rates[dtype])
    line = "--model mnist_cnn --batch 128 --steps 2 --rounds 1 --defenses pgd_at --markdown"
    given = [*line.split(), "--precision", "bf16"]
    bench_training.main(given)
    out = capsys.readouterr().out
    (row,) = rows_of(out)
    assert "matrix rate in bf16: 0.00 TFLOP/s" in out
    assert row[:3] == ["pgd_at", "2 F+images, 1 F+weights", "7"]
    per_second, epoch, share, height = (float(cell) for cell in row[4:8])
    assert per_second * epoch == pytest.approx(50_000, rel=0.1)
    step = bench_training.prepared("pgd_at", bench_training.parse(given))
    flop = 7 * bench_training.flop_of(step, bench_training.Pass(128, True, "images"))
    assert share == pytest.approx(flop * per_second / 1e9, rel=0.02) and height > 0


@pytest.fixture
def on_a_gpu(monkeypatch: Any) -> list[tuple[nn.Module, bool]]:
    """Bare loops as on a GPU, here; which convolutions then ran, and whether they might in TF32."""
    seen: list[tuple[nn.Module, bool]] = []
    convolve = nn.Conv2d.forward

    def watched(layer: nn.Conv2d, x: Any) -> Any:
        seen.append((layer, torch.backends.cudnn.allow_tf32))
        return convolve(layer, x)

    def beside(name: str, run: Any, device: torch.device) -> Any:
        return benchmark.beside_tf32(name, run, torch.device("cuda"))

    monkeypatch.setattr(nn.Conv2d, "forward", watched)
    for script in (bench_training, bench_attacks):
        monkeypatch.setattr(script, "beside_tf32", beside)
    monkeypatch.setattr(benchmark, "SHORTEST", 1e-9)
    return seen


def test_on_a_gpu_a_training_step_is_beside_a_loop_in_tf32_too(
    on_a_gpu: list[tuple[nn.Module, bool]],
) -> None:
    options = bench_training.parse(["--batch=4", "--steps=2", "--rounds=1"])
    row = bench_training.measure("fgsm_at", options, 1e12)
    given = bench_training.columns(torch.device("cuda"))
    (of_tf32,) = bench_training.OF_TF32
    assert len(row) == len(given) and list(given)[-1] == of_tf32
    assert " to " in row[-1]
    slow, fast = ({layer for layer, on in on_a_gpu if on == choice} for choice in (False, True))
    assert fast and fast < slow  # only the loop's network, which has its turn in float32, too
    assert not torch.backends.cudnn.allow_tf32


def test_on_a_gpu_an_attack_has_a_limit_in_tf32_too(
    on_a_gpu: list[tuple[nn.Module, bool]], monkeypatch: Any
) -> None:
    options = bench_attacks.parse(["--batch=4", "--steps=2", "--rounds=1"])
    kind = bench_subject.KINDS["mnist_cnn"]._replace(updates=0)
    monkeypatch.setitem(bench_subject.KINDS, "mnist_cnn", kind)
    target = bench_subject.subject("mnist_cnn", 4, None, None)
    rates = {"fp32": 1e6, "tf32": 1e9}
    rows = list(bench_attacks.compare("fgsm", target, target.model, [], options, rates))
    assert [row[1] for row in rows] == ["limit", "limit, TF32", "ours", "ours, as is"]
    share = {row[1]: float(row[7]) for row in rows}
    assert share["limit"] > 100 * share["limit, TF32"]  # each against the rate of its own kind
    slow, fast = ({layer for layer, on in on_a_gpu if on == choice} for choice in (False, True))
    assert fast and fast < slow and not torch.backends.cudnn.allow_tf32


def test_a_loop_in_tf32_puts_the_flag_back_when_it_fails() -> None:
    def run() -> None:
        assert torch.backends.cudnn.allow_tf32
        raise KeyboardInterrupt

    assert list(benchmark.beside_tf32("bare", run, torch.device("cpu"))) == ["bare"]
    loops = benchmark.beside_tf32("bare", run, torch.device("cuda"))
    with pytest.raises(KeyboardInterrupt):
        loops["bare, TF32"]()
    assert loops["bare"] is run and not torch.backends.cudnn.allow_tf32


def test_the_rate_of_tf32_is_that_of_products_in_it(monkeypatch: Any, capsys: Any) -> None:
    def rate(device: Any, dtype: torch.dtype, clock: str) -> float:
        return 2e12 if torch.backends.cuda.matmul.allow_tf32 else 1e12

    monkeypatch.setattr(benchmark, "matrix_rate", rate)
    for precision, found in (("tf32", 2e12), ("fp32", 1e12)):
        assert benchmark.told_rate(torch.device("cpu"), precision, "wall") == found
    assert "matrix rate in tf32: 2.00" in capsys.readouterr().out
    assert not torch.backends.cuda.matmul.allow_tf32


def test_methods_that_a_network_is_not_made_for_leave_the_rows_after_them(
    monkeypatch: Any, capsys: Any
) -> None:
    monkeypatch.setattr(benchmark, "SHORTEST", 1e-9)
    monkeypatch.setattr(bench_training, "STAND_INS", {})
    options = "--batch 2 --rounds 1 --defenses oat,lwta,linear_exact,standard --markdown"
    bench_training.main(options.split())
    oat, winner, linear, standard = rows_of(capsys.readouterr().out)
    assert oat[1].startswith("oat trains one network for every lambda")
    assert winner[1].startswith("lwta trains networks with winner-takes-all layers")
    assert len(linear) == 2 and standard[1] == "1 F+weights"


def test_winner_takes_all_trains_a_network_that_has_it() -> None:
    options = bench_training.parse(["--batch=2", "--steps=1"])
    model = bench_training.prepared("lwta", options).state.model
    assert lwta.layers(model)


def test_attacks_run_on_a_compiled_copy_with_the_passes_of_the_plain_one(
    counter: Any, monkeypatch: Any, capsys: Any
) -> None:
    kind = bench_subject.KINDS["mnist_cnn"]._replace(updates=2)
    monkeypatch.setitem(bench_subject.KINDS, "mnist_cnn", kind)
    monkeypatch.setattr(benchmark, "SHORTEST", 1e-9)
    seen: list[tuple[bool, int]] = []
    attack = bench_attacks.pgd

    def watched(model: Any, x: Any, y: Any, **more: Any) -> Any:
        if isinstance(model, nn.Module):
            seen.append((model._compiled_call_impl is not None, counter.frame_count))
        return attack(model, x, y, **more)

    monkeypatch.setattr(bench_attacks, "pgd", watched)
    options = "--attacks pgd --batch 6 --steps 2 --rounds 1 --markdown --compile true --peers ,"
    bench_attacks.main(options.split())
    table = {row[1]: row for row in rows_of(capsys.readouterr().out)}
    assert [table[name][2] for name in ("limit", "ours", "ours, as is")] == ["2/2"] * 3
    assert table["ours, as is"][-1] == "0"  # verdicts that differ
    assert counter.frame_count > 0 and {on for on, _ in seen} == {True, False}
    assert seen[0] == (True, 0)  # nothing but ours is ever compiled


def test_certificates_run_on_a_compiled_copy_beside_the_plain_loop(
    counter: Any, monkeypatch: Any
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 10)).eval()
    given = bench_subject.Subject(model, torch.rand(2, 1, 2, 2), torch.zeros(2), {}, "")
    options = ["--images=2", "--n0=8", "--n=16", "--batch=16"]
    plain = bench_certification.ours(given, bench_certification.parse(options))()
    assert counter.frame_count == 0
    fast = bench_certification.parse([*options, "--compile=true"])
    assert bench_certification.ours(given, fast)() == plain and counter.frame_count == 1
    bench_certification.bare(given, fast)()
    assert counter.frame_count == 1 and model._compiled_call_impl is None


def test_certificates_run_on_kernels_as_a_run_lays_them() -> None:
    """Without --compile, too; the bare loop has the network as it is."""
    laid: list[bool] = []

    def seen(layer: nn.Module, given: Any, maps: Any) -> None:
        laid.append(layer.weight.is_contiguous(memory_format=torch.channels_last))

    torch.manual_seed(0)
    first = nn.Conv2d(3, 16, 3)
    model = nn.Sequential(first, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10)).eval()
    first.register_forward_hook(seen)
    given = bench_subject.Subject(model, torch.rand(2, 3, 8, 8), torch.zeros(2), {}, "")
    options = bench_certification.parse(["--images=2", "--n0=8", "--n=16", "--batch=16"])
    ours, bare = bench_certification.ours(given, options), bench_certification.bare(given, options)
    for run, last in ((ours, True), (bare, False)):
        laid.clear()
        run()
        assert set(laid) == {last}


def test_float32_rows_are_held_against_the_rate_of_float32(monkeypatch: Any) -> None:
    """With a rate of bf16 a thousand times as high, a row in it shows a thousandth of the share."""
    kind = bench_subject.KINDS["mnist_cnn"]._replace(updates=0)
    monkeypatch.setitem(bench_subject.KINDS, "mnist_cnn", kind)
    monkeypatch.setattr(benchmark, "SHORTEST", 1e-9)
    options = bench_attacks.parse(["--batch=64", "--steps=2", "--rounds=1", "--precision=bf16"])
    target = bench_subject.subject("mnist_cnn", 64, None, None)
    low_precision(target.model)
    rates = {"fp32": 1e6, "bf16": 1e9}
    rows = bench_attacks.compare("pgd", target, target.model, [], options, rates)
    share = {row[1]: float(row[7]) * float(row[3]) for row in rows}  # times ms: the floor
    assert share["limit"] == pytest.approx(share["ours, fp32"], rel=0.05)
    assert share["limit"] == pytest.approx(1000 * share["ours"], rel=0.05)


def test_floors_are_those_of_the_network() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    assert benchmark.flop(model, torch.rand(5, 1, 2, 2)) == 2 * 4 * 3
    assert benchmark.peak(lambda: torch.rand(1000), torch.device("cpu")) == 4000


def test_the_height_on_a_gpu_leaves_out_what_was_there_before(monkeypatch: Any) -> None:
    now, most = [100], [5000]

    def run() -> None:
        most[0] = max(most[0], now[0] + 250)

    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: now[0])
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: most[0])
    monkeypatch.setattr(
        torch.cuda, "reset_peak_memory_stats", lambda device: most.__setitem__(0, now[0])
    )
    assert benchmark.peak(run, torch.device("cuda")) == 250


def test_bf16_without_units_is_refused_on_a_gpu(monkeypatch: Any) -> None:
    asked = {"precision": "bf16", "compile": None}
    assert benchmark.chosen_device(Namespace(device="cpu", **asked)) == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "an old one")
    monkeypatch.setattr(runs, "bfloat16", lambda device: False)
    with pytest.raises(SystemExit, match="an old one has no units for bfloat16"):
        benchmark.chosen_device(Namespace(device="cuda", **asked))


@pytest.mark.parametrize(
    "options, told",
    [("--device cuda:99", "CUDA devices are here"), ("--compile reduce-overhead", "CUDA graphs")],
)
def test_what_the_device_cannot_do_is_one_message(options: str, told: str, capsys: Any) -> None:
    for script in (bench_attacks, bench_certification, bench_training):
        with pytest.raises(SystemExit, match=told):
            script.main(options.split())


def test_winner_takes_all_on_a_device_that_is_not_here_is_one_message() -> None:
    with pytest.raises(SystemExit, match="CUDA devices are here"):
        bench_lwta.main(["--device", "cuda:99"])


@pytest.mark.parametrize(
    "options, told",
    [
        ("--checkpoint nosuch.pth", "nosuch.pth"),
        ("--root nosuch", "nosuch"),
        ("--checkpoint empty.pth", "empty.pth"),
    ],
)
def test_weights_and_images_that_are_not_to_be_had_are_one_message(
    options: str, told: str, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty.pth").touch()
    for script in (bench_attacks, bench_certification):
        with pytest.raises(SystemExit, match=told) as stopped:
            script.main(options.split())
        assert isinstance(stopped.value.code, str) and "\n" not in stopped.value.code
    with pytest.raises(SystemExit, match="nosuch"):
        bench_subject.subject("resnet18", 4, "nosuch", None)


def test_code_of_others_that_is_no_file_is_one_message(capsys: Any) -> None:
    with pytest.raises(SystemExit):
        bench_certification.main(["--cohen", "nosuch.py"])
    assert "--cohen: nosuch.py is no file" in capsys.readouterr().err


def test_released_trainings_without_their_data_are_one_message(tmp_path: Path) -> None:
    (tmp_path / "MNIST").mkdir()
    (tmp_path / "MNIST" / "train_mnist.py").touch()
    root = str(tmp_path / "nosuch")
    with pytest.raises(SystemExit, match="nosuch"):
        bench_released.main(["--checkout", str(tmp_path), "--root", root, "--device", "cpu"])


def schedules(*each: tuple[int, float, float]) -> list[bench_released.Schedule]:
    return [bench_released.Schedule(*one) for one in each]


def test_the_time_to_an_accuracy_is_that_of_the_shortest_schedule_that_reaches_it() -> None:
    found = {
        "theirs": schedules((3, 10.0, 79.9), (6, 20.0, 80.0), (10, 40.0, 90.0)),
        "ours": schedules((3, 6.0, 70.0), (6, 12.0, 75.0), (10, 25.0, 85.0)),
    }
    assert bench_released.told(80, found) == (
        "to 80 % under PGD-20: theirs 20.0 s (6 epochs), ours 25.0 s (10 epochs), ratio 1.25"
    )
    assert bench_released.told(85.5, found) == (
        "to 85.5 % under PGD-20: theirs 40.0 s (10 epochs), ours not within 10 epochs"
    )
    assert bench_released.spread([3.0, 1.0, 2.0]) == "2.0 (1.0 to 3.0)"


def test_both_trainings_see_a_gpu_or_neither_does(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    asked = [sys.executable, "-c", "import os; print(repr(os.environ['CUDA_VISIBLE_DEVICES']))"]
    told = {
        device: bench_released.started(asked, tmp_path, Namespace(device=device, threads=1)).stdout
        for device in ("cpu", "cuda")
    }
    assert told == {"cpu": "''\n", "cuda": "'3'\n"}
    given: list[str] = []

    def started(command: Any, where: Path, options: Namespace) -> Any:
        given.extend(command)
        raise InterruptedError

    monkeypatch.setattr(bench_released, "started", started)
    with pytest.raises(InterruptedError):
        bench_released.ours("fgsm", 2, 0, tmp_path, Namespace(device="cpu"))
    assert "device=cpu" in given and "epochs=2" in given


def test_kept_examples_are_read_back_as_they_were(tmp_path: Path) -> None:
    draws = torch.Generator().manual_seed(0)
    parts = []
    for images in (12, 5):
        x = torch.randint(256, (images, 1, 28, 28), generator=draws).to(torch.uint8)
        parts.append(readers.Raw(x, torch.arange(images) % 10))
    bench_released.keep(tmp_path, *parts)
    train, test, _ = readers.read(readers.mnist(), str(tmp_path / "mnist-data"), download=False)
    for kept, given in zip((train, test), parts, strict=True):
        assert kept.images.equal(given.images) and kept.labels.equal(given.labels)


@pytest.mark.parametrize(
    "options, told",
    [
        ("--methods fgsm,trades", "there is no trades; allowed are fgsm, pgd"),
        ("--epochs 3,0", "'0'; allowed is a whole number from 1"),
        ("--rounds 0", "'0'; allowed is a whole number from 1"),
        ("--device cuda", "no CUDA device is here"),
        ("", "no MNIST/train_mnist.py is there"),
    ],
)
def test_wrong_options_of_whole_trainings_are_refused(
    options: str, told: str, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        bench_released.parse(["--checkout", str(tmp_path), "--root", "DATA", *options.split()])
    assert told in capsys.readouterr().err


SPENT = {
    **{"whole": 20.0, "torch": 2.0, "training": 10.0, "batch": 1.0, "step": 8.0, "validation": 0.5},
    **{"attack": 3.0, "pass": 0.5, "noise": 0.5, "check": 1.0},
}


def test_the_overhead_of_the_command_is_all_that_is_no_loop_on_a_processor(
    tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    lines: list[list[str]] = []

    def run(arguments: list[str]) -> str:
        lines.append(arguments)
        if "--inside" in arguments:
            Path(arguments[2]).write_text(json.dumps(SPENT))
        return "9.0 3.0" if "--first" in arguments else "1.0"

    monkeypatch.setattr(bench_runner, "run", run)
    bench_runner.starts(tmp_path, 1)
    assert "2.00 s of processor time (1.00 s)" in capsys.readouterr().out
    bench_runner.overhead(tmp_path, 4, ["dataset=mnist"])
    out = capsys.readouterr().out  # once 3 s, beside the loops of training half a second of ten
    assert "everything else, once a run, 3.00 s" in out and "overhead 24.14%" in out
    assert "5.83%, with the look for masked gradients 6.17%" in out
    assert ["device=cpu" in line for line in lines] == [False, True, True, True]


def test_winner_takes_all_is_timed_in_the_modes_of_its_passes(
    monkeypatch: Any, capsys: Any
) -> None:
    monkeypatch.setattr(benchmark, "SHORTEST", 1e-9)
    modes: dict[str, set[bool]] = {}

    def noted(name: str, run: Any) -> Any:
        def passed(network: Any, x: Any, y: Any) -> None:
            modes.setdefault(name, set()).add(network.training)
            run(network, x, y)

        return passed

    named = {name: noted(name, run) for name, run in bench_lwta.PASSES.items()}
    monkeypatch.setattr(bench_lwta, "PASSES", named)
    monkeypatch.setattr(bench_lwta, "to_weights", named["and to weights"])
    options = ["--models=mnist_cnn", "--batch=8", "--rounds=1", "--markdown"]
    bench_lwta.main(options)
    assert [row[1] for row in rows_of(capsys.readouterr().out)] == list(named)
    assert modes == {"forward": {False}, "and to images": {False}, "and to weights": {True}}

"""The benchmark counts passes rightly, and its command writes the table that it promises."""

import subprocess
import sys
from pathlib import Path
from statistics import NormalDist
from typing import Any

import pytest
import torch
from torch import nn

sys.path.append(str(Path(__file__).parents[1] / "scripts"))

import bench_attacks
import bench_certification
import bench_gpu
import bench_peers
import bench_subject
import bench_sweeps
import bench_training
import benchmark


def net() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(4, 3)).eval()


def test_a_tape_holds_each_pass_and_whether_a_gradient_was_taken() -> None:
    tape, x = benchmark.Tape(net()), torch.rand(5, 1, 2, 2)
    leaf = x.clone().requires_grad_()
    torch.autograd.grad(tape(leaf).sum(), leaf)
    tape(leaf)
    with torch.no_grad():
        benchmark.Taped(tape)(x[:2])
    assert tape.passes() == [(5, True), (5, False), (2, False)]


def test_the_limit_makes_these_passes_again_and_no_others() -> None:
    passes = [benchmark.Pass(3, True), benchmark.Pass(5, False), benchmark.Pass(8, True)]
    model = net()
    seen: list[tuple[int, bool]] = []
    model.register_forward_hook(
        lambda module, given, logits: seen.append((len(logits), logits.requires_grad))
    )
    benchmark.limit(model, torch.rand(5, 1, 2, 2), [*passes, benchmark.Pass(0, True)])()
    assert seen == passes
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
    rows = [line.strip("| ").split(" | ") for line in out.splitlines() if line.startswith("|")]
    table = {(row[0], row[1]): row[2:] for row in rows[2:]}
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
    rows = [line.strip("| ").split(" | ") for line in out.splitlines() if line.startswith("|")]
    assert [row[0] for row in rows[2:]] == ["bare loop", "ours", "cohen"]
    assert rows[2][3] == "1.00 (1.00 to 1.00)"
    assert rows[4][4] == f"3, {NormalDist().inv_cdf(0.001 ** (1 / 40)):.3f}"


def test_the_bare_loop_asks_about_as_many_images_in_full_batches() -> None:
    sizes: list[int] = []
    model = net()
    model.register_forward_hook(lambda module, given, logits: sizes.append(len(logits)))
    given = bench_subject.Subject(model, torch.rand(2, 1, 2, 2), torch.zeros(2), {}, "")
    options = bench_certification.parse(["--images=2", "--n0=5", "--n=20", "--batch=16"])
    bench_certification.bare(given, options)()
    assert sizes == [16, 16, 16, 2]


def test_bare_processes_take_turns_on_the_slots() -> None:
    assert 0.6 <= bench_sweeps.of_processes(4, 2, 0.3) < bench_sweeps.of_processes(4, 1, 0.3)


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


def test_a_command_that_fails_or_is_late_is_told_in_its_place(monkeypatch: Any) -> None:
    calls: list[list[str]] = []

    def run(command: list[str], **more: Any) -> Any:
        calls.append(command)
        if "late" in command:
            raise subprocess.TimeoutExpired(command, 1, output=b"| a |\n")
        return subprocess.CompletedProcess(command, len(calls) - 1, "x\n| a | b |\n", "w\nbad\n")

    monkeypatch.setattr(bench_gpu.subprocess, "run", run)
    fine, failed, late = bench_gpu.measured(["good.py --a 1", "bad.py", "slow.py late"], "cuda")
    assert fine.endswith("--a 1 --device cuda --markdown\n```\n\n| a | b |")
    assert failed.endswith("| a | b |\n\nIt failed: bad")
    assert late.endswith("| a |\n\nIt was not done when its time was over.")


def test_every_command_of_the_plans_is_one_of_its_script() -> None:
    scripts = {
        "bench_training.py": bench_training,
        "bench_attacks.py": bench_attacks,
        "bench_certification.py": bench_certification,
    }
    for line in (*bench_gpu.PLAN, *bench_gpu.SMOKE):
        script, *given = line.split()
        scripts[script].parse([*given, "--device", "cuda", "--markdown"])


def test_a_training_step_is_timed_beside_a_bare_loop_with_its_rate_and_memory(capsys: Any) -> None:
    options = "--model mnist_cnn --batch 4 --steps 2 --rounds 1 --defenses pgd_at --markdown"
    bench_training.main([*options.split(), "--precision", "bf16"])
    out = capsys.readouterr().out
    rows = [line.strip("| ").split(" | ") for line in out.splitlines() if line.startswith("|")]
    assert "matrix rate in bf16" in out and rows[2][:3] == [
        "pgd_at",
        "2 F+images, 1 F+weights",
        "7",
    ]
    per_second, share, height = (float(cell) for cell in rows[2][4:7])
    assert per_second > 1 and 0 <= share < 1 and height >= 0


def test_floors_are_those_of_the_network() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    assert benchmark.flop(model, torch.rand(5, 1, 2, 2)) == 2 * 4 * 3
    assert benchmark.peak(lambda: torch.rand(1000), torch.device("cpu")) == 4000

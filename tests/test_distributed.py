"""Two processes do what one does: the same weights up to rounding, the same verdicts."""

import json
import os
import socket
import subprocess
import sys
from contextlib import ExitStack, suppress
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from crew_work import FITTED, FREE, GOING_ON, JOBS, STEP, unreported
from running import interrupted, run

from advtrain import footprint
from advtrain.data.errors import DataError
from advtrain.data.loader import Batches
from advtrain.draws import normal
from advtrain.exchange import interleaved
from advtrain.sharing import behind, sharing, weight
from advtrain.world import ALONE, World, announced, share, within

CLOSE = 1e-5  # of the length of a tensor; 4e-7 is seen
PARTIAL = {"oat": ("train_acc_adv", "train_ce_adv")}
"""Means over a part of a minibatch, of which shares hold more or less."""


class Both(NamedTuple):
    """What one process and two have left, each in a folder; and what the two said."""

    one: Path
    two: Path
    found: dict[str, Any]
    codes: tuple[int, int]
    said: tuple[str, str]


def free_port() -> int:
    """Nobody listens there, and the system gives it to nobody who asks for any port."""
    for port in count(15_000 + os.getpid() % 10_000):
        with socket.socket() as here, suppress(OSError):
            here.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no port is free")


def two_processes(folder: Path) -> list[subprocess.Popen[str]]:
    """Those of `crew_work`, at work."""
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"}
    shared |= {"OMP_NUM_THREADS": "1"}
    if sys.platform == "linux":  # elsewhere it has another name
        shared["GLOO_SOCKET_IFNAME"] = "lo"  # whatever the name of this machine leads to
    return [
        subprocess.Popen(
            [sys.executable, "-m", "crew_work", str(folder)],
            env={**os.environ, **shared, "RANK": rank, "LOCAL_RANK": rank},
            cwd=Path(__file__).parent,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in "01"
    ]


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Both:
    one, two = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    interrupted(two / "begun_alone", STEP, *GOING_ON)
    with ExitStack() as stack:
        started = [stack.enter_context(process) for process in two_processes(two)]
        for process in started:
            stack.callback(process.kill)  # where it has not ended by itself
        for name, job in JOBS.items():
            with unreported(name):
                run(one / name, *job)
        run(one / "whole", *GOING_ON)
        with unreported("fitted"), pytest.MonkeyPatch.context() as patch:
            patch.setattr(footprint, "free", lambda device: FREE / 2)
            run(one / "fitted", *FITTED)
        said = [process.communicate(timeout=300)[1] for process in started]
    assert (two / "found.json").exists(), said
    found = json.loads((two / "found.json").read_text())
    codes = started[0].returncode, started[1].returncode
    return Both(one, two, found, codes, (said[0], said[1]))


def state(directory: Path) -> dict[str, Any]:
    return torch.load(directory / "checkpoints" / "last.pt", weights_only=True)


def distance(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    assert a.keys() == b.keys()
    pairs = [(a[name].double(), b[name].double()) for name in a]
    return max(float((u - v).norm() / v.norm().clamp(min=1e-12)) for u, v in pairs)


@pytest.mark.parametrize("name", JOBS)
def test_two_processes_reach_the_weights_of_one(both, name):
    assert both.found["codes"][name] == 0
    one, two = state(both.one / name), state(both.two / name)
    assert distance(two["model"], one["model"]) < CLOSE
    assert distance(two["training"]["state"]["model"], one["training"]["state"]["model"]) < CLOSE


@pytest.mark.parametrize("name", JOBS)
def test_logs_are_of_the_whole_minibatch(both, name):
    for one, two in zip(*(lines(each / name) for each in (both.one, both.two)), strict=True):
        assert one.keys() == two.keys()
        for key in one.keys() - {"seconds", "examples_per_second", *PARTIAL.get(name, ())}:
            assert two[key] == pytest.approx(one[key], rel=1e-4, abs=1e-5), key


def lines(directory: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def test_verdicts_and_certificates_are_those_of_one_process(both):
    found = [json.loads((each / "plain" / "results.json").read_text()) for each in both[:2]]
    assert [each["environment"].pop("processes") for each in found] == [1, 2]
    for each in found:  # times differ, and names of weights, which differ by rounding
        for part in (each, *each["rows"], each["certified"]):
            part.pop("seconds"), part.pop("key", None)
        each["training"].pop("seconds"), each["training"].pop("examples_per_second")
    for name in ("rows", "worst_case", "certified", "warnings", "environment", "dataset"):
        assert found[0][name] == found[1][name], name
    assert found[0].keys() == found[1].keys()
    verdicts = [
        [
            (each["at"], each["adversarial"], each["robust"], each["forward_passes"])
            for each in map(
                json.loads, (side / "plain" / "verdicts.jsonl").read_text().splitlines()
            )
        ]
        for side in both[:2]
    ]
    assert verdicts[0] == verdicts[1] and len(verdicts[0]) == 12  # four rows, three batches each
    logs = [(side / "plain" / "certify.tsv").read_text().splitlines() for side in both[:2]]
    one, two = ([line.rpartition("\t")[0] for line in log] for log in logs)
    assert one == two and len(one) == 21


def test_the_leader_alone_writes_and_leaves_all_that_is_promised(both):
    names = [sorted(p.name for p in (side / "plain").iterdir()) for side in both[:2]]
    assert names[0] == names[1] and "report.html" in names[0]


def test_all_stop_at_the_same_step_and_one_goes_on(both):
    assert both.found["codes"]["stopped"] == 143
    assert state(both.two / "stopped")["training"]["state"]["step"] == STEP
    assert run(both.two / "stopped", *GOING_ON)["exit_code"] == 0
    assert (
        distance(state(both.two / "stopped")["model"], state(both.one / "whole")["model"]) < CLOSE
    )


def test_two_go_on_where_one_has_stopped(both):
    assert both.found["codes"]["begun_alone"] == 0
    after = state(both.two / "begun_alone")["model"]
    assert distance(after, state(both.one / "whole")["model"]) < CLOSE


def test_processes_of_one_machine_have_each_a_part_of_its_memory(both):
    one, two = (state(each / "fitted")["config"]["batch_size"] for each in both[:2])
    assert both.found["codes"]["fitted"] == 0
    assert 2 < one < 16 and two == 2 * one  # 16: what an epoch of so many steps allows


def test_portions_of_any_process_are_told(both):
    assert both.found["least"] == [None, 6]


def test_averages_and_moments_follow_the_leader_as_weights_do(both):
    found = both.found["followed"]
    assert found["rounding"] == [0.0] * 6
    assert found["refused"] == [1.0]


def test_nobody_looks_for_failures_once_the_processes_have_parted(both):
    assert both.found["watching"] == []  # Python that ends aborts under a thread in torch's store


def test_a_failure_of_one_process_ends_all_and_is_told_once(both):
    told = "ZeroDivisionError: as if memory had run out (process 1)"
    status = json.loads((both.two / "failed" / "status.json").read_text())
    assert (status["state"], status["error"]) == ("failed", told)
    assert both.codes == (1, 1)
    assert both.said[0].count("advtrain: ") >= 1 and both.said[0].count(told) == 1
    assert "advtrain: " not in both.said[1]


def test_batch_norm_of_shares_is_that_of_the_whole_batch(both):
    for name, apart in both.found["norms"].items():
        assert apart < 1e-5, name


def test_work_is_divided_and_told_to_all_in_its_order(both):
    assert both.found["done"] == [[n, n % 2] for n in range(5) for _ in range(2)]
    assert both.found["stops"] == 3
    assert both.found["error"] == "division by zero"


def test_sums_leave_out_what_no_process_has(both):
    assert both.found["sums"] == [[3.0, 3.0], [1.0, 1.0, 1.0], None]


def test_draws_of_shares_are_rows_of_the_draws_of_one_process():
    x, device = torch.zeros(7, 2, 3), torch.device("cpu")
    with torch.random.fork_rng(devices=[]):
        with sharing(7, device, 0, "step", 3):
            wanted, again = normal(x), normal(x[2:])
            assert weight() == 1
        parts, rests, own = [], [], []
        for rank in range(3):
            with within(World(rank, 3, rank)), sharing(7, device, 0, "step", 3):
                mine = x[share(7)]
                parts.append(normal(mine))
                with behind(2):
                    rests.append(normal(x[2:][(rank - 2) % 3 :: 3]))
                own.append(torch.rand(1))
                assert weight() == len(mine) / 7
    assert torch.equal(interleaved(parts), wanted)
    assert torch.equal(interleaved([rests[2], rests[0], rests[1]]), again)
    assert len(set(map(float, own))) == 3  # draws of nobody's row are of each process


def test_a_last_minibatch_with_too_few_images_is_refused():
    class Nine:
        def __len__(self) -> int:
            return 9

    Batches(Nine(), 4, 0)
    with within(World(0, 2, 0)), pytest.raises(DataError, match="last minibatch of an epoch has 1"):
        Batches(Nine(), 4, 0)


def test_what_the_environment_says(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    assert announced() == ALONE
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert announced() == ALONE
    monkeypatch.setenv("RANK", "2")
    with pytest.raises(ValueError, match=r"RANK=2, WORLD_SIZE=2, and lacks LOCAL_RANK, MASTER_A"):
        announced()
    for name, value in {
        "RANK": "1",
        "LOCAL_RANK": "0",
        "MASTER_ADDR": "a",
        "MASTER_PORT": "1",
    }.items():
        monkeypatch.setenv(name, value)
    assert announced() == World(1, 2, 0)

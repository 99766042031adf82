"""Memory, disks, numbers and trackers that fail in the middle: a sentence, and the same result."""

import errno
import math
import os
import random

import pytest
import torch
from outcomes import differences, finished
from running import TINY, TRAINING, run

from advtrain import checkpoints, determinism, evaluation, files, mishaps, tracking, training
from advtrain.intact import damage

STEPS = 6  # of a training of TRAINING: two epochs of three


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run with an evaluation and certificates that nothing disturbs."""
    directory = tmp_path_factory.mktemp("whole")
    assert run(directory, *TINY)["state"] == "done"
    return directory


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    directory = tmp_path_factory.mktemp("trained")
    assert run(directory, *TRAINING)["state"] == "done"
    return directory


def failing(monkeypatch, module, name, at, fail):
    """Let the `at`-th call of a function fail, or give what `fail` makes of its answer."""
    real, calls = getattr(module, name), []

    def call(*args, **kwargs):
        calls.append(args)
        answer = real(*args, **kwargs)
        return fail(answer) if len(calls) == at else answer

    monkeypatch.setattr(module, name, call)


def memory(answer):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has")


def allocator(answer):
    raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")


@pytest.mark.parametrize("step", [1, 4, STEPS])
@pytest.mark.parametrize("fail", [memory, allocator])
def test_memory_that_runs_out_in_training_costs_at_most_the_epoch(
    tmp_path, trained, monkeypatch, capsys, step, fail
):
    with monkeypatch.context() as patch:
        failing(patch, training, "train_step", step, fail)
        status = run(tmp_path, *TRAINING)
    assert status["exit_code"] == 1 and status["state"] == "failed"
    said = capsys.readouterr().err
    assert said.count("is too large for the memory of cpu") == 1 and "Traceback" not in said
    assert f"hydra.run.dir={tmp_path} resume=true goes on." in said
    seen = finished(tmp_path)
    assert len(seen) == (step - 1) // 3
    assert run(tmp_path, *TRAINING)["state"] == "done"
    assert seen <= finished(tmp_path) and not [*differences(trained, tmp_path)]


@pytest.mark.parametrize("batch", [1, 3])
def test_memory_that_runs_out_in_an_evaluation_costs_one_batch(
    tmp_path, whole, monkeypatch, capsys, batch
):
    with monkeypatch.context() as patch:
        failing(patch, evaluation, "judge", batch, memory)
        assert run(tmp_path, *TINY)["exit_code"] == 1
    assert "eval.batch_size" in capsys.readouterr().err
    seen = finished(tmp_path)
    assert sum(place == "verdicts.jsonl" for place, _ in seen) == batch - 1
    assert run(tmp_path, *TINY)["state"] == "done"
    assert seen <= finished(tmp_path) and not [*differences(whole, tmp_path)]


def spoilt(logs):
    return {**logs, "loss": logs["loss"] * math.nan}


@pytest.mark.parametrize("step", [1, 3, 5])
def test_a_loss_that_is_no_number_once_leaves_what_was_done(tmp_path, trained, monkeypatch, step):
    with monkeypatch.context() as patch:
        failing(patch, training, "train_step", step, spoilt)
        status = run(tmp_path, *TRAINING)
    assert status["exit_code"] == 1 and f"the loss is nan at step {step}" in status["error"]
    seen = finished(tmp_path)
    assert run(tmp_path, *TRAINING)["state"] == "done"
    assert seen <= finished(tmp_path) and not [*differences(trained, tmp_path)]


class Breaking:
    """A W&B whose run breaks at its second message, and whose end breaks, too."""

    class Settings:
        def __init__(self, **settings):
            pass

    def init(self, **settings):
        self.messages = 0
        return self

    def define_metric(self, *args, **kwargs):
        pass

    def log(self, content):
        self.messages += 1
        if self.messages > 1:
            raise ConnectionResetError("the service is gone")

    def finish(self, exit_code):
        raise BrokenPipeError("no service")


def test_a_tracker_that_breaks_in_the_middle_is_a_warning(tmp_path, trained, monkeypatch, caplog):
    monkeypatch.setattr(tracking, "_wandb", Breaking)
    options = [each for each in TRAINING if each != "logger=none"]
    assert run(tmp_path, *options, "logger=wandb", "logger.mode=offline")["state"] == "done"
    assert caplog.text.count("W&B") == 1 and "the run goes on without it" in caplog.text
    weights = [
        torch.load(each / "checkpoints" / "last.pt", weights_only=True)["model"]
        for each in (trained, tmp_path)
    ]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


def full(path):
    kept = path.with_name(".kept.tmp")
    kept.touch()
    return os.open("/dev/full", os.O_WRONLY), str(kept)


def test_a_disk_that_is_full_is_told_and_not_where_torch_was_in_the_file(tmp_path, monkeypatch):
    checkpoints.save(tmp_path / "last.pt", {"model": {"w": torch.ones(3)}})
    monkeypatch.setattr(files, "create", full)
    for size in (3, 100_000):
        with pytest.raises(OSError, match="No space left on device") as error:
            checkpoints.save(tmp_path / "last.pt", {"model": {"w": torch.zeros(size)}})
        assert error.value.filename == str(tmp_path / "last.pt")
        told = mishaps.told(error.value)
        assert told.startswith(f"{tmp_path / 'last.pt'} cannot be written (No space left on device")
    assert checkpoints.load(tmp_path / "last.pt")["model"]["w"].sum() == 3
    assert os.listdir(tmp_path) == ["last.pt"]


def test_other_errors_are_no_mishaps():
    assert mishaps.told(RuntimeError("shapes do not fit")) is None
    assert mishaps.told(OSError("of a library, without a number")) is None
    assert mishaps.told(MemoryError()).startswith("memory ran out. What was")
    assert mishaps.told(OSError(errno.EROFS, "Read-only file system", "a.txt")) == (
        "a.txt: Read-only file system."
    )


def truncated(content, chance):
    return content[: chance.randrange(1, len(content))]


def zeroed(content, chance):
    at = chance.randrange(len(content) // 2)
    return content[:at] + bytes(len(content) - at)


def flipped(content, chance):
    spoilt = bytearray(content)
    at = content.index(b"data/0") + 80  # among the numbers of the first tensor
    spoilt[at] ^= 1 << chance.randrange(8)
    return bytes(spoilt)


def spoil(path, how, seed=0):
    path.write_bytes(how(path.read_bytes(), random.Random(seed)))


@pytest.mark.parametrize("how", [truncated, zeroed, flipped])
def test_a_damaged_checkpoint_is_told_and_the_one_before_used(
    tmp_path, trained, monkeypatch, caplog, capsys, how
):
    last = tmp_path / "checkpoints" / "last.pt"
    with monkeypatch.context() as patch:
        failing(patch, training, "train_step", STEPS, memory)
        assert run(tmp_path, *TRAINING)["exit_code"] == 1
    checkpoints.save(last, torch.load(last), kept=last.with_name("previous.pt"))
    spoil(last, how)
    capsys.readouterr()
    assert run(tmp_path, *TRAINING)["state"] == "done"
    assert "last.pt is damaged" in caplog.text and "of epoch 1." in caplog.text
    assert not [*differences(trained, tmp_path)]


def test_two_damaged_checkpoints_are_told_with_what_can_be_done(tmp_path, capsys):
    assert run(tmp_path, *TRAINING)["state"] == "done"
    for name in ("last", "previous"):
        spoil(tmp_path / "checkpoints" / f"{name}.pt", truncated)
    before = {path: path.read_bytes() for path in (tmp_path / "checkpoints").iterdir()}
    status = run(tmp_path, *TRAINING)
    assert status["exit_code"] == 1 and "resume=false" in status["error"]
    assert "last.pt is damaged" in status["error"] and "previous.pt" in status["error"]
    assert "Traceback" not in capsys.readouterr().err
    assert {path: path.read_bytes() for path in before} == before
    assert run(tmp_path, *TRAINING, "resume=false")["state"] == "done"


def test_where_the_first_checkpoint_is_damaged_training_begins_anew(
    tmp_path, trained, monkeypatch, caplog
):
    with monkeypatch.context() as patch:
        failing(patch, training, "train_step", 4, memory)
        run(tmp_path, *TRAINING)
    assert os.listdir(tmp_path / "checkpoints") and len(finished(tmp_path)) == 1
    spoil(tmp_path / "checkpoints" / "last.pt", truncated)
    assert run(tmp_path, *TRAINING)["state"] == "done"
    assert caplog.text.count("was the first of its run: training begins anew") == 1
    assert not [*differences(trained, tmp_path)]


def test_no_other_weights_are_judged_where_the_best_are_damaged(tmp_path, whole):
    assert run(tmp_path, *TINY)["state"] == "done"
    best = tmp_path / "checkpoints" / "best.pt"
    content = best.read_bytes()
    spoil(best, flipped)
    status = run(tmp_path, *TINY)
    assert status["exit_code"] == 1 and "best.pt is damaged" in status["error"]
    judged = run(tmp_path / "a", "job=eval", f"checkpoint={best}", "eval=quick", "logger=none")
    assert judged["exit_code"] == 2 and "the checksum of" in judged["error"]
    best.write_bytes(content)
    assert run(tmp_path, *TINY)["state"] == "done"
    assert not [*differences(whole, tmp_path)]


def test_no_flipped_bit_of_a_checkpoint_passes_for_other_weights(tmp_path, trained):
    content = (trained / "checkpoints" / "last.pt").read_bytes()
    good = torch.load(trained / "checkpoints" / "last.pt", weights_only=True)["model"]
    chance, path = random.Random(0), tmp_path / "flipped.pt"
    told = 0
    for _ in range(150):
        spoilt = bytearray(content)
        spoilt[chance.randrange(len(spoilt))] ^= 1 << chance.randrange(8)
        path.write_bytes(spoilt)
        try:
            found = checkpoints.load(path)["model"]
        except checkpoints.CheckpointError:
            told += 1
        else:
            assert all(torch.equal(found[key], good[key]) for key in good)
    assert told > 30  # the others fell between the parts of the file, where nothing stands


def test_files_of_others_without_checksums_are_read(tmp_path):
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"w": torch.ones(2)}, tmp_path / "theirs.pt")
    finally:
        torch.serialization.set_crc32_options(True)
    torch.save({"w": torch.ones(2)}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    for name in ("theirs.pt", "old.pt"):
        assert damage(tmp_path / name) == ""
        assert checkpoints.load(tmp_path / name)["w"].sum() == 2


def test_deterministic_kernels_change_nothing_here_and_those_that_are_missing_are_named(
    tmp_path, trained, monkeypatch
):
    try:
        assert run(tmp_path / "a", *TRAINING, "deterministic=true")["state"] == "done"
        assert torch.are_deterministic_algorithms_enabled()
        with pytest.raises(RuntimeError) as error:
            torch.zeros(3).put_(torch.tensor([0, 0]), torch.ones(2))
        assert "put_" in determinism.missing(error.value)
        with monkeypatch.context() as patch:
            patch.setattr(
                training,
                "train_step",
                lambda *_: torch.zeros(3).put_(torch.tensor([0, 0]), torch.ones(2)),
            )
            status = run(tmp_path / "b", *TRAINING, "deterministic=true")
        assert status["exit_code"] == 2 and "no such kernel for put_" in status["error"]
    finally:
        determinism.demand(False)
    assert not torch.are_deterministic_algorithms_enabled()
    good, found = (
        torch.load(each / "checkpoints" / "last.pt", weights_only=True)["model"]
        for each in (trained, tmp_path / "a")
    )
    assert all(torch.equal(good[key], found[key]) for key in good)

"""Checkpoints that cannot be read now, or never again: none is thrown away."""

import errno
import io
import os
import zipfile

import pytest
import torch
from hostile_files import Payload
from running import TRAINING, interrupted, run

from advtrain import checkpoints, intact
from advtrain.newest import DAMAGED, PREVIOUS, CheckpointLost, load_newest


@pytest.fixture
def last(tmp_path):
    path = tmp_path / "run" / "checkpoints" / "last.pt"
    for epoch in (1, 2):
        content = {"model": {"w": torch.full((3,), float(epoch))}, "epoch": epoch}
        checkpoints.save(path, content, kept=path.with_name(PREVIOUS))
    return path


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def failing(error):
    def fail(*args, **kwargs):
        raise error

    return fail


def disk(number):
    return OSError(number, os.strerror(number))


PLACES = {
    "opening": (io, "open"),
    "checksums": (zipfile.ZipFile, "testzip"),
    "reading": (torch, "load"),
}
ERRORS = [disk(errno.EIO), disk(errno.ESTALE), disk(errno.EMFILE), disk(errno.EACCES)]
MEMORY = [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")]


@pytest.mark.parametrize("error", [*ERRORS, *MEMORY], ids=repr)
@pytest.mark.parametrize("place", PLACES)
def test_what_cannot_be_read_now_is_not_damaged(last, monkeypatch, place, error):
    before = files(last.parent)
    with monkeypatch.context() as patch:
        patch.setattr(*PLACES[place], failing(error))
        with pytest.raises(type(error)) as raised:
            load_newest(last)
    if isinstance(error, OSError):
        assert (raised.value.errno, raised.value.filename) == (error.errno, str(last))
    assert files(last.parent) == before
    assert load_newest(last)["epoch"] == 2


def test_an_archive_of_which_the_end_cannot_be_read_is_not_taken_for_another_file(
    last, monkeypatch
):
    class Broken(io.BytesIO):
        def seek(self, *_):
            raise disk(errno.EIO)

    monkeypatch.setattr(io, "open", lambda *_, **__: Broken(b"PK\3\4"))
    with pytest.raises(OSError, match="Input/output error"):
        intact.damage(last)


def test_a_damaged_checkpoint_is_kept_beside_the_one_that_takes_its_place(last):
    spoilt = last.read_bytes()[:-40]
    last.write_bytes(spoilt)
    assert load_newest(last)["epoch"] == 1
    assert files(last.parent)[DAMAGED] == spoilt
    assert checkpoints.load(last)["epoch"] == 1


def test_what_is_the_matter_with_the_one_before_is_told(last):
    last.write_bytes(last.read_bytes()[:-40])
    before = files(last.parent)
    torch.save({"model": Payload(last)}, last.with_name(PREVIOUS))
    with pytest.raises(CheckpointLost, match=r"previous\.pt is damaged, or holds objects beside"):
        load_newest(last)
    last.with_name(PREVIOUS).unlink()
    with pytest.raises(CheckpointLost, match=r"there is no previous\.pt\. Put back a copy"):
        load_newest(last)
    assert files(last.parent) == {last.name: before[last.name]}


def test_a_command_given_while_the_disk_is_away_leaves_the_first_checkpoint(tmp_path, monkeypatch):
    interrupted(tmp_path, 2, *TRAINING)
    before = files(tmp_path / "checkpoints")
    with monkeypatch.context() as patch:
        patch.setattr(torch, "load", failing(disk(errno.EIO)))
        status = run(tmp_path, *TRAINING)
    assert status["exit_code"] == 1 and "last.pt: Input/output error." in status["error"]
    assert files(tmp_path / "checkpoints") == before
    assert run(tmp_path, *TRAINING)["state"] == "done"


def test_a_first_checkpoint_that_is_damaged_is_kept_while_training_begins_anew(tmp_path):
    interrupted(tmp_path, 2, *TRAINING)
    folder = tmp_path / "checkpoints"
    (folder / "last.pt").write_bytes(b"half")
    assert run(tmp_path, *TRAINING)["state"] == "done"
    assert (folder / DAMAGED).read_bytes() == b"half"

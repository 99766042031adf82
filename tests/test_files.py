import errno
import fcntl
import math
import os
import time

import pytest

from advtrain import status
from advtrain.certification.lines import claim
from advtrain.files import (
    BESIDE,
    keep,
    remove_leftovers,
    write_atomic,
    write_bytes,
    write_json,
    write_text,
)
from advtrain.lock import locked


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a" / "results.json"
    write_json(path, {"rows": []})

    def broken(stream):
        stream.write(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomic(path, broken)
    with pytest.raises(ValueError):
        write_json(path, {"loss": float("nan")})
    assert path.read_text() == '{\n  "rows": []\n}\n'
    assert os.listdir(path.parent) == ["results.json"]


def test_others_may_read_what_is_written(tmp_path):
    old = os.umask(0o022)
    try:
        write_text(tmp_path / "table.md", "é")
    finally:
        os.umask(old)
    assert (tmp_path / "table.md").stat().st_mode & 0o777 == 0o644
    assert (tmp_path / "table.md").read_bytes() == "é".encode()


def test_what_its_owner_hid_stays_hidden_and_the_umask_is_never_let_go(tmp_path, monkeypatch):
    write_text(tmp_path / "results.json", "1")
    (tmp_path / "results.json").chmod(0o600)
    monkeypatch.setattr(os, "umask", None)  # which is of all threads
    write_text(tmp_path / "results.json", "2")
    assert (tmp_path / "results.json").stat().st_mode & 0o777 == 0o600


def test_the_version_before_is_kept_whole_whatever_was_killed_when(tmp_path):
    path, kept = tmp_path / "last.pt", tmp_path / "previous.pt"
    for number in range(3):
        write_atomic(path, lambda stream, n=number: stream.write(b"%d" % n), kept=kept)
    assert (path.read_bytes(), kept.read_bytes()) == (b"2", b"1")
    keep(path, kept)  # as where a writer was killed between the two names
    write_atomic(path, lambda stream: stream.write(b"3"), kept=kept)
    assert (path.read_bytes(), kept.read_bytes()) == (b"3", b"2")
    assert sorted(os.listdir(tmp_path)) == ["last.pt", "previous.pt"]


def test_without_hard_links_the_version_before_is_kept_all_the_same(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", refuse)
    path, kept = tmp_path / "last.pt", tmp_path / "previous.pt"
    for number in range(2):
        write_atomic(path, lambda stream, n=number: stream.write(b"%d" % n), kept=kept)
    assert (path.read_bytes(), kept.read_bytes()) == (b"1", b"0")


def test_leftovers_of_the_dead_go_and_files_of_living_writers_stay(tmp_path):
    (tmp_path / f".table.md.dead{BESIDE}").write_text("half")

    def write(stream):
        remove_leftovers(tmp_path)
        stream.write(b"whole")

    write_atomic(tmp_path / "table.md", write)
    assert os.listdir(tmp_path) == ["table.md"]
    assert (tmp_path / "table.md").read_bytes() == b"whole"


def test_hidden_files_of_others_are_no_leftovers_nor_is_what_a_link_leads_to(tmp_path):
    run, mine = tmp_path / "run", tmp_path / "mine"
    run.mkdir()
    mine.mkdir()
    dead = f".table.md.dead{BESIDE}"
    kept = [run / ".env.tmp", run / ".table.md.3f9a01cc.tmp", mine / dead]
    for path in (*kept, run / dead):
        path.write_text("mine")
    (run / "plots").symlink_to(mine)
    os.mkfifo(run / f".pipe.dead{BESIDE}")
    remove_leftovers(run, run / "plots")
    assert all(path.exists() for path in kept) and not (run / dead).exists()


@pytest.mark.parametrize("wait", [0, 0.1, math.inf])
def test_a_lock_leaves_what_is_there_and_follows_no_link(tmp_path, wait):
    mine, lock = tmp_path / "mine", tmp_path / ".lock"
    mine.write_text("keys")
    for leads in (mine, tmp_path / "absent"):
        lock.symlink_to(leads)
        with pytest.raises(OSError, match="it is a link") as error, locked(lock, wait=wait):
            pass
        assert error.value.filename == str(lock)
        lock.unlink()
    os.mkfifo(lock)
    with pytest.raises(OSError, match="it is no file"), locked(lock, wait=wait):
        pass
    lock.unlink()
    lock.mkdir()
    with pytest.raises(OSError, match="it is no file"), locked(lock, wait=wait):
        pass
    lock.rmdir()
    lock.write_text("of others")
    with locked(lock, wait=wait):
        assert lock.read_text() == "of others"
    assert mine.read_text() == "keys" and not (tmp_path / "absent").exists()


def test_a_lock_of_another_user_can_be_taken(tmp_path, monkeypatch):
    def refuse(path, flags, mode=0o777, real=os.open):
        if path == lock and flags & (os.O_RDWR | os.O_CREAT):  # as for a file of mode 644
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path, flags, mode)

    lock = tmp_path / ".lock"
    lock.touch(0o644)
    monkeypatch.setattr(os, "open", refuse)
    with locked(lock), pytest.raises(BlockingIOError), locked(lock, wait=0):
        pass
    lock.unlink()
    with pytest.raises(PermissionError), locked(lock):
        pass


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP])
def test_a_disk_without_locks_takes_files_and_is_told_of_folders(tmp_path, monkeypatch, number):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    write_text(tmp_path / "table.md", "whole")
    (tmp_path / f".table.md.half{BESIDE}").touch()  # perhaps of a living writer
    remove_leftovers(tmp_path)
    assert len(os.listdir(tmp_path)) == 2 and (tmp_path / "table.md").read_text() == "whole"
    with pytest.raises(OSError, match="its disk has no file locks"), locked(tmp_path / ".lock"):
        pass


def test_a_lock_is_waited_for_so_long(tmp_path):
    with locked(tmp_path / ".lock"):
        began = time.monotonic()
        with pytest.raises(BlockingIOError), locked(tmp_path / ".lock", wait=0.15):
            pass
        assert time.monotonic() - began >= 0.15
    with locked(tmp_path / ".lock", wait=0):
        pass


def test_a_damaged_status_is_that_from_before(tmp_path):
    status.write(tmp_path, "running", identity="a")
    status.write(tmp_path, "done", exit_code=0)
    content = (tmp_path / "status.json").read_bytes()
    write_bytes(tmp_path / "status.json", content[:20])
    assert status.read(tmp_path) == {"state": "running", "error": None, "identity": "a"}
    status.write(tmp_path, "done", exit_code=0)
    assert (tmp_path / "status.json").read_bytes() == content
    (tmp_path / "status.json").unlink()  # whoever removes it wants none
    assert status.read(tmp_path) == {}


@pytest.mark.parametrize("text", ["", '{"key": "k', "[]", "\0\0"])
def test_logs_with_a_damaged_header_begin_anew(tmp_path, caplog, text):
    header, log = tmp_path / "certify.json", tmp_path / "certify.tsv"
    log.write_text("of whatever")
    header.write_text(text)
    claim(header, "k", {"n": 3}, [log])
    assert not log.exists()
    log.write_text("of k")
    claim(header, "k", {"n": 3}, [log])
    assert log.exists()

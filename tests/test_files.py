import errno
import os
import time

import pytest

from advtrain import status
from advtrain.certification.lines import claim
from advtrain.files import (
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
    (tmp_path / ".table.md.dead.tmp").write_text("half")

    def write(stream):
        remove_leftovers(tmp_path)
        stream.write(b"whole")

    write_atomic(tmp_path / "table.md", write)
    assert os.listdir(tmp_path) == ["table.md"]
    assert (tmp_path / "table.md").read_bytes() == b"whole"


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

import os

import pytest

from advtrain.files import write_atomic, write_json, write_text


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

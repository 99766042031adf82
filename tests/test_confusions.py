"""Confusion matrices of attacks: from results.json, read with distrust, to a figure and a page."""

import pytest
from report_files import put, results, row

from advtrain.reporting.confusions import confusion_matrices, shares_of
from advtrain.reporting.reading import read_run
from advtrain.reporting.writing import write_run

TABLE = [[3, 1], [0, 4]]


def read(tmp_path, *tables):
    rows = [row(f"r{i}", 0.5, confusion=table) for i, table in enumerate(tables)]
    return read_run(put(tmp_path, results(rows=rows), {"state": "done"}))


def test_a_square_of_counts_is_read(tmp_path):
    (told,) = read(tmp_path, TABLE).rows
    assert told.confusion == ((3, 1), (0, 4))
    assert shares_of(told.confusion) == [[0.75, 0.25], [0, 1]]
    assert shares_of([[0, 0], [1, 1]]) == [[0, 0], [0.5, 0.5]]


@pytest.mark.parametrize(
    "damaged",
    [None, "x", [[1, 2]], [[1], [2]], [[1, -2], [3, 4]], [[1, 2.5], [3, 4]], [[1, "2"], [3, 4]]],
)
def test_anything_else_is_nothing(tmp_path, damaged):
    (told,) = read(tmp_path, damaged).rows
    assert told.confusion == ()
    assert confusion_matrices(read(tmp_path, damaged), tmp_path / "none.png") is None


def test_the_page_shows_a_panel_for_each_row(tmp_path):
    directory = read(tmp_path, TABLE, None, [[9] * 12] * 12, *[TABLE] * 4).directory
    write_run(directory)
    assert (directory / "plots" / "confusion.png").stat().st_size > 5_000
    assert "<h2>Answers by class</h2>" in (directory / "report.html").read_text()

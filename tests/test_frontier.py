"""The frontier of standard and robust accuracy: areas, dominated points, what a report shows."""

import json
from pathlib import Path

import pytest

from advtrain.reporting.frontier import FIXED, area, compared, dominated, frontiers
from advtrain.reporting.frontier_formats import comma_separated, latex, markdown, sentences
from advtrain.reporting.frontier_plots import frontier_curves
from advtrain.reporting.reading import read_run
from advtrain.reporting.tables import accuracy_table
from advtrain.reporting.writing import write_run, write_set

DIALLED = {0.0: (0.95, 0.0), 0.2: (0.9, 0.4), 0.3: (0.85, 0.4), 1.0: (0.8, 0.6)}
FIXED_ONES = {0.0: (0.96, 0.0), 0.2: (0.88, 0.5), 1.0: (0.8, 0.5)}


def row(name: str, view: str, accuracy: float) -> dict:
    norm = {} if name == "clean" else {"norm": "linf", "eps": 0.1, "steps": 20, "restarts": 1}
    return {"name": name, "view": view, "accuracy": accuracy, "n": 100, "ci95": [0, 1], **norm}


def write(folder: Path, rows: list[dict], defense: dict, **more) -> Path:
    folder.mkdir(parents=True)
    content = {
        "schema": 1,
        "name": folder.name,
        "dataset": {"name": "digits", "split": "test", "n": 100},
        "model": {"name": "m", "parameters": 1},
        "defense": "d",
        "threat": {"norm": "linf", "eps": 0.1},
        "seed": 0,
        "rows": rows,
        "worst_case": {},
        "certified": None,
        "warnings": [],
        "config": {"defense": defense, "seed": 0},
        "environment": {},
        **more,
    }
    (folder / "results.json").write_text(json.dumps(content))
    return folder


def rows(view: str, standard: float, robust: float) -> list[dict]:
    weak = row("fgsm", view, min(1, robust + 0.05))
    return [row("clean", view, standard), weak, row("pgd_linf", view, robust)]


@pytest.fixture
def grid(tmp_path: Path) -> Path:
    seen = [each for lam, both in DIALLED.items() for each in rows(f"lambda={lam}", *both)]
    write(tmp_path / "grid" / "0", seen, {"_target_": "advtrain.defenses.oat.Oat"})
    for place, (lam, both) in enumerate(FIXED_ONES.items()):
        defense = {"_target_": "advtrain.defenses.mixed_at.MixedAt", "share": lam}
        if lam == 0:
            defense = {"_target_": "advtrain.defenses.standard.Standard"}
        write(tmp_path / "grid" / str(place + 1), rows("identity", *both), defense)
    return tmp_path / "grid"


def found(grid: Path):
    runs = [read_run(path) for path in sorted(grid.iterdir()) if path.is_dir()]
    return frontiers(accuracy_table(runs))


def test_the_area_is_that_of_the_union_of_rectangles():
    assert area([]) == 0 and area([(0.5, 0.4)]) == pytest.approx(0.2)
    assert area([(0.5, 0.4), (0.4, 0.3)]) == pytest.approx(0.2)
    assert area([(0.9, 0.1), (0.5, 0.5)]) == pytest.approx(0.09 + 0.2)
    assert area([(0.5, 0.5), (0.9, 0.1), (0.5, 0.5)]) == pytest.approx(0.29)


def test_the_area_between_curves_is_what_only_one_of_them_reaches():
    first, second = [(0.9, 0.1), (0.5, 0.5)], [(0.8, 0.3)]
    both = compared("a", first, second)
    shared = 0.08 + 0.1  # below both: 0.8 x 0.1 and 0.5 x 0.2
    assert both.beyond == pytest.approx(0.29 - shared)
    assert both.missed == pytest.approx(0.24 - shared)
    assert both.between == pytest.approx(0.29 + 0.24 - 2 * shared)
    assert compared("a", first, first).between == pytest.approx(0)


def test_a_point_is_dominated_by_one_as_good_in_both_and_better_in_one():
    assert dominated((0.5, 0.5), [(0.5, 0.6)]) and dominated((0.5, 0.5), [(0.6, 0.6)])
    assert not dominated((0.5, 0.5), [(0.5, 0.5), (0.6, 0.4), (0.4, 0.6)])


def test_curves_are_read_from_views_and_from_fixed_trainings(grid):
    (frontier,) = found(grid)
    assert frontier.attack == "pgd_linf"  # it leaves less than fgsm
    one, fixed = frontier.curves
    assert [point.lam for point in one.points] == [0.0, 0.2, 0.3, 1.0]
    assert [point.at for point in one.points] == list(DIALLED.values())
    assert fixed.label == FIXED and [point.at for point in fixed.points] == [*FIXED_ONES.values()]
    assert [point.dominated for point in one.points] == [True, False, True, False]
    assert [point.dominated for point in fixed.points] == [False, False, True]
    assert one.area == pytest.approx(area(DIALLED.values()))
    (comparison,) = frontier.comparisons
    assert comparison.beyond - comparison.missed == pytest.approx(one.area - fixed.area)


def test_seeds_are_folded_before_a_curve_is_drawn(tmp_path):
    for seed, shift in ((0, 0.0), (1, 0.1)):
        seen = [
            each
            for lam, (standard, robust) in {0: (0.8, 0.2), 1: (0.7, 0.4)}.items()
            for each in rows(f"lambda={lam}", standard + shift, robust)
        ]
        more = {"seed": seed, "config": {"defense": {"_target_": "O"}, "seed": seed}}
        write(tmp_path / "g" / str(seed), seen, {}, **more)
    (frontier,) = found(tmp_path / "g")
    (curve,) = frontier.curves
    assert [point.at for point in curve.points] == [
        (pytest.approx(0.85), pytest.approx(0.2)),
        (pytest.approx(0.75), pytest.approx(0.4)),
    ]
    assert curve.points[0].standard.std == pytest.approx(0.0707, abs=1e-4)
    assert frontier.comparisons == ()


def test_runs_without_lambdas_have_no_frontier(tmp_path):
    write(tmp_path / "g" / "0", rows("identity", 0.9, 0.3), {"_target_": "a.PgdAt"})
    assert found(tmp_path / "g") == ()


def test_the_table_the_page_and_the_figure_show_it(grid):
    write_set([grid], grid)
    text, page = (grid / "table.md").read_text(), (grid / "report.html").read_text()
    (frontier,) = found(grid)
    between = next(each for each in sentences(frontier) if each.startswith("Area between"))
    for shown in (text, (grid / "table.tex").read_text(), page):
        assert "dominated" in shown and FIXED in shown
    assert between in page and between in text
    assert (grid / "plots" / "frontier.png").is_file()
    lines = (grid / "frontier.csv").read_text().splitlines()
    assert len(lines) == 1 + len(DIALLED) + len(FIXED_ONES)
    assert lines[0].split(",")[-4:] == ["area", "between", "beyond", "missed"]


def test_a_single_run_shows_its_own_curve(grid):
    write_run(grid / "0")
    assert (grid / "0" / "plots" / "frontier.png").is_file()
    assert "Area below each curve" in (grid / "0" / "report.html").read_text()
    assert not (grid / "0" / "table.md").read_text().count("Area between")


def test_nothing_is_said_where_there_is_nothing(tmp_path):
    assert markdown(()) == latex(()) == ""
    assert len(comma_separated(()).splitlines()) == 1
    assert frontier_curves((), tmp_path / "a.png") is None

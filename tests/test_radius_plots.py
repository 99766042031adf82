"""Curves of accuracy by the radius of an attack, from the rows of results.json."""

from report_files import put, results, row

from advtrain.reporting.radius_plots import ascents, radius_curves
from advtrain.reporting.reading import read_run

CLEAN = row("clean", 0.9)


def at(eps, accuracy, attack="pgd", norm="linf", **more):
    return row(f"{attack}_{eps}_{accuracy}", accuracy, norm=norm, eps=eps, attack=attack, **more)


def read(tmp_path, *rows):
    return read_run(put(tmp_path, results(rows=list(rows)), {"state": "done"}))


def points(ascent):
    return [(row.eps, row.accuracy) for row in ascent.rows]


def test_rows_of_one_attack_are_a_curve_from_the_clean_images_on(tmp_path):
    run = read(tmp_path, CLEAN, at(0.2, 0.1), at(0.1, 0.5), at(0.1, 0.6), at(0.1, 0.3, "fgsm"))
    (found,) = ascents([("", run)])
    assert (found.label, found.norm) == ("pgd", "linf")
    assert points(found) == [(None, 0.9), (0.1, 0.5), (0.2, 0.1)]  # of equal radii the lower one


def test_attacks_norms_views_and_runs_stay_apart(tmp_path):
    rows = [CLEAN, at(0.1, 0.5), at(0.2, 0.4), at(1.0, 0.5, norm="l2"), at(2.0, 0.4, norm="l2")]
    seen = [row("clean", 0.8, view="v"), *(at(eps, 0.2, view="v") for eps in (0.1, 0.2))]
    runs = [("one", read(tmp_path / "1", *rows)), ("two", read(tmp_path / "2", *rows[:3], *seen))]
    found = [(each.label, each.norm) for each in ascents(runs)]
    one = [("one, pgd", "linf"), ("one, pgd", "l2")]
    assert found == [*one, ("two, pgd", "linf"), ("two, pgd, v", "linf")]
    assert radius_curves(runs, tmp_path / "radii.png") == tmp_path / "radii.png"


def test_one_radius_is_no_curve(tmp_path):
    run = read(tmp_path, CLEAN, at(0.1, 0.5), at(0.1, 0.3, "fgsm"))
    assert ascents([("", run)]) == []
    assert radius_curves([("", run)], tmp_path / "none.png") is None

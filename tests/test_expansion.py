"""A line into jobs: products of lists and ranges, and rows whose values stay together."""

import pytest

from advtrain.config import ConfigError
from advtrain.expansion import expand, single

ROWS = [{"defense": "trades", "optimizer.lr": 0.05}, {"defense": "mart", "epochs": None}]


def test_lists_and_ranges_are_multiplied_the_last_fastest():
    found = expand(["defense=mart,trades", "seed=range(0,2)", "epochs=3"])
    assert found == [
        ["defense=mart", "seed=0", "epochs=3"],
        ["defense=mart", "seed=1", "epochs=3"],
        ["defense=trades", "seed=0", "epochs=3"],
        ["defense=trades", "seed=1", "epochs=3"],
    ]


def test_values_of_a_row_stay_together():
    assert expand(["seed=0,1"], rows=ROWS) == [
        ["defense=trades", "optimizer.lr=0.05", "seed=0"],
        ["defense=trades", "optimizer.lr=0.05", "seed=1"],
        ["defense=mart", "epochs=null", "seed=0"],
        ["defense=mart", "epochs=null", "seed=1"],
    ]


def test_the_command_line_counts_more_than_a_row_and_a_row_more_than_the_experiment():
    found = expand(["epochs=1"], params={"seed": "0,1", "epochs": "7"}, rows=[{"seed": 5}])
    assert found == [["seed=5", "epochs=1"]]


def test_a_row_may_hold_lists_of_its_own_and_nodes():
    row = {"seed": "0,1", "freeze": ["body", "head"], "published": {"clean": 0.5}, "resume": True}
    found = expand([], rows=[row])
    rest = ["freeze=[body,head]", "published={clean:0.5}", "resume=True"]
    assert found == [["seed=0", *rest], ["seed=1", *rest]]


@pytest.mark.parametrize("rows", [[], 3, "defense", [1], [{"seed": 0}, {}]])
def test_rows_that_are_none_are_refused(rows):
    with pytest.raises(ConfigError, match=r"hydra\.sweeper\.rows.*row"):
        expand([], rows=rows)


def test_a_list_without_values_is_refused():
    with pytest.raises(ConfigError, match=r"^seed=range\(3,3\): a list of no values makes no job"):
        expand(["seed=range(3,3)", "epochs=2"])


def test_all_values_between_two_are_for_a_search():
    with pytest.raises(ConfigError, match=r"optimizer\.lr=interval\(0,1\).*optuna"):
        expand(["optimizer.lr=interval(0,1)"])


def test_what_all_jobs_share_is_what_is_no_list():
    assert single(["seed=0,1", "epochs=2", "freeze=[a,b]", "lr=range(0,3)"]) == [
        "epochs=2",
        "freeze=[a,b]",
    ]

"""Launchers and sweepers of others: refused in a sentence where they cannot work, and run here."""

import json
import re
import socket

import pytest
from hydra._internal.sources_registry import SourcesRegistry
from hydra.core.plugins import Plugins
from omegaconf import OmegaConf
from running import TRAINING, command

from advtrain.complaints import explain
from advtrain.config import ConfigError
from advtrain.config_source import read_within_bounds
from advtrain.engines import require_engines
from advtrain.main import merit
from advtrain.places import NUMBERED


def config(group, option, **keys):
    """A grid with that launcher or sweeper, and its keys."""
    choices = {"hydra/launcher": "basic", "hydra/sweeper": "grid", f"hydra/{group}": option}
    nodes = {"launcher": {}, "sweeper": {}, "sweep": {"subdir": NUMBERED}, group: keys}
    return OmegaConf.create({"hydra": {"runtime": {"choices": choices}, **nodes}})


def test_a_cluster_that_is_not_there_is_told_before_anything_starts(monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ConfigError, match="submitit_slurm: there is no sbatch on this machine"):
        require_engines(config("launcher", "submitit_slurm"))
    with socket.socket() as taken:  # bound, and listening to nobody
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        ray = {"ray": {"init": {"address": address}}}
        with pytest.raises(ConfigError, match=f"{address}: no ray cluster answers there"):
            require_engines(config("launcher", "ray", **ray))
        taken.listen()
        require_engines(config("launcher", "ray", **ray))
    for address in (None, "auto"):
        require_engines(config("launcher", "ray", ray={"init": {"address": address}}))
    for address in ("127.0.0.1", "host:99999", "ray://host", ":6379"):
        with pytest.raises(ConfigError, match=f"address={address} is refused; allowed are HOST"):
            require_engines(config("launcher", "ray", ray={"init": {"address": address}}))


@pytest.mark.parametrize(
    "wrong",
    [
        {"slots": 0},
        {"slots": "all"},
        {"slots": True},
        {"timeout": 0},
        {"grace": -1},
        {"retries": -1},
    ],
)
def test_keys_of_the_pool_are_refused_with_their_value(wrong):
    keys = {"slots": "auto", "timeout": None, "grace": 60, "retries": 0}
    (key,) = wrong
    with pytest.raises(ConfigError, match=f"hydra.launcher.{key}=.* is refused; allowed"):
        require_engines(config("launcher", "pool", **{**keys, **wrong}))
    require_engines(config("launcher", "pool", **keys))


@pytest.mark.parametrize(
    "wrong", [{"direction": "minimize"}, {"direction": "up"}, {"n_trials": 0}, {"n_jobs": -1}]
)
def test_a_search_that_would_minimise_robustness_or_do_nothing_is_refused(wrong):
    keys = {"direction": "maximize", "n_trials": 2, "n_jobs": 1}
    (key,) = wrong
    with pytest.raises(ConfigError, match=rf"hydra.sweeper.{key}={wrong[key]} is refused"):
        require_engines(config("sweeper", "optuna", **{**keys, **wrong}))
    require_engines(config("sweeper", "optuna", **keys))


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("optimizer.lr=interval(5,1)", "it begins at 5 and ends below, at 1"),
        ("optimizer.lr=tag(log,interval(0,1))", "a logarithmic scale begins above 0"),
        ("epochs=range(9,2)", "it begins at 9 and ends below, at 2"),
    ],
)
def test_an_interval_without_values_is_refused(override, told):
    keys = {"direction": "maximize", "n_trials": 2, "n_jobs": 1}
    key, _, value = override.partition("=")
    for line, params in (([override], None), ([], {key: value})):
        searched = config("sweeper", "optuna", **keys, params=params)
        with pytest.raises(ConfigError, match=rf"{re.escape(override)} is refused: {told}"):
            require_engines(searched, line)
    fine = ["optimizer.lr=tag(log,interval(0.01,1))", "epochs=range(2,9)", "seed=1,2", "name=a"]
    require_engines(config("sweeper", "optuna", **keys), fine)


def test_an_engine_that_is_not_installed_names_its_extra():
    Plugins.instance()  # as the command has asked for it by then
    error = Exception("Could not find 'hydra/launcher/ray'")
    assert "pip install '.[ray]'" in explain(error, [], None)
    error = Exception("Could not find 'hydra/launcher/poool'")
    told = explain(error, [], None)  # with more behind them where extras are installed
    assert "there is no such option. Allowed: basic, pool" in told


def test_what_a_search_maximises_is_of_validation_images(tmp_path):
    lines = [{"epoch": 1, "val_acc": 0.9, "val_adv_acc": 0.4}, {"epoch": 2, "val_adv_acc": 0.5}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert merit(tmp_path) == 0.5
    (tmp_path / "metrics.jsonl").write_text('{"epoch": 1, "val_acc": 0.9}\n')
    assert merit(tmp_path) == 0.9 and merit(tmp_path / "none") is None


SEARCH = (
    *("hydra/sweeper=optuna", "hydra.sweeper.n_trials=2", "hydra.sweeper.n_jobs=1"),
    *("hydra.sweeper.direction=maximize", "optimizer.lr=interval(0.001,0.1)"),
)
ENGINES = {
    "hydra_submitit_launcher": ("hydra/launcher=submitit_local", "seed=0,1"),
    "hydra_ray_launcher": ("hydra/launcher=ray", "seed=0,1"),
    "hydra_optuna_sweeper": SEARCH,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ENGINES)
def test_engines_run_grids_on_this_machine(tmp_path, name):
    pytest.importorskip(f"hydra_plugins.{name}", reason="an extra")
    found = command("-m", *TRAINING, *ENGINES[name], "hydra.sweep.dir=grid", cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    known = [json.loads((tmp_path / "grid" / n / "status.json").read_text()) for n in ("0", "1")]
    assert [each["state"] for each in known] == ["done", "done"]
    assert {each["family"] for each in known} == {"grid"}
    assert (tmp_path / "grid" / "table.md").exists()


def test_sources_of_configurations_are_those_that_other_processes_know():
    """Launchers send the registry along; Hydra there refuses another class under a known name."""
    read_within_bounds()
    assert SourcesRegistry.instance().types["file"].__module__.startswith("hydra.")

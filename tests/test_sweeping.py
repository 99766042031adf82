"""A grid against what its folder holds: nothing twice, nothing lost, nothing of others touched."""

import json
import os
from pathlib import Path

import pytest
from grids import grid
from hydra.core.utils import JobReturn, JobStatus
from omegaconf import OmegaConf
from running import TRAINING

from advtrain import status
from advtrain.composing import Composer
from advtrain.config import ConfigError
from advtrain.grid import Locate, parse
from advtrain.ledger import close, codes, identity, survey
from advtrain.lock import locked
from advtrain.main import validate
from advtrain.sweeping import jobs, sweep

LINES = (
    ["logger=none", "seed=1"],
    ["logger=none", "seed=2"],  # from the copy that the first one made
    ["defense=trades", "++defense.beta=3", "~packages", "seed=0"],
    ["hydra.sweep.subdir='3'", "eval=none", "+published.clean=0.5", "threat.eps=8/255"],
    ["experiment=oat_svhn", "row=oat_svhn/lambda_0.1", "scale=smoke", "epochs=2"],
)


@pytest.mark.parametrize("line", LINES, ids=" ".join)
def test_a_job_is_composed_as_hydra_does_it(line):
    with grid("seed=0,1") as here:
        composer = Composer(here.loader, here.config)
        composer(["logger=none", "seed=7"])
        found = composer(line)
        wanted = here.loader.load_sweep_config(here.config, line)
        for config in (found, wanted):
            config.hydra.sweep.dir = "same"
        plain = [OmegaConf.to_container(config, resolve=False) for config in (found, wanted)]
    assert plain[0] == plain[1]


class Launcher:
    """Writes the status that each job would: `done`, unless `ends` has another for a word of it."""

    def __init__(self, folder: Path, ends: dict[str, str]) -> None:
        self.folder, self.ends = folder, ends
        self.names: dict[tuple[str, ...], str] = {}
        self.lines: list[list[str]] = []

    def launch(self, lines, initial_job_idx):
        self.lines = [list(line) for line in lines]
        for line in self.lines:
            number = line[-1].removeprefix("hydra.sweep.subdir=").strip("'").replace("\\'", "'")
            state = next((state for word, state in self.ends.items() if word in line), "done")
            facts = {"identity": self.names[tuple(line[:-1])], "config": {"job": "train"}}
            status.write(self.folder / number, state, **facts, exit_code=int(state != "done"))
        return [JobReturn(status=JobStatus.COMPLETED) for _ in lines]

    @property
    def seeds(self):
        return [next(each for each in line if each.startswith("seed=")) for line in self.lines]

    @property
    def folders(self):
        return [line[-1] for line in self.lines]


def swept(folder, *overrides, ends=None):
    """One invocation; the launcher, with the jobs that reached it."""
    launcher = Launcher(folder, ends or {})
    with grid(*TRAINING, f"hydra.sweep.dir={folder}", *overrides) as here:
        found = jobs(here.config, here.context, here.arguments)
        launcher.names = {job.overrides: job.identity for job in found}
        try:
            sweep(here.config, here.context, launcher, here.arguments)
        finally:
            Locate.held.close()
            Locate.sweep = None
    return launcher


def test_what_is_done_is_left_out_and_more_seeds_get_the_next_numbers(tmp_path, capsys):
    first = swept(tmp_path, "seed=0,1", ends={"seed=1": "interrupted"})
    assert first.seeds == ["seed=0", "seed=1"]
    again = swept(tmp_path, "seed=2,1,0")
    assert again.seeds == ["seed=2", "seed=1"]
    assert again.folders == ["hydra.sweep.subdir='2'", "hydra.sweep.subdir='1'"]
    assert "1 of 3 jobs are finished" in capsys.readouterr().err
    assert swept(tmp_path, "seed=0,1,2").lines == []
    assert swept(tmp_path, "seed=0", "resume=false").folders == ["hydra.sweep.subdir='0'"]


def test_failed_jobs_are_tried_again_or_left(tmp_path, capsys):
    swept(tmp_path, "seed=0,1", ends={"seed=0": "failed"})
    assert swept(tmp_path, "seed=0,1", "hydra.sweeper.retry_failed=false").lines == []
    assert "1 have failed and are left so" in capsys.readouterr().err
    assert codes(tmp_path) == [1, 0]
    assert swept(tmp_path, "seed=0,1").folders == ["hydra.sweep.subdir='0'"]


def test_two_jobs_that_are_the_same_are_one_which_is_told(tmp_path, capsys):
    assert swept(tmp_path, "seed=0,0,1").seeds == ["seed=0", "seed=1"]
    assert "1 of 3 jobs compute what another does (the same line)" in capsys.readouterr().err
    identities("seed=0,1")
    assert capsys.readouterr().err == ""
    assert len(identities("name=a,b,c", "seed=0")) == 1
    assert "2 of 3 jobs compute what another does (name=b as name=a)" in capsys.readouterr().err


def test_a_wrong_job_of_an_experiment_is_found_before_the_first_runs(tmp_path):
    folder = tmp_path / "sweep"
    for wrong in ("+hydra.sweeper.params.seed='0,-1'", "hydra.sweeper.rows=[{seed:0},{seed:-1}]"):
        with pytest.raises(ConfigError, match="seed=-1 is refused"):
            swept(folder, wrong)
    with pytest.raises(ConfigError, match=r"defense=mad: there is no such option.*mart"):
        swept(folder, "hydra.sweeper.rows=[{defense:mad}]")
    with pytest.raises(ConfigError, match="nothing in this run reads it"):
        swept(folder, "eval=quick", "eval.size=3", "seed=0,1", "job=train")
    assert not folder.exists()


def test_two_grids_never_share_a_folder(tmp_path):
    with (
        locked(tmp_path / ".lock"),
        pytest.raises(ConfigError, match="another grid is at work there"),
    ):
        swept(tmp_path, "seed=0")


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ({"3/results.json": "{}"}, r"3/ holds results .*its status\.json is missing"),
        ({"3/status.json": '{"state": "do'}, r"3/ .*its status\.json cannot be read"),
        ({"3/status.json": '{"state": "done"}'}, r"3/ .* is of no grid, or of an older advtrain"),
        (
            {"3/status.json": '{"state": "done", "identity": "0123456789abcdef"}'},
            r"3/ .* is of no grid, or of an older advtrain",
        ),
        (
            {"3/status.json": '{"identity": "2-a"}', "3/results.json": '{"schema": 0}'},
            r"results\.json has schema 0, this advtrain writes 1",
        ),
        ({"status.json": '{"state": "done"}'}, "is the folder of a single run"),
    ],
)
def test_results_of_others_are_refused_and_left_alone(tmp_path, files, told):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=told):
        swept(tmp_path, "seed=0")
    assert {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*.*") if p.suffix} == set(files)


def test_a_single_run_in_the_folder_of_a_grid_is_refused(tmp_path):
    """It would write over the grid's tables, and the grid could not go on."""
    line = [*TRAINING, f"hydra.run.dir={tmp_path}"]
    validate(parse(line))
    swept(tmp_path, "seed=0")
    with pytest.raises(ConfigError, match="is the folder of a grid; choose another"):
        validate(parse(line))


def test_a_single_run_in_the_folder_of_a_job_is_that_job_or_is_refused(tmp_path):
    """The grid would count another evaluation as the job's own."""
    swept(tmp_path, "seed=0,1")
    line = [*TRAINING, f"hydra.run.dir={tmp_path / '0'}"]
    validate(parse([*line, "seed=0"]))
    for other in ("seed=1", "eval=quick"):
        with pytest.raises(ConfigError, match=r"/0 is the folder of a job of a grid"):
            validate(parse([*line, other]))


def test_folders_of_other_names_are_used_and_found_again(tmp_path):
    by_values = "hydra.sweep.subdir=${hydra:runtime.choices.defense}_${seed}"
    first = swept(tmp_path, "seed=0,1", by_values, ends={"seed=1": "interrupted"})
    assert first.folders == [f"hydra.sweep.subdir='pgd_at_{seed}'" for seed in (0, 1)]
    again = swept(tmp_path, "seed=0,1,2", by_values)
    assert again.folders == [f"hydra.sweep.subdir='pgd_at_{seed}'" for seed in (1, 2)]
    numbered = swept(tmp_path, "seed=2,3", "hydra.sweep.subdir=job_${hydra.job.num}")
    assert numbered.folders == ["hydra.sweep.subdir='job_0'"]
    numbered = swept(tmp_path, "seed=3,4", "hydra.sweep.subdir=job_${hydra.job.num}")
    assert numbered.folders == ["hydra.sweep.subdir='job_1'"]
    by_line = swept(tmp_path, 'name="it\'s"', "seed=5", "hydra.sweep.subdir=${name}")
    assert by_line.folders == [r"hydra.sweep.subdir='it\'s'"]


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (["hydra.sweep.subdir=all"], "subdir=all would hold two jobs, of which .*seed=1"),
        (["hydra.sweep.subdir=${name}/${seed}"], "subdir=digits-linear-pgd_at/0 is refused"),
        (["hydra.sweep.subdir=.."], r"subdir=\.\. is refused"),
        (["hydra.sweep.dir=elsewhere/${seed}"], "dir=elsewhere/1 of one job, .*/0 of the grid"),
    ],
)
def test_folders_that_jobs_would_share_or_that_would_not_be_found_are_refused(
    tmp_path, monkeypatch, line, told
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=told):
        swept(tmp_path / "grid", "seed=0,1", *line)
    assert not list(tmp_path.rglob("multirun.yaml"))


def test_a_folder_that_another_job_has_is_refused(tmp_path):
    swept(tmp_path, "seed=0", "hydra.sweep.subdir=mine")
    with pytest.raises(ConfigError, match="subdir=mine would hold two jobs"):
        swept(tmp_path, "seed=1", "hydra.sweep.subdir=mine")


def test_a_search_numbers_its_folders():
    line = ["-m", "hydra/sweeper=basic", "seed=0,1"]
    validate(parse(line))
    with pytest.raises(ConfigError, match="subdir=all: the folders of a search are numbers"):
        validate(parse([*line, "hydra.sweep.subdir=all"]))


def test_a_folder_that_a_killed_grid_left_empty_is_used(tmp_path):
    (tmp_path / "0" / ".hydra").mkdir(parents=True)
    assert swept(tmp_path, "seed=0").folders == ["hydra.sweep.subdir='0'"]


def test_results_that_are_cut_off_or_older_than_their_checkpoint_are_no_results(tmp_path):
    config = {"job": "eval", "eval": {"size": 1}, "checkpoint": str(tmp_path / "net.pt")}
    status.write(tmp_path / "grid" / "0", "done", identity="2-a", config=config)
    results = tmp_path / "grid" / "0" / "results.json"
    results.write_text('{"schema": 1}')
    assert survey(tmp_path / "grid")["2-a"].state == "done"
    results.write_text('{"schema": 1')
    assert survey(tmp_path / "grid")["2-a"].state == "interrupted"
    results.write_text('{"schema": 1}')
    (tmp_path / "net.pt").touch()
    os.utime(tmp_path / "net.pt", (2e9, 2e9))
    assert survey(tmp_path / "grid")["2-a"].state == "interrupted"


def test_a_job_whose_process_is_gone_is_told_as_failed(tmp_path):
    for number in ("0", "1"):
        status.write(tmp_path / number, "running", exit_code=0)
    with locked(tmp_path / "1" / ".lock"):
        close(tmp_path)
        states = [json.loads((tmp_path / n / "status.json").read_text()) for n in ("0", "1")]
    assert [each["state"] for each in states] == ["failed", "running"]
    assert "without a word" in states[0]["error"] and codes(tmp_path) == [1, 1]


def test_the_name_of_a_job_hangs_on_what_it_computes():
    config = {"seed": 0, "name": "a", "device": "cpu", "dataset": {"size": 3, "root": "x"}}
    names = {"defense": "trades", "logger": "none"}
    same = {**config, "name": "b", "device": "cuda", "dataset": {"root": "y", "size": 3}}
    assert identity(config, names) == identity(same, {"defense": "trades", "logger": "wandb"})
    others = [
        identity({**config, "seed": 1}, names),
        identity({**config, "dataset": {"size": 4}}, names),
        identity(config, {"defense": "mart"}),
    ]
    assert len({identity(config, names), *others}) == 4


def identities(*overrides):
    with grid(*TRAINING, *overrides) as here:
        return [job.identity for job in jobs(here.config, here.context, here.arguments)]


def test_what_is_told_beside_the_figures_of_a_job_is_not_its_name():
    plain = identities("defense=trades")
    assert plain == identities("defense=trades", "+published.clean=0.5", "paper.source=slides")
    assert plain == identities("defense=trades", "plan.steps=9", "device=cuda")


def test_a_number_has_one_name_however_it_is_spelled():
    plain = identities("defense=trades", "threat.eps=2/5")
    assert plain == identities("defense=trades", "defense.beta=6", "threat.eps=0.4")
    assert plain != identities("defense=trades", "defense.beta=6.5", "threat.eps=2/5")
    assert identities("dataset.eps.linf=1/10") == identities("dataset.eps.linf=0.1")


def test_of_folders_of_images_the_place_is_part_of_the_name(tmp_path, capsys):
    data = ("dataset=imagefolder", "dataset.validation=10")
    assert len(identities(*data, "dataset.root=/a,/b")) == 2
    assert identities(*data, f"dataset.root={Path.cwd()}/a") == identities(*data, "dataset.root=a")
    assert identities("dataset.root=/a") == identities("dataset.root=/b")


@pytest.mark.parametrize("told", ['"x"', "[1]", "1e999", "null", "0", "NaN", "true"])
def test_an_exit_code_that_is_none_is_that_of_a_failure(tmp_path, told):
    (tmp_path / "0").mkdir()
    (tmp_path / "0" / "status.json").write_text(f'{{"state": "failed", "exit_code": {told}}}')
    assert codes(tmp_path) == [1]

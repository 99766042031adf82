"""Whole jobs that are killed, cut off, starved or run twice at once: nothing is lost or changed."""

import errno
import random
import shutil
import threading
import time

import faults
import pytest
from faults import KINDS, Fault, attempt, sentences, server
from outcomes import differences, finished

from advtrain.lock import locked
from advtrain.reporting import cli

KILLS = 10  # of each kind; scripts/kill_runs.py does more


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    return tmp_path_factory.mktemp("faults")


@pytest.fixture(scope="module")
def jobs(here):
    """Each kind of job as it is where nothing disturbs it; done when it is first asked for."""
    made = {}

    def job(kind):
        if kind not in made:
            made[kind] = faults.undisturbed(kind, here)
        return made[kind]

    return job


@pytest.mark.parametrize("kind", KINDS)
def test_kills_at_random_moments_lose_nothing_and_change_nothing(jobs, here, kind):
    tally = faults.kill_and_repeat(jobs(kind), here, KILLS, seed=0)
    assert not tally.faults, "\n".join(tally.faults)
    assert sum(tally.kills.values()) == KILLS


@pytest.mark.parametrize("kind", KINDS)
def test_a_disk_that_fills_up_costs_nothing_but_a_sentence(jobs, here, kind):
    job, chance = jobs(kind), random.Random(kind)
    folder = here / f"{kind}-full"
    step = int(job.writes * chance.uniform(0.2, 0.8))
    full = attempt(job.line(folder), folder, Fault(write=step, error=errno.ENOSPC))
    assert not [*sentences(full, 1)]
    assert "No space left on device" in full.said
    seen = finished(folder)
    again = attempt(job.line(folder), folder)
    assert again.code == 0, again.said
    assert seen <= finished(folder)
    assert not [*differences(job.whole, folder)]


def test_a_folder_that_cannot_be_written_is_named(jobs, here):
    job, folder = jobs("training"), here / "read-only"
    found = attempt(job.line(folder), folder, Fault(write=0, error=errno.EROFS))
    assert not [*sentences(found, 2)]
    assert f"{folder}/status.json cannot be written (Read-only file system)" in found.said


def test_a_second_command_in_the_folder_of_a_running_one_changes_no_file_there(jobs, here):
    job, folder = jobs("training"), here / "occupied"
    assert attempt(job.line(folder), folder).code == 0
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with locked(folder / ".lock"):
        second = attempt([*job.line(folder), "seed=5"], folder)
    assert not [*sentences(second, 2)] and "another process is at work there" in second.said
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("kind", ["training", "sweep"])
def test_of_two_commands_at_once_one_does_the_job_and_one_is_refused(jobs, here, kind):
    job, folder = jobs(kind), here / f"{kind}-twice"
    ended = {}

    def start(name):
        ended[name] = attempt(job.line(folder), here / name)

    server()  # which two threads at once would start twice
    both = [threading.Thread(target=start, args=(f"{kind}-{each}",)) for each in ("a", "b")]
    for each in both:
        each.start()
    for each in both:
        each.join()
    codes = sorted(each.code for each in ended.values())
    if codes != [0, 0]:  # where one had ended before the other began
        assert codes == [0, 2], ended
        (refused,) = [each for each in ended.values() if each.code == 2]
        assert "is at work there" in refused.said
    assert not [*differences(job.whole, folder)]


def test_reports_of_a_running_grid_never_fail_nor_disturb_it(jobs, here, capsys):
    job, folder = jobs("sweep"), here / "watched"
    ended = []
    grid = threading.Thread(target=lambda: ended.append(attempt(job.line(folder), here / "watch")))
    grid.start()
    while grid.is_alive() and not (folder / "0" / "status.json").exists():
        time.sleep(0.02)
    half = folder / "half"  # as an editor or a copy may leave it; of no job
    half.mkdir()
    (half / "results.json").write_text('{"schema": 1, "rows": [{"name": "cle')
    (half / "metrics.jsonl").write_text('{"epoch": 1, "train_loss"')
    (half / "certify.tsv").write_text("idx\tlabel\tpredict\tradi")
    reports = 0
    while grid.is_alive():
        assert cli.main([str(folder)]) == 0, capsys.readouterr().err
        reports += 1
    assert reports and ended[0].code == 0, ended[0].said
    shutil.rmtree(half)
    assert cli.main([str(folder)]) == 0
    assert not [*differences(job.whole, folder)]

"""Files that mean harm are refused with a sentence; nothing in them runs, nothing large is made."""

import os
import resource
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from data_files import write_folder
from hostile_files import (
    BELL,
    CHECKPOINTS,
    IMAGES,
    LOCKS,
    LOGS,
    REPORTS,
    RUNS,
    SETS,
    SETTINGS,
    STATES,
    TAG,
    Maker,
    png,
    sound,
)
from report_files import put, results, row
from running import TRAINING, interrupted, run

from advtrain import main
from advtrain.adopt import adopt, recorded
from advtrain.certification.log import HEADER, PREDICT_HEADER
from advtrain.data import readers
from advtrain.data.decode import Broken, Recipe, decode, size_of
from advtrain.data.errors import DataError
from advtrain.grid import choices, composed, ours
from advtrain.newest import lost_at_once
from advtrain.records import VerdictLog
from advtrain.reporting import cli
from advtrain.reporting.reading import read_metrics, read_run
from advtrain.reporting.series import read_examples
from advtrain.reporting.writing import write_run
from advtrain.runs import load_run

LINE = ("job=eval", "model=linear", "dataset=digits", "eval=quick", "eval.size=2", "logger=none")
ROOM = 1 << 30  # bytes of addresses that a reader may ask for
GROWTH = 300 << 10  # KiB of memory that it may in fact use


@contextmanager
def bounded() -> Iterator[None]:
    """Inside, no more than ROOM can be allocated, and little of it may be filled."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    Path("/proc/self/clear_refs").write_text("5")  # the peak is from now on
    before = _peak()
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + ROOM, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    assert _peak() - before < GROWTH


def _peak() -> int:
    """KiB of memory that this process has filled at most since it was last asked to count anew."""
    told = Path("/proc/self/status").read_text().split()
    return int(told[told.index("VmHWM:") + 1])


@pytest.fixture
def canary(tmp_path: Path) -> Iterator[Path]:
    """What a payload would create; it is not there at the end."""
    path = tmp_path / "canary"
    yield path
    assert not path.exists(), "the file was executed"


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a user has it; the command itself sets this variable for Hydra."""
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")  # so that it is gone after the test


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "foreign"
    path.mkdir()
    return path


@pytest.fixture(scope="module")
def asked() -> Iterator[tuple[Any, Mapping[str, Any]]]:
    with composed(LINE) as config:
        yield ours(config), {"choices": choices(config), "overrides": list(LINE)}


def test_what_is_filled_is_seen_whatever_was_filled_before() -> None:
    bytearray(2 * GROWTH << 10)
    with pytest.raises(AssertionError), bounded():
        bytearray(b"1") * (3 * GROWTH << 9)


def test_the_corpus_is_no_smaller_than_it_is_said_to_be() -> None:
    tables = (CHECKPOINTS, RUNS, REPORTS, LOGS, IMAGES, SETS, SETTINGS, LOCKS, STATES)
    assert sum(map(len, tables)) >= 128


def sentence(told: str, name: str) -> None:
    """One sentence about `name`, which no terminal obeys and no page runs."""
    assert name in told and len(told) < 900, told
    assert len(told.strip().splitlines()) == 1 and "Traceback" not in told, told
    assert "Errno" not in told, told


ELSEWHERE = {
    *("target that starts a worker", "target of a data set", "target of a threat"),
    "resolver of ours",
}
"""Where the network itself is sound, which is all that `load_run` looks at."""
LATER = "names that speak to a terminal"  # known when the weights are put into the network


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_checkpoint_is_refused(name: str, folder: Path, canary: Path, asked: Any) -> None:
    CHECKPOINTS[name](folder, canary)
    file = folder / "evil.pt"
    config, facts = asked
    config.checkpoint = str(file)
    if name != LATER:
        with bounded(), pytest.raises(ValueError) as refused:
            adopt(config, dict(facts), ())
        sentence(str(refused.value), str(file))
    if name not in ELSEWHERE:
        with bounded(), pytest.raises(ValueError) as refused:
            load_run(file)
        sentence(str(refused.value), str(file))


def test_what_is_sound_passes(folder: Path, asked: Any) -> None:
    file = folder / "sound.pt"
    torch.save(sound(), file)
    config, facts = asked
    config.checkpoint = str(file)
    new, taken = adopt(config, dict(facts), ())
    assert new.model._target_ == "advtrain.models.linear.linear"
    assert taken["selected_on"] == "val_adv_acc"
    assert load_run(file)[0](torch.zeros(1, 1, 8, 8)).shape == (1, 10)


@pytest.mark.parametrize(
    ("name", "told"), [("archive with a payload", "evil.pt"), ("target os.system", "evil.pt")]
)
def test_the_command_ends_with_code_two(name: str, told: str, folder: Path, canary: Path) -> None:
    CHECKPOINTS[name](folder, canary)
    found = run(folder / "out", *LINE, f"checkpoint={folder / 'evil.pt'}")
    assert found["exit_code"] == 2
    sentence(found["error"], told)


def test_weights_that_are_no_numbers_end_an_evaluation_with_a_sentence(folder: Path) -> None:
    content = sound()
    content["model"] = {name: value * float("nan") for name, value in content["model"].items()}
    torch.save(content, folder / "evil.pt")
    found = run(folder / "out", *LINE, f"checkpoint={folder / 'evil.pt'}")
    assert found["exit_code"] == 1
    sentence(found["error"], "finite")


@pytest.mark.parametrize("make", RUNS.values(), ids=RUNS)
def test_a_status_is_data(make: Maker, folder: Path, canary: Path) -> None:
    make(folder, canary)
    with bounded():
        told = recorded(str(folder), ["job=eval"])
    assert all(word not in " ".join(told) for word in ("hydra.run", "oc.env", "..", str(canary)))


@pytest.mark.parametrize("make", REPORTS.values(), ids=REPORTS)
def test_a_run_that_is_reported_is_data(make: Maker, folder: Path, canary: Path) -> None:
    make(folder, canary)
    with bounded():
        found = read_run(folder)
        if (folder / "examples.npz").exists():
            with pytest.raises(ValueError) as refused:
                read_examples(folder)
            sentence(str(refused.value), "examples.npz")
        else:
            assert found.state == "unreadable"
            sentence(found.error, "results.json")


LISTS = b'{"epoch": 1, "a": [' + b"[]," * 8_000_000 + b"[]]}\n"


def test_epochs_are_read_within_bounds(folder: Path) -> None:
    path = put(folder, results()) / "metrics.jsonl"
    sound = b'{"epoch": 0, "val_acc": 0.5}\n'
    path.write_bytes(LISTS + sound)
    with bounded():
        assert read_metrics(folder) == [{"epoch": 0, "val_acc": 0.5}]
    path.write_bytes(sound + b"\n" * (60 << 20))
    with bounded():
        assert read_metrics(folder) == [{"epoch": 0, "val_acc": 0.5}]


def test_verdicts_are_read_within_bounds(folder: Path, caplog: Any) -> None:
    path = folder / "verdicts.jsonl"
    path.write_bytes(LISTS)
    with bounded():
        assert VerdictLog(path).lines == {}
    assert "line 1, is no verdict" in caplog.text
    path.unlink()
    path.symlink_to("/dev/zero")
    with bounded(), pytest.raises(OSError, match=r"verdicts\.jsonl"):
        VerdictLog(path)
    path.unlink()
    os.mkfifo(path)
    with bounded(), pytest.raises(OSError, match=r"verdicts\.jsonl"):
        VerdictLog(path)


def test_the_first_epochs_of_a_run_are_counted_within_bounds(folder: Path) -> None:
    last = folder / "checkpoints" / "last.pt"
    last.parent.mkdir()
    last.write_bytes(b"")
    (folder / "metrics.jsonl").symlink_to("/dev/zero")
    with bounded():
        assert lost_at_once(last)


@pytest.mark.parametrize("make", LOGS.values(), ids=LOGS)
def test_a_log_is_refused(make: Maker, folder: Path, canary: Path, capsys: Any) -> None:
    make(folder, canary)
    with bounded():
        assert cli.main([str(folder / "certify.tsv"), "--out", str(folder)]) == 2
    sentence(capsys.readouterr().err, "certify.tsv")


@pytest.mark.parametrize("make", IMAGES.values(), ids=IMAGES)
def test_an_image_is_refused(make: Maker, folder: Path, canary: Path) -> None:
    make(folder, canary)
    path = folder / "train" / "ant" / "000.png"
    with bounded(), pytest.raises(Broken) as refused:
        decode(str(path), Recipe("RGB", (224, 224), cut=True))
    sentence(str(refused.value), str(path))


@pytest.mark.parametrize("side", [60_000, 2**31 - 1])
def test_the_size_of_an_image_is_asked_before_its_pixels(folder: Path, side: int) -> None:
    (folder / "a.png").write_bytes(png(side, side))
    with bounded(), pytest.raises(Broken, match=r"a\.png"):
        size_of(folder / "a.png")


@pytest.mark.parametrize(("source", "make"), SETS.values(), ids=SETS)
def test_a_data_set_is_refused(source: str, make: Maker, folder: Path, canary: Path) -> None:
    make(folder, canary)
    with bounded(), pytest.raises(DataError) as refused:
        readers.read(getattr(readers, source)(), str(folder), False)
    sentence(str(refused.value), str(folder))


@pytest.mark.parametrize(("group", "make"), SETTINGS.values(), ids=SETTINGS)
def test_a_configuration_of_others_calls_nothing_that_the_command_line_does_not_name(
    group: str, make: Maker, folder: Path, canary: Path, capsys: Any, monkeypatch: Any
) -> None:
    make(folder, canary)
    line = ["advtrain", "--config-dir", str(folder), f"{group}=evil", *LINE[1:]]
    monkeypatch.setattr(sys, "argv", line)
    with bounded(), pytest.raises(SystemExit) as ended:
        main.main()
    assert ended.value.code == 2
    told = capsys.readouterr().err
    assert told.startswith("advtrain: ")
    sentence(told, "evil" if "evil" in told else group)


@pytest.mark.parametrize(
    "flag", ["--experimental-rerun=config.pickle", "--config-name=evil", "--config-path=/tmp"]
)
def test_flags_that_read_unchecked_files_are_refused(
    flag: str, capsys: Any, monkeypatch: Any
) -> None:
    monkeypatch.setattr(sys, "argv", ["advtrain", flag])
    with pytest.raises(SystemExit) as ended:
        main.main()
    assert ended.value.code == 2
    sentence(capsys.readouterr().err, flag.partition("=")[0])


@pytest.fixture(scope="module")
def half(tmp_path_factory: Any) -> Path:
    """A training that was stopped in its second epoch, and can go on."""
    directory: Path = tmp_path_factory.mktemp("half")
    interrupted(directory, 4, *TRAINING, "average=ema", "watchdog.action=back")
    return directory


@pytest.mark.parametrize("change", STATES.values(), ids=STATES)
def test_a_state_to_go_on_from_is_refused(change: Any, half: Path, tmp_path: Path) -> None:
    directory = tmp_path / "run"
    shutil.copytree(half, directory)
    last = directory / "checkpoints" / "last.pt"
    content = torch.load(last)
    change(content)
    torch.save(content, last)
    with bounded():
        found = run(directory, *TRAINING, "average=ema", "watchdog.action=back")
    assert found["exit_code"] == 2
    sentence(found["error"], "last.pt")


@pytest.mark.parametrize("make", LOCKS.values(), ids=LOCKS)
def test_a_lock_of_others_is_neither_followed_nor_emptied(
    make: Maker, folder: Path, canary: Path, capsys: Any, monkeypatch: Any
) -> None:
    theirs = put(folder / "run", results())
    for place in (theirs / ".report.lock", theirs / ".lock", folder / ".mnist.lock"):
        make(place, canary)
    assert cli.main([str(theirs)]) == 2
    sentence(capsys.readouterr().err, ".report.lock")
    line = (*LINE[1:], f"hydra.run.dir={theirs}")
    monkeypatch.setattr(sys, "argv", ["advtrain", *line])
    with pytest.raises(SystemExit) as ended:
        main.main()
    assert ended.value.code == 2 and not (theirs / ".hydra").exists()
    sentence(capsys.readouterr().err, f"{theirs / '.lock'}")
    with pytest.raises(DataError) as refused:
        readers.read(readers.mnist(), str(folder), True)
    sentence(str(refused.value), ".mnist.lock")
    mine = canary.with_name("mine")
    assert not mine.exists() or mine.read_text() == "keys"


def test_a_link_in_place_of_the_plots_leads_nowhere(folder: Path) -> None:
    mine = folder / "mine"
    mine.mkdir()
    (mine / "holiday.png").write_bytes(b"mine")
    directory = put(folder / "run", results())
    (directory / "plots").symlink_to(mine)
    write_run(directory)
    assert [path.name for path in mine.iterdir()] == ["holiday.png"]
    assert list((directory / "plots").glob("*.png")) and not (directory / "plots").is_symlink()


def test_a_page_shows_what_it_was_told_as_text(folder: Path) -> None:
    evil = f"{TAG}{BELL}\ud800\u202e"
    content = results(
        name=evil,
        defense=evil,
        dataset={"name": evil, "split": evil, "n": 1},
        rows=[row(evil, 0.5, view=evil, norm=evil, stages=[{"name": evil, "accuracy": 0.5}])],
        worst_case={evil: 0.5},
        warnings=[{"check": evil, "row": evil, "message": evil}],
        environment={evil: evil},
    )
    content["config"] = {evil: [evil, {evil: evil}], "paper": {"source": evil}}
    directory = put(folder / "run", content, {"overrides": [evil], "choices": {evil: evil}})
    write_run(directory)
    for name in ("report.html", "table.md", "table.tex", "table.csv"):
        text = (directory / name).read_text(encoding="utf-8")
        assert "\x1b" not in text and "\u202e" not in text
        assert name != "report.html" or TAG not in text


def test_names_of_folders_and_files_are_shown_as_text(folder: Path, capsys: Any) -> None:
    evil = os.fsdecode(f"{BELL}\u202e".encode() + b"\xff")
    for place in (folder / evil / "0", folder / evil / evil):  # one in a folder, one in itself
        put(place, results(name="", seed=None))
    (folder / evil / f"{evil}.tsv").write_text(f"{PREDICT_HEADER}\n")
    (folder / evil / f"{evil}.log").write_text(f"{HEADER}\n0\t1\t1\t0.5\t1\t1\nx\n")
    (folder / evil / f"{evil}.txt").write_text(f"{HEADER}\nx\n")
    assert cli.main([str(folder / evil)]) == 0
    told = capsys.readouterr()
    pages = [(folder / evil / name).read_text() for name in ("report.html", "table.csv")]
    for text in (told.out, told.err, *pages, (folder / evil / "certified.csv").read_text()):
        assert "\x1b" not in text and "\u202e" not in text
    assert "%1B%5D0%3Bowned" in pages[0] and "%FF" in pages[0]  # links lead where they did


def test_an_identity_of_others_in_the_folder_of_wandb_is_not_taken(folder: Path) -> None:
    from advtrain.tracking import _identity

    for evil in ("../../../etc 1", "a 1 2", "a " + "9" * 5000, "a -1", TAG):
        (folder / "wandb").mkdir(exist_ok=True)
        (folder / "wandb" / "advtrain-id.txt").write_text(evil)
        assert _identity(folder, True).isalnum()


def test_a_folder_of_images_names_the_one_that_is_broken(folder: Path, canary: Path) -> None:
    write_folder(folder, {"train": 6, "test": 2})
    (folder / "train" / "ant" / "000.png").write_text("%!PS-Adobe-3.0 EPSF-3.0\n")
    line = ("dataset=imagefolder", f"dataset.root={folder}", "dataset.validation=0")
    found = run(folder / "out", *line, "dataset.workers=1", "logger=none", "model=linear")
    assert found["exit_code"] == 2
    sentence(found["error"], "000.png")

import json
import logging
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
from report_files import put, results, row

from advtrain import sheets, tracking
from advtrain.mirror import mirror
from advtrain.reporting.reading import read_run
from advtrain.reporting.report import report_of
from advtrain.reporting.writing import write_set

RESULTS = {
    "name": "run",
    "dataset": {"name": "digits", "split": "test", "n": 360},
    "model": {"name": "small_cnn", "parameters": 10},
    "defense": "pgd_at",
    "threat": {"norm": "linf", "eps": 0.1},
    "seed": 3,
    "rows": [
        {"name": "clean", "view": "identity", "accuracy": 0.9, "n": 360, "ci95": [0.86, 0.93]},
        {"name": "pgd_linf", "view": "identity", "accuracy": 0.5, "n": 360, "ci95": [0.4, 0.6]},
    ],
    "worst_case": {"linf": 0.5},
    "certified": None,
}


@pytest.fixture(autouse=True)
def no_account(monkeypatch, tmp_path):
    for key in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL", "WANDB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(key, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


def start(directory, **changes):
    settings = {"project": "advtrain", "group": None, "tags": ["a"], "mode": "auto"} | changes
    return tracking.wandb_tracker({"job": "train_eval"}, directory, "run", **settings)


class FakeRun:
    def __init__(self, failing=()):
        self.failing = failing
        self.logged, self.codes = [], []

    def define_metric(self, *names, **options):
        pass

    def log(self, values):
        if "log" in self.failing:
            raise ConnectionError("server gone")
        self.logged.append(values)

    def finish(self, exit_code):
        self.codes.append(exit_code)
        if "finish" in self.failing:
            raise ConnectionError("server gone")


def fake_wandb(monkeypatch, run, init=None):
    started = []

    def begin(**arguments):
        started.append(arguments)
        return (init or (lambda: run))()

    fake = SimpleNamespace(
        init=begin,
        Settings=lambda **settings: settings,
        Table=lambda columns, data: (columns, data),
        Image=lambda path: path,
    )
    monkeypatch.setattr(tracking, "_wandb", lambda: fake)
    return started


def use_everything(tracker, tmp_path):
    (tmp_path / "examples.png").write_bytes(b"")
    tracker.log({"epoch": 0, "train_loss": 1.0}, 0)
    tracker.table(RESULTS)
    tracker.sheet("table", "configuration,clean\na,0.5\n")
    tracker.images([tmp_path / "examples.png", tmp_path / "absent.png"])
    tracker.finish(0)


def test_an_offline_run_leaves_the_table_where_it_can_be_read_back(tmp_path, capfd):
    handlers = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    tracker = start(tmp_path, mode="offline")
    assert isinstance(tracker, tracking.WandbTracker)
    tracker.log({"epoch": 0, "train_loss": 1.5, "val_acc": 0.5}, 0)
    tracker.table(RESULTS)
    tracker.finish(0)
    assert handlers == [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    pattern = "wandb/offline-run-*/files/media/table/eval/accuracy_*.table.json"
    (path,) = tmp_path.glob(pattern)
    table = json.loads(path.read_text())
    assert table["columns"] == list(sheets.COLUMNS)
    (values,) = table["data"]
    row = dict(zip(table["columns"], values, strict=True))
    assert row["clean"] == 0.9 and row["pgd_linf"] == 0.5 and row["worst_linf"] == 0.5
    assert row["defense"] == "pgd_at" and row["seed"] == 3 and row["fgsm"] is None
    assert capfd.readouterr() == ("", "")


def test_a_missing_package_is_one_warning(tmp_path, monkeypatch, caplog):
    def absent():
        raise ImportError("No module named 'wandb'")

    monkeypatch.setattr(tracking, "_wandb", absent)
    use_everything(start(tmp_path), tmp_path)
    assert len(caplog.records) == 1 and "goes on without it" in caplog.text


def test_a_failing_init_is_one_warning(tmp_path, monkeypatch, caplog):
    def refuse():
        raise RuntimeError("no permission\nsecond line")

    fake_wandb(monkeypatch, None, refuse)
    use_everything(start(tmp_path), tmp_path)
    assert len(caplog.records) == 1 and "second line" not in caplog.text


@pytest.mark.parametrize("failing", [("log",), ("finish",), ("log", "finish")])
def test_a_failing_run_is_one_warning_and_is_finished(tmp_path, monkeypatch, caplog, failing):
    run = FakeRun(failing)
    fake_wandb(monkeypatch, run)
    tracker = start(tmp_path)
    use_everything(tracker, tmp_path)
    assert len(caplog.records) == 1 and run.codes == [0]


def test_a_server_that_never_answers_does_not_hold_up_the_run(tmp_path, monkeypatch, caplog):
    import threading

    never = threading.Event()
    fake_wandb(monkeypatch, None, lambda: never.wait(20) and FakeRun())
    monkeypatch.setattr(tracking, "PATIENCE", 0.1)
    tracker = start(tmp_path)
    use_everything(tracker, tmp_path)
    never.set()
    assert len(caplog.records) == 1 and "no answer" in caplog.text


def test_a_directory_that_cannot_be_written_is_one_warning(tmp_path, monkeypatch, caplog):
    fake_wandb(monkeypatch, FakeRun())
    (tmp_path / "wandb").write_text("a file where the folder should be")
    assert isinstance(start(tmp_path), tracking.NullTracker)
    assert len(caplog.records) == 1


def test_the_mode_is_offline_unless_a_login_is_found(tmp_path, monkeypatch):
    assert tracking._mode("auto") == "offline"
    netrc = tmp_path / "netrc"
    netrc.write_text("machine api.wandb.ai login user password secret\n")
    monkeypatch.setenv("NETRC", str(netrc))
    assert tracking._mode("auto") == "online"
    assert tracking._mode("disabled") == "disabled"
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert tracking._mode("online") == "offline"


def test_asking_for_online_without_a_login_never_prompts(caplog):
    assert tracking._mode("online") == "offline"
    assert len(caplog.records) == 1


def test_disabled_imports_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(tracking, "_wandb", lambda: pytest.fail("imported"))
    assert isinstance(start(tmp_path, mode="disabled"), tracking.NullTracker)


def test_a_resumed_run_keeps_its_id_online_and_its_group_offline(tmp_path, monkeypatch):
    started = fake_wandb(monkeypatch, FakeRun())
    start(tmp_path, mode="offline").finish(0)
    start(tmp_path, mode="offline").finish(0)
    monkeypatch.setenv("WANDB_API_KEY", "x")
    start(tmp_path, mode="online").finish(0)
    first, second, third = started
    assert second["id"] == f"{first['id']}_r1" and third["id"] == first["id"]
    assert first["group"] == second["group"] == "run"
    assert third["resume"] == "allow" and first["mode"] == "offline"


def test_metrics_are_named_by_split_and_carry_their_epoch(tmp_path, monkeypatch):
    run = FakeRun()
    fake_wandb(monkeypatch, run)
    start(tmp_path).log({"train_loss": 1.0, "val_adv_acc": 0.5, "lr": 0.1, "note": "text"}, 4)
    assert run.logged == [
        {"epoch": 4, "train/loss": 1.0, "val/adv_acc": 0.5, "train/lr": 0.1},
    ]


def test_every_view_is_a_row_of_the_table():
    rows = [dict(RESULTS["rows"][0], view=view) for view in ("lambda=0.0", "lambda=1.0")]
    found = sheets.accuracy_rows({**RESULTS, "rows": rows})
    assert [row["view"] for row in found] == ["lambda=0.0", "lambda=1.0"]
    assert all(row["clean"] == 0.9 for row in found)


def test_the_null_tracker_takes_everything(tmp_path, caplog):
    caplog.set_level(logging.DEBUG)
    use_everything(tracking.null_tracker({}, Path(tmp_path), "run"), tmp_path)
    assert not caplog.records


def test_a_column_is_of_numbers_or_of_words(tmp_path, caplog):
    """Seeds of one row may be `0 1` and those of the next `0`."""
    text = "configuration,seed,clean,state\na,0 1,0.5,\nb,0,,failed\n"
    columns, rows = sheets.of_csv(text)
    assert columns == ["configuration", "seed", "clean", "state"]
    assert rows == [["a", "0 1", 0.5, None], ["b", "0", None, "failed"]]
    assert sheets.of_csv("a,b\n") == (["a", "b"], [])
    tracker = start(tmp_path, mode="offline")
    tracker.sheet("table", text)
    tracker.finish(0)
    (path,) = tmp_path.glob("wandb/offline-run-*/files/media/table/grid/table_*.table.json")
    assert json.loads(path.read_text())["data"] == rows
    assert not [each for each in caplog.records if each.name.startswith("advtrain")]


def test_a_grid_is_mirrored_once_in_the_group_of_its_jobs(tmp_path, monkeypatch):
    logger = {"_target_": "advtrain.tracking.wandb_tracker", "_partial_": True}
    logger |= {"project": "p", "group": None, "tags": [], "mode": "offline"}
    sweep = tmp_path / "grid"
    for defense, accuracy in (("trades", 0.5), ("mart", 0.25)):
        rows = [row("clean", 0.9), row("pgd_linf", accuracy)]
        content = results(defense, rows=rows, choices={"defense": defense})
        put(sweep / defense, {**content, "config": {"logger": logger}}, {"state": "done"})
    run = FakeRun()
    (started,) = (fake_wandb(monkeypatch, run),)
    report = write_set([sweep], sweep)
    mirror(sweep, report)
    assert (started[0]["group"], started[0]["name"]) == ("grid", "grid (table)")
    columns, cells = run.logged[0]["grid/table"]
    place = {name: column for column, name in enumerate(columns)}
    assert sorted(line[place["pgd_linf"]] for line in cells) == [0.25, 0.5]
    assert any(key.startswith("plots/") for key in run.logged[-1]) and run.codes == [0]


def test_a_grid_that_has_not_changed_is_not_mirrored_again(tmp_path, monkeypatch):
    logger = {"_target_": "advtrain.tracking.wandb_tracker", "_partial_": True}
    logger |= {"project": "p", "group": None, "tags": [], "mode": "offline"}
    started = fake_wandb(monkeypatch, FakeRun())

    def again(accuracy):
        """Mirror a grid of one job; the identity of the run that is made of it, if one is."""
        content = results("trades", rows=[row("clean", accuracy)])
        put(tmp_path / "0", {**content, "config": {"logger": logger}}, {"state": "done"})
        before = len(started)
        mirror(tmp_path, report_of([read_run(tmp_path / "0")]))
        return started[-1]["id"] if len(started) > before else None

    def runs():
        return sorted(path.name for path in (tmp_path / "wandb").glob("*run-*"))

    real = tracking._begun

    def begun(arguments):
        (tmp_path / "wandb" / f"offline-run-{arguments['id']}").mkdir()
        return real(arguments)

    monkeypatch.setattr(tracking, "_begun", begun)
    first = again(0.9)
    assert again(0.9) is None and runs() == [f"offline-run-{first}"]
    second = again(0.8)
    assert "_r" not in second and runs() == [f"offline-run-{second}"]  # in place of the first
    (tmp_path / "wandb" / f"offline-run-{second}" / "run-x.wandb.synced").touch()
    assert again(0.8) is None and again(0.7) == f"{second}_r1"
    assert runs() == [f"offline-run-{second}", f"offline-run-{second}_r1"]


@pytest.mark.parametrize("logger", [None, {"_target_": "os.system"}, {"_target_": "advtrain.x"}])
def test_a_logger_that_is_none_of_ours_is_left_alone(tmp_path, monkeypatch, logger):
    started = fake_wandb(monkeypatch, FakeRun())
    put(tmp_path / "0", {**results(), "config": {"logger": logger}}, {"state": "done"})
    mirror(tmp_path, report_of([read_run(tmp_path / "0")]))
    assert started == []

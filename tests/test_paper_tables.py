"""The papers' tables as configurations: every row composes, and brings what was printed."""

import re
from copy import deepcopy
from math import ceil

import pytest
import yaml
from omegaconf import OmegaConf
from running import configuration

from advtrain.config import conf_dir

SCALES = ("full", "small", "smoke")
TABLES = sorted(path.stem for path in (conf_dir() / "experiment").glob("*.yaml"))
ROWS = [
    (table, path.stem)
    for table in TABLES
    for path in sorted((conf_dir() / "row" / table).glob("*.yaml"))
]
QUICK = [pair for pair in ROWS if "oat_" not in pair[0] or pair[1] in ("oat", "lambda_0.3")]
"""But rows that differ from another in one number."""

PGD = ("clean", "pgd_linf", "pgd_l2")
DECK = ("clean", "pgd_500", "gama", "autoattack")
RADII = ("0.25", "0.50", "0.75", "1.00", "1.25", "1.50")
CATEGORIES = (
    *("correct_accurate", "correct_inaccurate", "incorrect_accurate"),
    *("incorrect_inaccurate", "abstain"),
)
COLUMNS = {
    "multi_attack": PGD,
    "nuat_cifar10_resnet18": ("clean", "pgd_20", *DECK[1:]),
    "nuat_cifar10_wrn34": ("clean", "pgd_100", *DECK[2:]),
    "nuat_imagenet100": DECK,
    "nuat_mnist": DECK,
    "lwta": ("clean", "fgsm", "pgd_linf", "pgd_l2"),
    "smoothing_accuracy": ("train_acc", "noise"),
    "smoothing_certified": tuple(f"certified_{radius}" for radius in RADII),
    "smoothing_predict": tuple(f"predict_{n}_{k}" for n in (100, 1000, 10000) for k in CATEGORIES),
    "linear_mnist01": ("clean", "exact_unclipped"),
}
PRINTED = {  # in percent; None where the table has no figure
    "multi_attack": {
        "pgd": (56.25, 17.26, 26.4),
        "fgsm": (50, 0.46, 8.48),
        "mim": (37.5, 17.23, 26.36),
        "grad_reg": (25, 27.43, 27.01),
        "multi": (43.75, 28.39, 34.87),
    },
    "nuat_cifar10_resnet18": {
        "normal": (92.3, 0.0, 0.0, 0.0, 0.0),
        "fgsm_at": (92.89, 0.0, 0.0, 0.0, 0.0),
        "rfgsm_at": (89.24, 35.02, 34.17, 33.87, 33.16),
        "atf": (71.77, 43.53, 43.52, 40.34, 40.22),
        "fbf": (82.83, 46.41, 46.03, 43.85, 43.12),
        "r_mgm": (82.29, 46.23, 45.79, 44.06, 43.72),
        "gat": (80.49, 53.13, 53.08, 47.76, 47.3),
        "gat_wa": (79.47, 54.4, 54.37, 49.0, 48.28),
        "nuat": (81.01, 53.3, 52.97, 49.46, 49.24),
        "nuat_wa": (82.21, 54.14, 53.95, 50.97, 50.75),
        "pgd_at": (81.12, 53.08, 52.89, 49.08, 48.75),
        "trades": (81.47, 52.73, 52.61, 49.22, 49.06),
        "trades_wa": (80.19, 52.98, 52.88, 49.49, 49.39),
        "awp": (81.99, 55.6, 55.52, 51.65, 51.45),
    },
    "nuat_cifar10_wrn34": {
        "fbf": (82.05, 45.57, 43.13, 43.1),
        "gat": (85.17, 55.12, 50.76, 50.12),
        "gat_wa": (84.61, 57.28, 52.19, 51.5),
        "nuat": (85.3, 53.82, 51.34, 50.81),
        "nuat_h": (84.58, 54.89, 51.93, 51.58),
        "nuat_wa": (85.29, 56.21, 53.73, 53.36),
        "nuat_wa_h_25": (81.98, 54.82, 51.41, 51.14),
        "nuat_wa_h_60": (84.93, 57.51, 54.28, 53.81),
        "nuat2": (84.76, 54.5, 51.99, 51.27),
        "nuat2_wa": (86.32, 57.74, 55.08, 54.76),
        "trades": (85.48, 56.35, 53.88, 53.8),
        "pgd_at": (86.07, 55.74, 52.7, 52.19),
        "awp": (85.36, 59.13, 56.35, 56.17),
    },
    "nuat_imagenet100": {
        "normal": (81.44, 0.0, 0.0, 0.0),
        "rfgsm_at": (78.46, 13.88, 13.38, 12.96),
        "fbf": (57.32, 27.22, 21.78, 20.66),
        "r_mgm": (64.84, 31.68, 27.46, 27.68),
        "gat": (67.98, 37.46, 29.3, 28.92),
        "nuat": (69.0, 37.6, 32.38, 31.96),
        "nuat_wa": (68.4, 38.68, 33.22, 33.16),
        "trades": (62.88, 37.24, 31.44, 31.66),
        "pgd_at": (68.62, 36.56, 32.24, 32.98),
    },
    "nuat_mnist": {
        "normal": (99.2, 0.0, 0.0, 0.0),
        "rfgsm_at": (99.37, 85.32, 83.64, 82.28),
        "fbf": (99.3, 91.37, 87.27, 79.02),
        "r_mgm": (99.04, 90.56, 88.13, 86.21),
        "gat": (99.37, 94.44, 92.96, 90.62),
        "nuat": (99.37, 96.24, 94.65, 93.11),
        "nuat_wa": (99.36, 96.3, 94.7, 93.1),
        "trades": (99.32, 93.4, 92.74, 92.19),
        "pgd_at": (99.27, 93.98, 92.8, 91.81),
    },
    "lwta": {
        "ours": (78.94, 73.1, 70.23, 71.02),
        "pretrained": (86.63, 84.15, 81.38, 82.44),
        "platform": (98.75, None, 85.06, 86.31),
    },
    "smoothing_accuracy": {
        "sigma_025": (82.3, 76.1),
        "sigma_050": (67.0, 65.2),
        "sigma_100": (48.9, 48.4),
    },
    "smoothing_certified": {
        "sigma_025": (55.0, 40.0, 26.0, 0.0, 0.0, 0.0),
        "sigma_050": (52.0, 43.0, 30.0, 19.0, 15.0, 13.0),
        "sigma_100": (39.0, 33.0, 28.0, 23.0, 19.0, 18.0),
    },
    "smoothing_predict": {
        "sigma_025": (
            55.0,
            0.0,
            18.0,
            0.0,
            27.0,
            69.0,
            0.0,
            25.0,
            0.0,
            6.0,
            72.0,
            0.0,
            27.0,
            0.0,
            1.0,
        ),
    },
    "linear_mnist01": {
        "standard": (99.96, 15.5),
        "robust": (None, 97.5),
    },
}
WITHOUT = ("finetuning", "oat_cifar10", "oat_stl10", "oat_svhn")
"""Tables whose sources print figures as drawings alone."""


@pytest.fixture(scope="module", autouse=True)
def files_are_parsed_once():
    """Composition reads two dozen files each time, and parsing is a third of it."""
    known = {}
    real = OmegaConf.load

    def load(file):
        name = str(getattr(file, "name", file))
        if name not in known:
            known[name] = real(file)
        return deepcopy(known[name])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(OmegaConf, "load", staticmethod(load))
        yield


def content(group, name):
    return yaml.safe_load((conf_dir() / group / f"{name}.yaml").read_text())


def row(table, name, scale="full"):
    return configuration(f"experiment={table}", f"row={table}/{name}", f"scale={scale}")


def require_sound(table, name, scale):
    """What must hold of a row at a scale; composing it checks every key and value."""
    config = row(table, name, scale)
    paper = config["paper"]
    assert paper["setting"]["scale"] == "full" and paper["source"]
    for sentences in paper["remarks"].values():
        assert all(0 < len(words) <= 400 for words in sentences)  # as far as reports read them
    if scale == "smoke":
        assert config["dataset"]["_target_"] == "advtrain.data.sets.digits"
        assert config["checkpoint"] is None and config["model"].get("pretrained") is None
    measured = {*config["eval"]["attacks"], "clean", "train_acc", "row", "table"}
    assert paper["remarks"].keys() <= measured
    for key in config["published"]:
        assert key in measured or key.startswith(("certified_", "predict_"))


@pytest.mark.parametrize(
    ("table", "name", "scale"),
    [(*pair, SCALES[place % 3]) for place, pair in enumerate(QUICK)],
)
def test_each_row_composes_at_a_scale_and_stands_on_its_own(table, name, scale):
    require_sound(table, name, scale)


@pytest.mark.slow
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize(("table", "name"), ROWS)
def test_each_row_composes_at_each_scale(table, name, scale):
    require_sound(table, name, scale)


@pytest.mark.parametrize("table", TABLES)
def test_a_table_is_all_of_its_rows_and_says_by_which_command(table):
    text = (conf_dir() / "experiment" / f"{table}.yaml").read_text()
    assert f"# advtrain -m experiment={table}" in text
    listed = content("experiment", table)["hydra"]["sweeper"]["params"]["row"].split(",")
    assert sorted(listed) == sorted(f"{table}/{name}" for of, name in ROWS if of == table)


@pytest.mark.parametrize("table", [*PRINTED, *WITHOUT])
def test_rows_bring_the_printed_figures_and_no_others(table):
    printed = PRINTED.get(table, {})
    found = {
        name: content(f"row/{table}", name).get("published", {}) for of, name in ROWS if of == table
    }
    assert {name for name, figures in found.items() if figures} == printed.keys()
    for name, figures in printed.items():
        told = dict(zip(COLUMNS[table], figures, strict=True))
        wanted = {key: value / 100 for key, value in told.items() if value is not None}
        assert found[name] == pytest.approx(wanted, abs=1e-9)
        assert found[name].keys() == wanted.keys()


def test_all_tables_are_checked():
    assert sorted([*PRINTED, *WITHOUT]) == TABLES
    figures = [figure for rows in PRINTED.values() for line in rows.values() for figure in line]
    assert sum(figure is not None for figure in figures) == 262


@pytest.mark.parametrize(
    ("table", "name", "remark"),
    [
        ("multi_attack", "multi", "1/16"),
        ("lwta", "platform", "79 of 80"),
        ("nuat_cifar10_resnet18", "fbf", "42.37"),
        ("nuat_cifar10_resnet18", "normal", "94 to 95.5"),
        ("nuat_cifar10_wrn34", "nuat_h", "not published"),
        ("nuat_cifar10_wrn34", "pgd_at", "chosen on the test set"),
        ("nuat_imagenet100", "r_mgm", "AutoAttack is printed above GAMA"),
        ("nuat_mnist", "nuat", "Nothing of NuAT is published"),
        ("linear_mnist01", "standard", "0.00047"),
    ],
)
def test_what_is_known_against_a_figure_or_unknown_of_a_row_is_said(table, name, remark):
    told = content(f"row/{table}", name)["paper"]["remarks"]
    assert any(remark in sentence for sentences in told.values() for sentence in sentences)


def test_the_settings_that_their_authors_published():
    nuat = row("nuat_cifar10_resnet18", "nuat_wa")
    assert (nuat["epochs"], nuat["batch_size"]) == (100, 64)
    assert nuat["average"]["decay"] == 0.9998 and nuat["average"]["ramp"] is False
    assert nuat["defense"]["weight"]["schedule"]["values"] == [0, 4]
    assert nuat["model"]["mean"] is None and nuat["dataset"]["validation"] == 1000
    pgd = nuat["eval"]["attacks"]["pgd_500"]
    assert pgd["steps"] == 500 and pgd["step_size"] == pytest.approx(2 / 255)
    assert nuat["eval"]["attacks"]["autoattack"]["version"] == "v1"
    assert nuat["validate"]["attack"]["steps"] == 7
    both = row("nuat_cifar10_wrn34", "nuat2_wa")
    assert (both["average"]["decay"], both["defense"]["attacker_decay"]) == (0.9998, 0.99)
    assert both["epochs"] == 80 and both["schedule"]["lr"]["peak"] == 0.25
    assert both["eval"]["attacks"]["autoattack"]["version"] == "standard"
    gat = row("nuat_mnist", "gat")
    assert (gat["epochs"], gat["optimizer"]["lr"], gat["defense"]["noise"]) == (50, 0.01, 1)
    assert gat["defense"]["alternate"] is False and gat["defense"]["warmup"] == 0
    assert gat["attack"]["step_size"] == 0.01 and gat["attack"]["steps"] == 40
    assert gat["eval"]["attacks"]["pgd_500"]["step_size"] == pytest.approx(0.01)
    assert gat["eval"]["attacks"]["gama"]["weight"] == 5
    for table in ("nuat_cifar10_resnet18", "nuat_cifar10_wrn34"):
        assert row(table, "fbf")["defense"]["attack"]["clip_start"] is True
    assert row("nuat_mnist", "fbf")["defense"]["attack"]["clip_start"] is False
    chosen = row("nuat_imagenet100", "gat")["validate"]["attack"]
    assert (chosen["steps"], chosen["step_size"]) == (20, pytest.approx(1 / 255))
    assert chosen["start"]["_target_"] == "advtrain.attacks.starts.uniform"
    lwta = row("lwta", "pretrained")
    assert lwta["threat"]["eps"] == 0.031 and lwta["defense"]["gradients"] == "test"
    assert lwta["checkpoint"].endswith("lwta/ckpt.pt")


@pytest.mark.parametrize(
    ("table", "name", "images", "updates"),
    [
        ("nuat_mnist", "pgd_at", 60_000, 100_000),  # Madry et al. 2018
        ("nuat_cifar10_resnet18", "atf", 50_000, 80_000),  # Shafahi et al. 2019
    ],
)
def test_a_row_has_the_updates_of_its_authors_to_half_an_epoch(table, name, images, updates):
    found = row(table, name)
    batches = ceil((images - found["dataset"]["validation"]) / found["batch_size"])
    epoch = batches * found["dataset"]["replays"]
    assert abs(found["epochs"] * epoch - updates) <= epoch / 2


def test_what_is_said_of_the_certificates_of_cohen_et_al_is_what_their_logs_count():
    """At alpha 0.001, of 500 images, at 0.25, 0.5 ... up to 1.5; the printed ones are of 0.01."""
    counts = ((300, 214, 129), (273, 207, 160, 116, 75, 45), (196, 169, 139, 106, 87, 70))
    words = " ".join(row("smoothing_certified", "sigma_025")["paper"]["remarks"]["table"])
    told, _, corrected = words.partition("from logs of alpha 0.01; ")
    pairs = dict(re.findall(r"(0\.\d\d) for (0\.\d\d)", corrected))
    printed = re.findall(r"0\.\d\d(?!\d)", told)
    now = [f"{count / 500:.2f}" for sigma in counts for count in sigma]
    changed = {new: old for new, old in zip(now, printed, strict=True) if new != old}
    assert changed == pairs


def test_smaller_tables_compare_alike():
    """One network, data, attack and evaluation, and as many passes, as far as replays allow."""
    names = ("fbf", "atf", "nuat_wa", "pgd_at", "awp")
    found = {name: row("nuat_cifar10_resnet18", name, "smoke") for name in names}
    for config in found.values():
        config["dataset"]["replays"] = None
    for key in ("model", "dataset", "threat", "attack", "eval", "validate", "seed"):
        assert all(config[key] == found["pgd_at"][key] for config in found.values()), key
    assert {name: config["epochs"] for name, config in found.items()} == {
        name: 1 if name == "atf" else 6 for name in names
    }
    assert found["nuat_wa"]["average"]["ramp"] is True
    assert found["awp"]["descent"]["start_epoch"] == 0

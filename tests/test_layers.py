"""Imports go downhill: a module may import from lower rows, and from its own package."""

import ast
from pathlib import Path

import pytest

import advtrain

ROOT = Path(advtrain.__file__).parent
ROWS = (
    "types functional threat hyperplane modes precision ranges seeding stopping files lock machine"
    " norms rows averaged memory draws inference strided rectified parts freezing operators affine"
    " divergences conditions channels portions footprint programs recomputing intact determinism"
    " rooms fingerprints inert ending world crew exchange sharing foreign archive dense sizing"
    " telling cgroups",
    "attacks models data penalties averages schedules optimizers",
    "defenses descents certification",
    "training history watchdog rescue evaluation records results checkpoints newest mishaps"
    " tracking sheets progress status reporting trust kinds digests probes masking answers chance"
    " lottery findings tolerance",
    "__init__ __main__ main runs config resolvers signatures complaints grid adopt job program"
    " planning plans run_training run_validation run_evaluation run_certification run_prediction"
    " run_soundness run_guarantees run_pictures checking composing expansion engines ledger"
    " sweeping slots pool worker messages forecast estimates mirror together places"
    " fitting config_source resuming stopwatch",
)
ROW = {name: number for number, names in enumerate(ROWS) for name in names.split()}
READS = {("reporting", "certification")}  # its log and shares, from files and without torch
FREE_OF_TORCH = (
    *("main", "config", "resolvers", "signatures", "ranges", "complaints", "grid", "status"),
    *("files", "checking", "composing", "expansion", "engines", "ledger", "sweeping", "pool"),
    *("slots", "worker", "messages", "estimates", "world", "together", "foreign", "archive"),
    *("config_source", "places", "telling", "ending", "lock", "machine"),
)


def modules():
    return sorted(ROOT.rglob("*.py"))


def part(path):
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imported(path, *, lazily=True):
    tree = ast.parse(path.read_text())
    nodes = ast.walk(tree) if lazily else iter(tree.body)
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module, [alias.name for alias in node.names]
        elif isinstance(node, ast.Import):
            yield from ((alias.name, []) for alias in node.names)


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_downhill(path):
    own = part(path)
    for module, names in imported(path):
        if module == "advtrain":
            targets = names
        elif module.startswith("advtrain."):
            targets = [module.split(".")[1]]
        else:
            continue
        for target in targets:
            level = ROW[own] in (0, 3, 4) and ROW[target] == ROW[own]  # parts of one thing
            lower = ROW[target] == 0 if ROW[own] == 3 else ROW[target] < ROW[own]
            reads = (own, target) in READS
            assert target == own or level or lower or reads, f"{own} must not import {target}"


def test_every_module_has_a_row():
    assert {part(path) for path in modules()} <= ROW.keys()


@pytest.mark.parametrize("name", FREE_OF_TORCH)
def test_these_modules_do_not_import_torch_themselves(name):
    for module, _ in imported(ROOT / f"{name}.py", lazily=False):
        assert module.split(".")[0] != "torch"


def test_packages_export_nothing():
    assert all(not path.read_text() for path in ROOT.rglob("__init__.py"))


def test_no_file_is_longer_than_four_hundred_lines():
    assert max(len(path.read_text().splitlines()) for path in modules()) <= 400

"""What advtrain brings along: imports that only define, and no network unless it is asked for."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from running import python

import advtrain
import hydra_plugins

ROOT = Path(__file__).parents[1]
SOURCE = Path(advtrain.__file__).parent

IMPORTS = """
import importlib, sys

BLOCKED = (
    "socket.connect", "socket.getaddrinfo", "socket.bind", "subprocess.Popen", "os.system",
    "os.exec", "os.fork", "os.posix_spawn", "os.mkdir", "os.remove", "os.rename", "os.rmdir",
    "shutil.rmtree", "os.chmod", "os.truncate", "os.symlink", "os.link",
)

def watch(event, arguments):
    writing = event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+")
    if (event in BLOCKED or writing) and "advtrain" in importing(sys._getframe(1)):
        raise SystemExit(f"{event}{arguments} at import")

def importing(frame):
    # The module whose body runs: what a dependency does at import is not ours to forbid.
    while frame is not None and frame.f_code.co_name != "<module>":
        frame = frame.f_back
    return frame.f_globals["__name__"] if frame is not None else ""

sys.dont_write_bytecode = True
sys.addaudithook(watch)
for name in sys.argv[1:]:
    importlib.import_module(name)
print("imported", len(sys.argv) - 1)
"""

OFFLINE = """
import os, socket, sys
from advtrain.main import main

def refuse(event, arguments):
    if event in ("socket.getaddrinfo", "socket.gethostbyname"):
        end(f"a name was looked up: {arguments}")
    if event in ("socket.connect", "socket.sendto") and arguments[0].family != socket.AF_UNIX:
        if not str(arguments[1]).startswith("('127.0.0.1'"):
            end(f"an address was called: {arguments}")

def end(told):
    os.write(2, told.encode())  # whatever stands for sys.stderr now
    os._exit(9)

sys.addaudithook(refuse)
main()
"""


def modules() -> list[str]:
    found = [
        path.relative_to(SOURCE.parent).with_suffix("")
        for path in sorted(SOURCE.rglob("*.py"))
        if path.name not in ("__main__.py", "__init__.py")
    ]
    plugins = [
        Path("hydra_plugins", path.stem)
        for folder in hydra_plugins.__path__
        for path in sorted(Path(folder).glob("advtrain_*.py"))
    ]
    return [".".join(path.parts) for path in [*found, *plugins]]


def test_importing_a_module_does_nothing_but_define(tmp_path: Path) -> None:
    names = modules()
    found = python("-c", IMPORTS, *names, cwd=tmp_path)
    assert found.returncode == 0 and f"imported {len(names)}" in found.stdout, found.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "code", ["open('made', 'w')", "import os; os.mkdir('made')", "import os; os.system('true')"]
)
def test_a_module_that_acts_when_it_is_imported_would_be_found(tmp_path: Path, code: str) -> None:
    (tmp_path / "advtrain_acting.py").write_text(f"{code}\n")
    found = python("-c", IMPORTS, "advtrain_acting", cwd=tmp_path)
    assert found.returncode != 0 and "at import" in found.stderr
    assert not (tmp_path / "made").exists()


def test_a_run_calls_nobody(tmp_path: Path) -> None:
    line = ("scale=smoke", "model=linear", "eval=quick", "logger=none", "hydra.run.dir=out")
    found = python("-c", OFFLINE, *line, cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    assert (tmp_path / "out" / "report.html").is_file()


def test_a_download_would_be_noticed(tmp_path: Path) -> None:
    line = ("dataset=mnist", f"dataset.root={tmp_path}", "dataset.download=true", "logger=none")
    found = python("-c", OFFLINE, *line, cwd=tmp_path)
    assert found.returncode == 9 and "looked up" in found.stderr, found.stderr


def declared() -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    return [Requirement(each) for each in [*project["dependencies"], *extras["dev"]]]


@pytest.mark.parametrize("requirement", declared(), ids=lambda each: each.name)
def test_each_dependency_is_bounded_and_locked(requirement: Requirement) -> None:
    operators = {each.operator for each in requirement.specifier}
    assert ">=" in operators and operators & {"<", "<=", "=="}, requirement
    locked = dict(re.findall(r"^([\w.-]+)==(\S+)", (ROOT / "constraints.txt").read_text(), re.M))
    name = requirement.name.lower().replace("_", "-")
    assert requirement.specifier.contains(locked[name], prereleases=True)

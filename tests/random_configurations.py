"""Random command lines, and what each of them has to become: a run, or one sentence.

Groups, options, keys and the types of their values are read from conf/, so a new one is drawn by
existing. Values are edges of what is allowed, beyond them, and of other types.
"""

import io
import json
import logging
import sys
from collections.abc import Iterator, Mapping
from contextlib import redirect_stderr, redirect_stdout
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hydra.errors import HydraException
from hypothesis import strategies as st
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from advtrain import main
from advtrain.config import ConfigError, conf_dir
from advtrain.grid import parse

OWN = {"eval": "eval.attacks", "dataset": "dataset", "hydra": "hydra"}
NUMBERS = ["0", "1", "2", "3", "-1", "0.5", "1e-9", "1e30", "nan", "inf", "-inf", "8/255", "1/0"]
WORDS = [
    *("null", "true", "false", "text", "''", "'a b'", "[]", "[1,2]", "[[1]]", "{}", "{a:1}"),
    *(
        "'${seed}'",
        "'${oc.env:HOME}'",
        "'${nothing}'",
        "'???'",
        "1e400",
        "é",
        "100000000000000000000",
    ),
    *("{_target_:os.system}", "{_target_:advtrain.attacks.pgd.pgd}", "'<script>'", "a.b.c", "1_0"),
]
values = st.sampled_from(NUMBERS) | st.sampled_from(WORDS)
LARGE = {"resnet50", "resnet110", "wrn_28_10", "wrn_34_10", "nuat_wrn_34_10", "thin_resnet50"}
"""Networks of which one step takes too long here: composed, not run."""
LONGEST = 600  # letters of a sentence


@cache
def groups() -> dict[str, list[str]]:
    """The options of each group, those of the tables' rows included."""
    folders = sorted(path for path in conf_dir().iterdir() if path.is_dir())
    return {
        folder.name: sorted(
            str(path.relative_to(folder).with_suffix("")) for path in folder.rglob("*.yaml")
        )
        for folder in folders
    }


@cache
def keys() -> list[str]:
    """The dotted keys that any option has, whether the one chosen has them or not."""
    found: dict[str, None] = {}
    for path in sorted(conf_dir().rglob("*.yaml")):
        group = path.relative_to(conf_dir()).parts[0].removesuffix(".yaml")
        content = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
        prefix = "" if group in ("config", "row", "experiment") else f"{group}."
        found |= dict.fromkeys(f"{prefix}{key}" for key in _dotted(content))
    hidden = ("hydra", "defaults", "plan")
    return [key for key in found if not key.startswith(hidden) and "override" not in key]


def _dotted(node: Any, path: str = "") -> Iterator[str]:
    if not isinstance(node, Mapping):
        return
    for key, value in node.items():
        if "@" not in str(key) and "/" not in str(key):
            yield f"{path}{key}"
            yield from _dotted(value, f"{path}{key}.")


@st.composite
def choice(draw: st.DrawFn) -> str:
    """An option of a group; rarely one that there is not."""
    group = draw(st.sampled_from(list(groups())))
    wrong = draw(st.integers(0, 19)) == 0
    option = draw(st.sampled_from(["nothing", "null", "1"] if wrong else groups()[group]))
    return f"{group}={option}"


@st.composite
def value(draw: st.DrawFn) -> str:
    """A value for a key; rarely an addition, a removal or a slip."""
    key = draw(st.sampled_from(keys()))
    given = draw(values)
    form = draw(st.sampled_from(["{k}={v}"] * 12 + ["+{k}={v}", "++{k}={v}", "~{k}", "{k}x={v}"]))
    return form.format(k=key, v=given)


lines = st.lists(choice(), max_size=4).flatmap(
    lambda chosen: st.lists(value(), max_size=4).map(lambda given: (*chosen, *given))
)
"""Command lines to compose and to check."""

SMALL = (
    *("logger=none", "device=cpu", "dataset=digits", "epochs=1", "batch_size=10", "resume=true"),
    *("dataset.train_size=20", "dataset.test_size=4", "dataset.validation=10"),
    *("validate.attack.steps=1", "dataset.replays=1", "compile=false"),
)
"""What comes last in a line that is run, so that it ends soon."""


@st.composite
def small(draw: st.DrawFn) -> tuple[str, ...]:
    """Command lines whose run, if there is one, is a step or a few."""
    drawn = []
    for group in ("model", "threat", "attack", "defense", "descent", "average", "penalty"):
        if draw(st.booleans()):
            option = draw(st.sampled_from(groups()[group]))
            drawn += [] if option in LARGE else [f"{group}={option}"]
    for group in ("optimizer", "schedule"):
        if draw(st.integers(0, 3)) == 0:
            drawn.append(f"{group}={draw(st.sampled_from(groups()[group]))}")
    drawn += draw(st.lists(value(), max_size=2))
    if draw(st.booleans()):
        return (*drawn, "scale=smoke", *SMALL, "eval=none")
    return (*drawn, "scale=smoke", *SMALL, "eval=quick", "eval.size=2")


def checked(line: tuple[str, ...]) -> str:
    """`accepted`, or `refused` in a sentence; anything else is an error of ours."""
    with _typed(line):
        try:
            main.validate(parse(line))
        except (ConfigError, HydraException, OmegaConfBaseException) as error:
            told = str(error) if isinstance(error, ConfigError) else main._retell(error)
            return _sentence(told)
    return "accepted"


def ran(line: tuple[str, ...], directory: Path) -> str:
    """What became of the whole command: `done`, `failed` (code 1, one sentence), `refused` (2)."""
    said, code = io.StringIO(), None
    before = logging.root.handlers[:]
    with _typed((*line, f"hydra.run.dir={directory}")), redirect_stderr(said), _unheard():
        try:
            main.main()
        except SystemExit as ended:
            code = ended.code
    for handler in set(logging.root.handlers) - set(before):  # of Hydra, which leaves them open
        logging.root.removeHandler(handler)
        handler.close()
    errors = said.getvalue()
    assert "Traceback" not in errors, errors
    if code == 0:
        found = json.loads((directory / "status.json").read_text())
        assert found["state"] == "done" and (directory / "report.html").is_file()
        return "done"
    told = [each for each in errors.splitlines() if each.strip()]
    assert code in (1, 2), code
    _sentence(told[-1].removeprefix("advtrain: "))
    return "refused" if code == 2 else "failed"


def _unheard() -> Any:
    return redirect_stdout(io.StringIO())


def _typed(line: tuple[str, ...]) -> Any:
    """As if the line had been typed."""
    patch = pytest.MonkeyPatch()
    patch.setattr(sys, "argv", ["advtrain", *line])
    patch.setenv("HYDRA_FULL_ERROR", "0")  # the command sets it for Hydra; it is gone after this
    return _Undone(patch)


class _Undone:
    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.patch = patch

    def __enter__(self) -> None:
        return None

    def __exit__(self, *_: Any) -> None:
        self.patch.undo()


def _sentence(told: str) -> str:
    assert told.strip(), "refused without a word"
    for each in told.splitlines():
        assert len(each) <= LONGEST, each
        assert "Traceback" not in each and "Error:" not in each, each
    return "refused"

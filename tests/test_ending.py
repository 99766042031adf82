"""The exit code of a command holds, whatever thread is still at work when it ends."""

import pytest
from running import TRAINING, python

ENDING = """
import atexit, threading
from advtrain.ending import Beside, end

atexit.register(print, "the end of Python")
over = threading.Event()
{kind}(target=over.wait, name="waits").start()
{then}
print("said", flush=True)
end(3)
"""
DAEMON = "__import__('functools').partial(threading.Thread, daemon=True)"


@pytest.mark.parametrize(
    ("kind", "then", "said"),
    [
        ("Beside", "", ["said"]),
        ("Beside", "over.set(); threading.enumerate()[-1].join()", ["said", "the end of Python"]),
        (DAEMON, "", ["said", "the end of Python"]),
    ],
    ids=["at work", "done", "of others"],
)
def test_python_does_not_end_beside_a_thread_that_may_abort_it(kind, then, said, tmp_path):
    script = ENDING.format(kind=kind, then=then)
    found = python("-c", script, cwd=tmp_path)
    assert (found.returncode, found.stdout.splitlines()) == (3, said), found.stderr


SILENT = """
from advtrain import tracking
from advtrain.main import main

def never():
    from torch.distributed import HashStore  # in C++, as W&B is in part in Rust
    while True:
        HashStore().check(["an answer"])

tracking.PATIENCE, tracking._wandb = 0.1, never
main()
"""


def test_a_run_that_goes_on_without_wandb_ends_with_its_code_while_wandb_still_begins(tmp_path):
    options = [each for each in TRAINING if not each.startswith("logger=")]
    given = [*options, "logger.mode=offline", f"hydra.run.dir={tmp_path / 'run'}"]
    found = python("-c", SILENT, *given, cwd=tmp_path)
    assert "W&B is not available (TimeoutError" in found.stderr
    assert found.returncode == 0, found.stderr

"""A method is one file and one YAML: it can be added from outside, and taken away."""

import html
import os
import shutil
import subprocess
import sys
from pathlib import Path

import advtrain
from advtrain.config import conf_dir

ROOT = Path(advtrain.__file__).parents[2]
QUICK = (
    *("logger=none", "epochs=1", "model=linear", "dataset.train_size=40", "dataset.test_size=10"),
    *("dataset.validation=10", "batch_size=20", "eval=quick", "eval.attacks.pgd.steps=2"),
)

DEFENSE = '''
"""Adversarial training that also pulls the logits together."""

from dataclasses import dataclass

from advtrain.defenses.base import Defense, Pair
from advtrain.functional import cross_entropy
from advtrain.ranges import NonNegative
from advtrain.types import Attack


@dataclass
class Pull(Defense):
    attack: Attack
    weight: NonNegative

    def craft(self, model, x, y, now):
        return Pair(x, self.attack(model, x, y), y)

    def loss(self, model, parcel):
        clean, adv = model(parcel.x), model(parcel.x_adv)
        pull = (clean - adv).square().sum(1).mean()
        return cross_entropy(adv, parcel.y).mean() + self.weight * pull, {"pull": pull.detach()}
'''
ATTACK = '''
"""A random corner of the ball."""

import torch


def corner(model, x, y, *, threat, generator=None):
    noise = torch.randn(x.shape, generator=generator)
    return threat.project(x + threat.eps * threat.steepest(noise), x)
'''


def advtrain_command(cwd, *arguments, path=""):
    return subprocess.run(
        [sys.executable, "-m", "advtrain", *arguments],
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(path)},
        capture_output=True,
        text=True,
        timeout=200,
    )


def test_a_defense_and_an_attack_from_outside_are_a_file_and_a_yaml_each(tmp_path):
    package = tmp_path / "mine"
    package.mkdir()
    (package / "pull.py").write_text(DEFENSE)
    (package / "corner.py").write_text(ATTACK)
    for group, name, target in (("defense", "pull", "Pull"), ("attack", "corner", "corner")):
        (tmp_path / "conf" / group).mkdir(parents=True)
        lines = [f"# Mine.\n_target_: mine.{name}.{target}\n"]
        lines += ["attack: ${attack}\nweight: 1/2\n"] if group == "defense" else []
        lines += ["_partial_: true\nthreat: ${threat}\n"] if group == "attack" else []
        (tmp_path / "conf" / group / f"{name}.yaml").write_text("".join(lines))
    chosen = ("defense=pull", "attack=corner", "descent=awp", "average=ema")
    arguments = ("--config-dir", str(tmp_path / "conf"), *QUICK, *chosen)
    unnamed = advtrain_command(tmp_path, *arguments, path=tmp_path)
    assert unnamed.returncode == 2 and "packages=[NAME]" in unnamed.stderr
    found = advtrain_command(tmp_path, *arguments, "packages=[mine]", path=tmp_path)
    assert found.returncode == 0, found.stderr
    (metrics,) = tmp_path.glob("outputs/*/*/metrics.jsonl")
    assert '"train_pull"' in metrics.read_text()
    page = html.unescape(metrics.with_name("report.html").read_text())
    assert f"advtrain --config-dir {tmp_path / 'conf'} " in page
    wrong = advtrain_command(
        tmp_path, *arguments, "packages=[mine]", "defense.weight=-1", path=tmp_path
    )
    assert wrong.returncode == 2 and "defense.weight=-1" in wrong.stderr


def test_a_method_can_be_taken_away_without_a_scar(tmp_path):
    shutil.copytree(ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(conf_dir(), tmp_path / "conf")
    (tmp_path / "src/advtrain/defenses/trades.py").unlink()
    (tmp_path / "conf/defense/trades.yaml").unlink()
    path = tmp_path / "src"
    for defense in ("pgd_at", "mixed_at"):
        found = advtrain_command(tmp_path, *QUICK, f"defense={defense}", path=path)
        assert found.returncode == 0, found.stderr
    gone = advtrain_command(tmp_path, *QUICK, "defense=trades", path=path)
    assert gone.returncode == 2 and "defense=trades: there is no such option" in gone.stderr
    left = [p for p in path.rglob("*.py") if "defenses.trades" in p.read_text()]
    assert left == []

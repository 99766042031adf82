"""The wheel carries the config groups, and runs where there is no checkout."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

from advtrain.config import conf_dir

ROOT = Path(__file__).parents[1]


def test_the_wheel_runs_from_an_unrelated_directory(tmp_path):
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    build = [*pip, "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", str(tmp_path)]
    subprocess.run([*build, str(ROOT)], check=True, capture_output=True, timeout=200)
    (wheel,) = tmp_path.glob("advtrain-*.whl")
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    yamls = {path.relative_to(conf_dir()) for path in conf_dir().rglob("*.yaml")}
    shipped = site / "advtrain" / "conf"
    assert {path.relative_to(shipped) for path in shipped.rglob("*.yaml")} == yamls
    assert list((site / "advtrain").rglob("*.html")) and list(site.rglob("imagenet100_classes.txt"))
    plugins = {path.name for path in (site / "hydra_plugins").iterdir()}
    assert plugins == {"advtrain_pool.py", "advtrain_sweeper.py"}  # a namespace: others add theirs
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    found = subprocess.run(
        [sys.executable, "-m", "advtrain", "logger=none", "scale=smoke", "model=linear"],
        cwd=elsewhere,
        env={**os.environ, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert found.returncode == 0, found.stderr
    (report,) = elsewhere.glob("outputs/digits-linear-pgd_at/*/report.html")
    assert report.stat().st_size > 10_000
    log = (report.parent / ".hydra" / "hydra.yaml").read_text()
    assert str(shipped) in log and str(ROOT / "conf") not in log

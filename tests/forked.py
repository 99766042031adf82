"""What the server of `faults` has loaded when it forks: imported once, by that process."""

import importlib

import torch
from grids import grid
from running import TINY, configuration
from sklearn.datasets import load_digits

torch.set_num_threads(1)
for name in (
    *("advtrain.main", "advtrain.job", "advtrain.sweeping", "advtrain.data.sets"),
    *("advtrain.averages", "advtrain.descents.plain", "advtrain.models.linear"),
    *("advtrain.mirror", "hydra._internal.core_plugins.basic_launcher", "scipy.stats"),
    *("matplotlib.backends.backend_agg", "matplotlib.pyplot", "PIL.PngImagePlugin", "jinja2"),
    *("rich.table", "rich.console", "advtrain.defenses.pgd_at", "advtrain.schedules"),
):
    importlib.import_module(name)
configuration(*TINY)  # the grammars and plugins of Hydra
with grid("seed=0,1"):
    load_digits()

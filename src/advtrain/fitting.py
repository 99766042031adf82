"""`batch_size=auto` and `eval.batch_size=auto`: numbers in their place, before they are needed.

A training minibatch is the largest power of two for which a step of this run fits into memory, and
no larger than MOST, nor than leaves an epoch UPDATES steps: methods are not tuned for more, and
their rates stay as they are. It is at least PAIR, for batch norm may refuse a single image. A batch
of an evaluation is the largest for which the gradient to the images fits. A run that goes on keeps
the number that it has: that of a training stands in its checkpoints, that of an evaluation in
status.json, before the first row. Of several processes each finds what fits, and the least counts.
"""

import platform
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from advtrain import newest, status
from advtrain.answers import asked, attacking
from advtrain.averaged import passes, single
from advtrain.digests import digest
from advtrain.exchange import of_all, of_leader
from advtrain.fingerprints import fingerprint
from advtrain.footprint import largest
from advtrain.inference import swift
from advtrain.models.views import mean_of
from advtrain.modes import crafting
from advtrain.precision import full_precision
from advtrain.run_evaluation import told
from advtrain.run_training import begun, method_of
from advtrain.runs import Setting
from advtrain.seeding import stream
from advtrain.sharing import sharing
from advtrain.training import TrainingRefused, train_step
from advtrain.types import Moment
from advtrain.world import ALONE, here, within

AUTO = "auto"
MOST = 1024
UPDATES = 16
PAIR = 2
PROBES = 16  # images on which the copy that is attacked is held against the network
MIDDLE = Moment(step=101, epoch=1.01, progress=0.505, batch=1)  # where attacks are at full radius


def for_training(setting: Setting) -> Setting:
    """`setting` with the `batch_size` of a training.

    TooLarge: PAIR images are too large. TrainingRefused: the method cannot train this network.
    """
    if setting.config["batch_size"] != AUTO:
        return setting
    before = of_leader(partial(_before, setting)) if setting.config["resume"] else None
    if before is not None:
        return _with_batch_size(setting, before)
    size, processes = len(setting.data.train), here().size
    most = max(PAIR, min(MOST, size // UPDATES) // processes)
    beside = _beside()
    with within(ALONE):
        found = largest(
            _step(setting),
            most,
            setting.device,
            key="batch_size",
            least=PAIR,
            processes=beside,
            twice=_graphs(setting),
        )
    return _with_batch_size(setting, processes * min(of_all(lambda: found)))


def for_evaluation(setting: Setting, model: nn.Module) -> Setting:
    """`setting` with the `eval.batch_size` for this network.

    TooLarge: one image is too large. EvaluationFailed: the network cannot be judged.
    """
    asked = setting.config["eval"]
    if not asked or asked["batch_size"] != AUTO:
        return setting
    found = of_leader(partial(_judged_with, setting, model))
    if found is None:
        fits = largest(
            _pass(setting, model),
            MOST,
            setting.device,
            key="eval.batch_size",
            processes=_beside(),
            twice=_graphs(setting),
        )
        found = min(of_all(lambda: fits))
        of_leader(partial(_note, setting, model, found))
    config = {**setting.config, "eval": {**asked, "batch_size": found}}
    return replace(setting, config=config)


def _graphs(setting: Setting) -> bool:
    return setting.config["compile"] == "reduce-overhead"


def _beside() -> int:
    """Processes of the run on this machine, which share its memory."""
    return of_all(platform.node).count(platform.node())


def _judged_with(setting: Setting, model: nn.Module) -> int | None:
    """The number by which these weights were judged in this directory, if that goes on."""
    if not setting.config["resume"]:
        return None
    known = status.read(setting.directory).get("fitted")
    if not isinstance(known, dict) or known.get("network") != _name(setting, model):
        return None
    found = known.get("eval.batch_size")
    return found if type(found) is int and 1 <= found <= MOST else None


def _note(setting: Setting, model: nn.Module, size: int) -> None:
    known = {"network": _name(setting, model), "eval.batch_size": size}
    status.write(setting.directory, "running", fitted=known)


def _name(setting: Setting, model: nn.Module) -> str:
    return fingerprint(digest(model), setting.config["model"], setting.config["precision"])


def _with_batch_size(setting: Setting, size: int) -> Setting:
    return replace(setting, config={**setting.config, "batch_size": size})


def _before(setting: Setting) -> int | None:
    """That of the run in this directory, if there is one to go on with."""
    last = setting.directory / "checkpoints" / "last.pt"
    if not newest.exists(last):
        return None
    try:
        config = newest.load_newest(last).get("config")
    except newest.CheckpointLost:  # which training tells, or begins anew
        return None
    found = config.get("batch_size") if isinstance(config, Mapping) else None
    return found if isinstance(found, int) else None


def _step(setting: Setting) -> Callable[[int], None]:
    """A step on so many training images, of a copy of what a training begins with."""
    config, train = setting.config, setting.data.train
    state, freezing, _ = begun(setting, len(train), anew=False)
    method = method_of(setting, state, freezing)

    def step(size: int) -> None:
        x, y = _images(setting, size)
        once = deepcopy(state)
        once.model.train()
        place = (x.device, config["seed"], "fitting")
        try:
            with stream(*place), sharing(size, *place):
                train_step(once, x, y, MIDDLE, method)
        except ValueError as error:
            raise TrainingRefused(str(error)) from error

    return step


def _pass(setting: Setting, model: nn.Module) -> Callable[[int], None]:
    """The gradient to so many images of what is attacked, and an answer of what is judged.

    EvaluationFailed: the first view, or the network in a pass.
    """
    view = next(iter(setting.build("eval").views.values()))
    with told():
        judged = view(model.eval())
        draws = passes(judged) // passes(single(judged))
    place = (setting.device, setting.config["seed"], "fitting")

    def judge(x: Tensor) -> None:
        with torch.no_grad(), crafting(judged, "eval"), full_precision(judged), stream(*place):
            asked(judged, x)

    few = setting.data.test.batch(slice(0, PROBES))[0]
    with told():
        judge(few)
        fast = mean_of(swift(single(judged), few), draws=draws)  # votes have no gradient

    def craft(x: Tensor) -> None:
        leaf = x.clone().requires_grad_()
        with torch.enable_grad(), crafting(fast, "eval"), attacking(x), stream(*place):
            logits = asked(fast, leaf)
            if logits.requires_grad:
                torch.autograd.grad(logits.sum(), leaf)

    def run(size: int) -> None:
        x = _images(setting, size)[0]
        with told():
            craft(x)
            judge(x)

    return run


def _images(setting: Setting, size: int) -> tuple[Tensor, Tensor]:
    """So many training images, the same ones several times if need be."""
    train = setting.data.train
    return train.batch(torch.arange(size) % len(train))

"""The attacks of other libraries with the settings of ours, each in the way its manual shows."""

import logging
from collections.abc import Callable, Mapping
from functools import partial
from importlib import import_module
from importlib.metadata import version
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

Run = Callable[[Tensor, Tensor], Tensor]


class Settings(NamedTuple):
    """What an attack is told; `eps` and `step_size` are in the norm of the attack."""

    eps: float
    steps: int
    step_size: float
    batch: int


def torchattacks(attack: str, model: nn.Module, set_to: Settings) -> Run | None:
    library = import_module("torchattacks")
    eps, steps, size, _ = set_to
    builders: dict[str, Callable[[], Any]] = {
        "fgsm": lambda: library.FGSM(model, eps=eps),
        "pgd": lambda: library.PGD(model, eps=eps, alpha=size, steps=steps),
        "pgd_l2": lambda: library.PGDL2(model, eps=eps, alpha=size, steps=steps),
        "mim": lambda: library.MIFGSM(model, eps=eps, alpha=size, steps=steps, decay=1.0),
        "apgd": lambda: library.APGD(model, norm="Linf", eps=eps, steps=steps, loss="ce"),
    }  # its AutoAttack gives its members 10 steps: another attack
    built: Run | None = builders[attack]() if attack in builders else None
    return built


def foolbox(attack: str, model: nn.Module, set_to: Settings) -> Run | None:
    attacks = import_module("foolbox.attacks")
    momentum = import_module("foolbox.attacks.mi_fgsm")
    eps, steps, size, _ = set_to
    moves = {"abs_stepsize": size, "steps": steps}
    builders: dict[str, Callable[[], Any]] = {
        "fgsm": lambda: attacks.LinfFastGradientAttack(),
        "pgd": lambda: attacks.LinfPGD(**moves, random_start=True),
        "pgd_l2": lambda: attacks.L2PGD(**moves, random_start=True),
        "mim": lambda: momentum.LinfMomentumIterativeFastGradientMethod(momentum=1.0, **moves),
    }
    if attack not in builders:
        return None
    built = builders[attack]()
    device = next(model.parameters()).device
    wrapped = import_module("foolbox").PyTorchModel(model, bounds=(0, 1), device=device)

    def run(x: Tensor, y: Tensor) -> Tensor:
        _, clipped, _ = built(wrapped, x, y, epsilons=eps)
        return clipped

    return run


def art(attack: str, model: nn.Module, set_to: Settings) -> Run | None:
    evasion = import_module("art.attacks.evasion")
    estimators = import_module("art.estimators.classification")
    eps, steps, size, batch = set_to
    many = {"eps": eps, "eps_step": size, "max_iter": steps, "batch_size": batch, "verbose": False}
    names = {
        "fgsm": ("FastGradientMethod", {"eps": eps, "batch_size": batch}),
        "pgd": ("ProjectedGradientDescent", {**many, "num_random_init": 1}),
        "pgd_l2": ("ProjectedGradientDescent", {**many, "num_random_init": 1, "norm": 2}),
        "mim": ("MomentumIterativeMethod", {**many, "decay": 1.0}),
        "apgd": (
            "AutoProjectedGradientDescent",
            {**many, "eps_step": 2 * eps, "nb_random_init": 1, "loss_type": "cross_entropy"},
        ),
    }
    if attack not in names:
        return None
    device = next(model.parameters()).device
    built: list[Any] = []

    def run(x: Tensor, y: Tensor) -> Tensor:
        if not built:
            classifier = estimators.PyTorchClassifier(
                model=model,
                loss=nn.CrossEntropyLoss(),
                input_shape=tuple(x.shape[1:]),
                nb_classes=10,
                clip_values=(0, 1),
                device_type="gpu" if device.type == "cuda" else "cpu",
            )
            name, keys = names[attack]
            built.append(getattr(evasion, name)(classifier, **keys))
        found = built[0].generate(x.cpu().numpy(), y.cpu().numpy())
        return torch.from_numpy(found).to(x.device)

    return run


def pyautoattack(attack: str, model: nn.Module, set_to: Settings) -> Run | None:
    library = import_module("pyautoattack.autoattack")
    base = import_module("pyautoattack.autopgd_base")
    logging.getLogger("auto-attack").setLevel(logging.ERROR)  # its advice on each run
    eps, steps, _, batch = set_to
    device = next(model.parameters()).device
    if attack == "apgd":
        single = base.APGDAttack(
            model, n_iter=steps, n_restarts=1, eps=eps, norm="Linf", seed=0, device=device
        )
        run: Run = single.perturb
        return run
    if attack == "autoattack":
        whole = library.AutoAttack(model, norm="Linf", eps=eps, seed=0, device=device)
        return lambda x, y: whole.run_standard_evaluation(x, y, batch_size=batch)[0]
    return None


def bound(run: Run | None, x: Tensor, y: Tensor) -> Callable[[], Tensor] | None:
    """`run` on a batch; None where there is none."""
    return partial(run, x, y) if run is not None else None


PEERS: Mapping[str, Callable[[str, nn.Module, Settings], Run | None]] = {
    "torchattacks": torchattacks,
    "foolbox": foolbox,
    "art": art,
    "pyautoattack": pyautoattack,
}
PACKAGES = {"art": "adversarial-robustness-toolbox"}


def installed(peer: str) -> str | None:
    """The version of a peer that can be imported, else None."""
    try:
        import_module(peer)
    except ImportError:
        return None
    return version(PACKAGES.get(peer, peer))

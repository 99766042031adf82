"""Networks and images to attack, so that verdicts compare as well as times.

Without `--root` the images are the digits of scikit-learn, blown up; without `--checkpoint` the
network is trained on them for a moment, by FGSM from random starts, the same each time on a device.
"""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from benchmark import one_sentence
from torch import Tensor, nn

from advtrain import checkpoints
from advtrain.attacks.pgd import pgd
from advtrain.data import readers
from advtrain.models.resnet import cifar_resnet, resnet18
from advtrain.models.small import mnist_cnn
from advtrain.models.wide_resnet import wide_resnet
from advtrain.modes import crafting
from advtrain.threat import Linf

Split = tuple[Tensor, Tensor]

CPU = torch.device("cpu")
PLAIN = {"mean": None, "std": None}
HE = {"initialisation": "he"}


class Kind(NamedTuple):
    """A network by name: the images it takes, the usual radii, and updates of a brief training."""

    shape: tuple[int, int, int]
    eps: Mapping[str, float]
    updates: int


class Subject(NamedTuple):
    """What is attacked, with `eps` by norm, and in words how it came about."""

    model: nn.Module
    x: Tensor
    y: Tensor
    eps: Mapping[str, float]
    story: str


KINDS = {
    "mnist_cnn": Kind((1, 28, 28), {"linf": 0.3, "l2": 2.0}, 200),
    "resnet18": Kind((3, 32, 32), {"linf": 8 / 255, "l2": 0.5}, 25),
    "wrn_34_10": Kind((3, 32, 32), {"linf": 8 / 255, "l2": 0.5}, 0),
    "resnet110": Kind((3, 32, 32), {"linf": 8 / 255, "l2": 0.5}, 0),  # minutes, if it were trained
}

MAKERS: Mapping[str, Callable[..., nn.Module]] = {
    "mnist_cnn": partial(mnist_cnn, **PLAIN),
    "resnet18": partial(resnet18, stem="auto", **PLAIN),
    "wrn_34_10": partial(wide_resnet, depth=34, width=10, dropout=0.0, **HE, **PLAIN),
    "resnet110": partial(cifar_resnet, depth=110, **PLAIN),
}


def subject(
    name: str,
    batch: int,
    root: str | None,
    checkpoint: str | None,
    device: torch.device = CPU,
) -> Subject:
    """The network `name` in evaluation mode, and the first `batch` images of a test split.

    Both on `device`, where a brief training is made, too. SystemExit: weights or images are not to
    be had.

    Radii on the small digits are half of the usual ones, lest nothing stands.
    """
    kind = KINDS[name]
    eps = {norm: radius / (1 if root else 2) for norm, radius in kind.eps.items()}
    torch.manual_seed(0)
    model: nn.Module = MAKERS[name](kind.shape, 10).to(device)
    train, test, source = _digits(kind.shape) if root is None else _published(name, root)
    x, y = (each.to(device) for each in test)
    if batch > len(x):
        raise SystemExit(f"{batch} images are asked for; the test split of {source} has {len(x)}.")
    if checkpoint is None:
        _train(model, *(each.to(device) for each in train), eps["linf"], kind.updates)
        trained = f"{kind.updates} updates" if kind.updates else "as initialised"
        story = f"{trained} on {source}"
    else:
        _load(model, Path(checkpoint))
        story = f"weights of {Path(checkpoint).name}, images of {source}"
    return Subject(model.eval(), x[:batch], y[:batch], eps, story)


def _digits(shape: tuple[int, int, int]) -> tuple[Split, Split, str]:
    from sklearn.datasets import load_digits

    data = load_digits()
    small = torch.tensor(data.images / 16.0, dtype=torch.float32).unsqueeze(1)
    large = F.interpolate(small, shape[1:], mode="bilinear").expand(-1, *shape).contiguous()
    y = torch.tensor(data.target, dtype=torch.int64)
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
    test, train = order[:600], order[600:]
    return (large[train], y[train]), (large[test], y[test]), "the digits of scikit-learn"


def _published(name: str, root: str) -> tuple[Split, Split, str]:
    source = readers.mnist() if name == "mnist_cnn" else readers.cifar10()
    with one_sentence():
        train, test, _ = readers.read(source, root, False)
    (x, y), (x_test, y_test) = train, test
    return (x[:4000] / 255, y[:4000]), (x_test[:4000] / 255, y_test[:4000]), source.name


def _train(model: nn.Module, x: Tensor, y: Tensor, eps: float, updates: int) -> None:
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    draws = torch.Generator(x.device).manual_seed(0)
    for done in range(updates):
        rows = torch.randint(len(x), (64,), generator=draws, device=x.device)
        radius = eps * min(1.0, 2 * done / updates)  # from 0, or the loss stays flat
        batch = x[rows], y[rows]
        attack = partial(pgd, threat=Linf(radius), steps=1, step_size=1.25 * radius)
        with crafting(model, "train"):
            x_adv = attack(model, *batch, generator=draws)
        optimizer.zero_grad()
        F.cross_entropy(model(x_adv), batch[1]).backward()
        optimizer.step()
    optimizer.zero_grad()


def _load(model: nn.Module, path: Path) -> None:
    """Weights by name, or in their order where the names are another code's."""
    with one_sentence():
        tensors, own = checkpoints.weights(checkpoints.load(path), path), model.state_dict()
        if not own.keys() & tensors.keys() and len(own) == len(tensors):
            tensors = dict(zip(own, tensors.values(), strict=True))
        checkpoints.restore(model, tensors, path)

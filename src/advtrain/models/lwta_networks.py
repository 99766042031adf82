"""Networks with winner-takes-all activations in place of each ReLU, see `lwta`.

`lwta_wide_resnet` is that of Panousis et al. 2021: the wide ResNet of TRADES on raw pixels, with
two competitors. At depth 34 and width 1 it has 466,714 parameters.

Differs: the authors build five more blocks that they never use, 490,074 parameters.
"""

from collections.abc import Sequence
from functools import partial

from advtrain.models import small, wide_resnet
from advtrain.models.lwta import Lwta
from advtrain.models.network import Network
from advtrain.ranges import Count, Positive


def lwta_wide_resnet(
    shape: tuple[int, int, int],
    classes: int,
    *,
    depth: Count,
    width: Count,
    competitors: Count,
    train_temperature: Positive,
    test_temperature: Positive,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
) -> Network:
    """`wide_resnet.wide_resnet` without dropout, initialised as TRADES does."""
    activation = _activation(competitors, train_temperature, test_temperature)
    return wide_resnet.assembled(shape, classes, depth, width, 0.0, "he", mean, std, activation)


def lwta_cnn(
    shape: tuple[int, int, int],
    classes: int,
    *,
    competitors: Count,
    train_temperature: Positive,
    test_temperature: Positive,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
) -> Network:
    """`small.small_cnn`: convolutions of 32 and 64 channels with batch norm."""
    activation = _activation(competitors, train_temperature, test_temperature)
    return small.halving(shape, classes, mean, std, activation)


def lwta_mnist_cnn(
    shape: tuple[int, int, int],
    classes: int,
    *,
    competitors: Count,
    train_temperature: Positive,
    test_temperature: Positive,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
) -> Network:
    """`small.mnist_cnn`: layers of 16, 32 and 100 units that compete, without batch norm."""
    activation = _activation(competitors, train_temperature, test_temperature)
    return small.striding(shape, classes, mean, std, activation)


def _activation(competitors: int, train: float, test: float) -> partial[Lwta]:
    """For networks in which what goes into an activation goes nowhere else."""
    return partial(
        Lwta,
        competitors=competitors,
        train_temperature=train,
        test_temperature=test,
        inplace=True,
    )

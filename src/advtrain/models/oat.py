"""Networks of Once-for-all (Wang et al. 2020, https://arxiv.org/abs/2010.11828), and a small one.

Plain networks with conditional batch norms, see `conditional`. FiLM stands behind the batch norms
of the residual branches and of a ResNet's stem; not behind those of shortcuts, nor behind the last
one of a wide ResNet. Images are in [0, 1], and nothing normalises them. Parameters at 10 classes,
codes of 128 numbers and dual batch norm: 33,355,466 (ResNet-34), 16,228,922 (WRN-16-8), 3,886,394
(WRN-40-2), as in the authors' code.
"""

from collections.abc import Sequence
from typing import Any

from advtrain.models.conditional import ConditionalNetwork, Encoding
from advtrain.models.network import Network
from advtrain.models.resnet import resnet34
from advtrain.models.slimmable import SlimmableNetwork
from advtrain.models.small import small_cnn
from advtrain.models.wide_resnet import wide_resnet
from advtrain.ranges import Count, Decay, Unit

Shape = tuple[int, int, int]


def conditional(
    plain: Network, *, widths: Sequence[float] | None, **keys: Any
) -> ConditionalNetwork:
    """The conditional network made of `plain`, slimmable to `widths` unless that is None."""
    if widths is None:
        return ConditionalNetwork(plain, **keys)
    return SlimmableNetwork(plain, widths=widths, **keys)


def oat_resnet34(
    shape: Shape,
    classes: int,
    *,
    lambdas: Sequence[Unit],
    encoding: Encoding,
    code_size: Count,
    dual: bool,
    film_offset: float,
    widths: Sequence[Unit] | None = None,
) -> ConditionalNetwork:
    """ResNet-34 with the 3x3 stem, for CIFAR-10."""
    return conditional(
        resnet34(shape, classes, stem="cifar", mean=None, std=None),
        lambdas=lambdas,
        encoding=encoding,
        code_size=code_size,
        dual=dual,
        film_offset=film_offset,
        widths=widths,
        bare=lambda name: "downsample" in name,
    )


def oat_wide_resnet(
    shape: Shape,
    classes: int,
    *,
    depth: Count,
    width: Count,
    dropout: Decay,
    lambdas: Sequence[Unit],
    encoding: Encoding,
    code_size: Count,
    dual: bool,
    film_offset: float,
    widths: Sequence[Unit] | None = None,
) -> ConditionalNetwork:
    """WRN-`depth`-`width` with PyTorch's initialisation: 16-8 for SVHN, 40-2 for STL-10."""
    plain = wide_resnet(
        *(shape, classes),
        depth=depth,
        width=width,
        dropout=dropout,
        initialisation="torch",
        mean=None,
        std=None,
    )
    return conditional(
        plain,
        lambdas=lambdas,
        encoding=encoding,
        code_size=code_size,
        dual=dual,
        film_offset=film_offset,
        widths=widths,
        bare=lambda name: name == "bn1",
    )


def oat_small_cnn(
    shape: Shape,
    classes: int,
    *,
    lambdas: Sequence[Unit],
    encoding: Encoding,
    code_size: Count,
    dual: bool,
    film_offset: float,
    widths: Sequence[Unit] | None = None,
) -> ConditionalNetwork:
    """`small_cnn` with FiLM behind every batch norm, for digits and MNIST. Ours."""
    return conditional(
        small_cnn(shape, classes, mean=None, std=None),
        lambdas=lambdas,
        encoding=encoding,
        code_size=code_size,
        dual=dual,
        film_offset=film_offset,
        widths=widths,
        bare=lambda name: False,
    )

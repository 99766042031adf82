"""Names of layers in other people's files, translated to those of networks here.

One set of rules serves torchvision's ResNets, and the wide ResNets of TRADES and of what is built
on it (MART, AWP, LWTA): theirs are `conv1`, `layer1`, `block1.layer.0`, `convShortcut` and `fc`,
ours `body.conv1`, `body.layer1`, `body.block1.0`, `shortcut` and `head`.

Nothing of a file is dropped but what no network of these reads: `sub_block1`, five blocks that the
first TRADES, MART and LWTA build and never use, and the temperatures `temp` that layers of the LWTA
file once learned, for which the authors' released code has no use either.
"""

import re
from collections.abc import Collection, Mapping

from torch import Tensor, nn

from advtrain.models.spectral_norm import undivided

RULES = (
    (r"^", "body."),
    (r"^body\.fc\.", "head."),
    (r"^(body\.block\d+)\.layer\.", r"\1."),
    (r"\.convShortcut\.", ".shortcut."),
)
UNREAD = (r"^sub_block\d+\.", r"\.temp$")


def translated(network: nn.Module, theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`theirs` under the names of `network`; as it is, where those fit no better."""
    own = {undivided(name) for name in network.state_dict()}
    renamed = {ours(name): v for name, v in theirs.items() if name in own or not unread(name)}
    return renamed if len(own & renamed.keys()) > len(own & theirs.keys()) else dict(theirs)


def ours(name: str) -> str:
    """The name of a tensor here, from that in such a file."""
    for pattern, replacement in RULES:
        name = re.sub(pattern, replacement, name, count=1)
    return name


def unread(name: str) -> bool:
    """Whether this is in a file, and in no use."""
    return any(re.search(pattern, name) for pattern in UNREAD)


def remark(theirs: Collection[str], used: Collection[str]) -> str:
    """What of a file was left out, in words; empty where nothing was."""
    dropped = [name for name in theirs if unread(name) and name not in used]
    temperatures = sum(name.endswith(".temp") for name in dropped)
    told = []
    if len(dropped) > temperatures:
        told.append(f"{len(dropped) - temperatures} tensors of blocks that no image passes")
    if temperatures:
        told.append(
            f"{temperatures} learned temperatures (here model.train_temperature and "
            "model.test_temperature count)"
        )
    return f"; without {' and '.join(told)}" if told else ""

"""Published weights to begin training from: torchvision's, by name or as a file of its layout.

A network remembers what it was told (`Network.pretrained`); the weights are put into it where a
training starts, and nowhere else. `imagenet` means IMAGENET1K_V1, the recipe of the published
comparisons. Files by name are those of torch.hub, in TORCH_HOME/hub/checkpoints. A file of the
`robustness` package (adversarially trained, Salman et al. 2020, https://arxiv.org/abs/2007.08489)
has the layout of torchvision under `model.`, beside copies for its attacks.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from advtrain.models.spectral_norm import undivided

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, red, green, blue
STEM = ("body.conv1", "body.bn1")


@dataclass(frozen=True)
class Pretrained:
    """`source`: imagenet, or a file. `weights`: torchvision's name of those that imagenet means."""

    source: str
    weights: str

    def require_constants(
        self, mean: Sequence[float] | None, std: Sequence[float] | None, channels: int
    ) -> None:
        """Raise ValueError unless the network normalises as those of ImageNet were trained."""
        if self.source != "imagenet":
            return
        if channels != 3:
            raise ValueError(
                f"model.pretrained=imagenet reads colour, and these images have {channels} "
                "channel(s); choose another dataset, or model.pretrained=null."
            )
        if (tuple(mean or ()), tuple(std or ())) != (MEAN, STD):
            raise ValueError(
                f"model.mean={mean} and model.std={std}, but the weights of "
                f"model.pretrained=imagenet expect ImageNet's: add {CONSTANTS}."
            )

    def file(self) -> Path:
        """Where the weights are, fetched if need be; ValueError tells which file to put where."""
        if self.source != "imagenet":
            return Path(self.source)
        from torchvision.models import get_weight

        url = get_weight(self.weights).url
        path = Path(torch.hub.get_dir(), "checkpoints", url.rpartition("/")[2])
        if not path.exists():
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                digest = path.stem.rpartition("-")[2]  # its first digits, in hexadecimal
                torch.hub.download_url_to_file(url, str(path), digest, progress=False)
            except (OSError, RuntimeError) as error:  # no network, no room, another content
                raise ValueError(
                    f"model.pretrained=imagenet cannot be fetched from {url} ({error}). Put that "
                    f"file into {path.parent}, or give it as model.pretrained=FILE."
                ) from error
        return path


CONSTANTS = f"model.mean={list(MEAN)} model.std={list(STD)}".replace(", ", ",")


def translated(network: nn.Module, theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of torchvision's layout under the names of `network`.

    Its constants of normalisation, which such files do not have, are its own.
    """
    inner = {key.removeprefix("model."): theirs[key] for key in theirs if key.startswith("model.")}
    own = {key: v for key, v in network.state_dict().items() if key.startswith("normalise.")}
    return own | {
        key.replace("fc.", "head.", 1) if key.startswith("fc.") else f"body.{key}": value
        for key, value in (inner or theirs).items()
    }


def remark(network: nn.Module) -> str:
    """What to consider where the network normalises otherwise than ImageNet's weights expect."""
    own = network.state_dict()
    for key, expected in (("normalise.mean", MEAN), ("normalise.std", STD)):
        if key not in own or own[key].flatten().tolist() != torch.tensor(expected).tolist():
            return f"; weights of ImageNet expect {CONSTANTS}"
    return ""


def left_out(network: nn.Module, tensors: Mapping[str, Tensor]) -> tuple[str, ...]:
    """The parts of `network` for which weights of other sizes are no use: head, stem.

    A stem is a convolution and its batch norm, whose statistics are of that convolution.
    """
    own = {undivided(name): value for name, value in network.state_dict().items()}

    def fits(key: str) -> bool:
        return key in tensors and tensors[key].shape == own[key].shape

    head = () if fits("head.weight") else ("head",)
    return head if fits("body.conv1.weight") else (*head, *STEM)

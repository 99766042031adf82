"""Where everything meets: a configuration becomes data, a network, a method, a verdict."""

import logging
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from advtrain import checkpoints
from advtrain.channels import channels_last
from advtrain.checkpoints import CheckpointError
from advtrain.config import ConfigError, confined, make
from advtrain.data.split import Data
from advtrain.dense import numbers
from advtrain.determinism import demand
from advtrain.foreign import Refused
from advtrain.models import layouts
from advtrain.models.pretrained import Pretrained, left_out, remark, translated
from advtrain.models.spectral_norm import ORIGINAL, divided, normalise, refresh
from advtrain.parts import require_parts
from advtrain.plans import Validation
from advtrain.precision import low_precision
from advtrain.programs import compiled
from advtrain.ranges import Count, Natural, Unit
from advtrain.recomputing import recomputing
from advtrain.seeding import derive
from advtrain.sizing import require_size
from advtrain.types import (
    Average,
    Defense,
    Descent,
    Penalty,
    Schedule,
    Threat,
    TrainingAttack,
)
from advtrain.watchdog import Watchdog
from advtrain.world import here

logger = logging.getLogger(__name__)

UNITS = ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16")  # of processors, as torch names them

LARGEST = 65_536  # pixels along a side, channels or classes
DEFAULTS = {"precision": "fp32", "spectral_norm": "none", "seed": 0}
"""Keys that decide how a network is built, where a checkpoint does not tell them."""

Allowed = Iterable[str]
Network = Callable[[tuple[int, int, int], int], nn.Module]
"""A node of the group `model` with `_partial_: true`: what makes a network of shape and classes."""


@dataclass(frozen=True)
class Paper:
    """What stands beside the figures of `published` in tables, of which it changes none.

    `setting`: the choices (`scale: full`), or values at dotted keys, that the figures are of: a run
    with others is not compared with them. `given`: keys that the command line may set without
    leaving it. `remarks`: sentences by measure, or by `table`, of all its rows, and `row`.
    """

    source: str | None
    setting: Mapping[str, str]
    given: list[str]
    remarks: Mapping[str, list[str]]


@dataclass(frozen=True)
class Program:
    """The keys at the root of the configuration; nodes are built where they are needed."""

    job: Literal["train_eval", "train", "eval", "plan"]
    name: str
    dataset: Mapping
    model: Mapping
    threat: Threat
    threats: Mapping[str, Threat]
    attack: TrainingAttack
    optimizer: Mapping
    schedule: Mapping[str, Schedule]
    defense: Defense
    descent: Descent
    average: Average
    penalty: Mapping[str, Penalty]
    validate: Validation
    watchdog: Watchdog
    eval: Mapping
    logger: Mapping
    scale: Mapping
    epochs: Count
    batch_size: Count | Literal["auto"]
    checkpoint: str | None
    fresh: list[str]
    freeze: list[str]
    freeze_epochs: Count | None
    resume: bool
    seed: Natural
    device: str
    precision: Literal["fp32", "bf16"]
    spectral_norm: Literal["none", "matrix", "convolution"]
    compile: bool | Literal["reduce-overhead"]
    recompute: bool
    deterministic: bool
    batch_norm: Literal["sync", "local"]
    packages: list[str]
    published: Mapping[str, Unit]
    paper: Paper
    plan: Mapping


@dataclass(frozen=True)
class Setting:
    """What training and evaluation share: the plain configuration, where it runs, and the data."""

    config: Mapping[str, Any]
    directory: Path
    device: torch.device
    data: Data
    allowed: tuple[str, ...]

    def build(self, key: str, *data: Any) -> Any:
        """What the node `key` describes, made of `data` where its target takes some."""
        supplied = {"setting": self}
        return make(self.config[key], *data, path=key, allowed=self.allowed, supplied=supplied)


def choose_device(asked: str) -> torch.device:
    """`auto` is the first CUDA device, or the CPU; of several processes each has a CUDA device of
    its own. ConfigError: a device that is not here.
    """
    if asked == "auto":
        asked = "cuda" if torch.cuda.is_available() else "cpu"
    if here().size > 1 and asked.startswith("cuda"):
        return _own_device(asked)
    try:
        device = torch.device(asked)
    except RuntimeError as error:
        raise ConfigError(
            f"device={asked} is refused; allowed: auto, cpu, cuda, cuda:N."
        ) from error
    if device.type not in ("cpu", "cuda") or asked.isdigit():
        raise ConfigError(f"device={asked} is refused; allowed: auto, cpu, cuda, cuda:N.")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        found = torch.cuda.device_count()
        raise ConfigError(f"device={asked}: {found} CUDA devices are here. Use device=auto or cpu.")
    return device


def _own_device(asked: str) -> torch.device:
    found, place = torch.cuda.device_count(), here().local
    if asked != "cuda":
        raise ConfigError(
            f"device={asked}: several processes do this run, each on a CUDA device of its own. Use "
            "device=cuda, and CUDA_VISIBLE_DEVICES to choose among devices."
        )
    if place >= found:
        raise ConfigError(
            f"device=cuda: {found} CUDA devices are here, too few for process {place + 1} of this "
            "machine. Start as many processes as there are devices, or use device=cpu."
        )
    return torch.device("cuda", place)


def setting(config: Mapping[str, Any], directory: Path, allowed: Allowed) -> Setting:
    """Load the data and choose the device; from here on fp32 is fp32, on every device."""
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    demand(config["deterministic"])
    device = choose_device(config["device"])
    require_able(device, config["precision"], config["compile"])
    if _certifies_low(config):
        require_bfloat16(device, "eval.certify.precision")
    if config["compile"] and config.get("recompute"):
        raise ConfigError(
            f"compile={config['compile']} recompute=true: programs choose by themselves what they "
            "compute again. Give one of the two."
        )
    order = 0  # of subsets: the same examples whatever the seed of the run, so that runs compare
    data = make(config["dataset"], device, order, path="dataset", allowed=allowed)
    if not isinstance(data, Data):
        target = config["dataset"].get("_target_")
        raise ConfigError(f"dataset._target_={target} makes no data, but {type(data).__name__}.")
    return Setting(config, directory, device, data, tuple(allowed))


def require_able(device: torch.device, precision: str, graphs: bool | str) -> None:
    """Raise ConfigError for what `device` cannot do; a warning tells what it can only emulate."""
    if graphs == "reduce-overhead" and device.type != "cuda":
        raise ConfigError(
            f"compile=reduce-overhead records CUDA graphs, and device is {device.type}. Use "
            "compile=true."
        )
    if precision == "bf16":
        require_bfloat16(device, "precision")


def require_bfloat16(device: torch.device, key: str) -> None:
    """As `require_able`, of the bf16 that stands at `key` of the configuration."""
    if bfloat16(device):
        return
    if device.type == "cuda":
        raise ConfigError(
            f"{key}=bf16: {torch.cuda.get_device_name(device)} has no units for bfloat16. Use "
            f"{key}=fp32."
        )
    logger.warning(
        "%s=bf16: this processor has no units for bfloat16, and takes longer than with %s=fp32.",
        *(key, key),
    )


def _certifies_low(config: Mapping[str, Any]) -> bool:
    """Whether the job ends with certificates of the network in bfloat16."""
    certify = (config["eval"] or {}).get("certify") or {}
    return config["job"] != "train" and certify.get("precision") == "bf16"


def bfloat16(device: torch.device) -> bool:
    """Whether `device` computes in bfloat16 by itself, as far as torch tells."""
    if device.type == "cuda":
        with torch.cuda.device(device):  # what is asked about is the current one
            return torch.cuda.is_bf16_supported(including_emulation=False)
    if hasattr(torch.cpu, "get_capabilities"):
        found = torch.cpu.get_capabilities()
        return any(found.get(unit) for unit in UNITS)
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def make_model(
    config: Mapping[str, Any],
    shape: tuple[int, int, int],
    classes: int,
    device: torch.device,
    allowed: Allowed,
) -> nn.Module:
    """The network of `config` on `device`; its initial weights are a function of the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(config["seed"], "model"))
        model = make(config["model"], shape, classes, path="model", allowed=allowed)
        if not isinstance(model, nn.Module):
            raise ConfigError(f"model describes a {type(model).__name__}, not a network.")
        try:
            normalise(model, shape, config.get("spectral_norm", "none"))
            if config["precision"] == "bf16":
                low_precision(model, torch.bfloat16)
            if config.get("recompute"):
                recomputing(model)
        except ValueError as error:
            raise ConfigError(str(error)) from error
    model = channels_last(model.to(device), shape)
    if config["compile"]:
        compiled(model, graphs=config["compile"] == "reduce-overhead")
    return model


def start_weights(model: nn.Module, given: str | None, fresh: Collection[str] = ()) -> str:
    """Put the weights of `checkpoint=` into the network, else those of `model.pretrained=`.

    The parts `fresh` of the network keep the values of its initialisation, and so does what cannot
    take pretrained weights. Returns a line about what came from where; empty if nothing did.
    ConfigError, CheckpointError: a file or a part that is not there, or does not fit.
    """
    start, advice = getattr(model, "pretrained", None), ""
    if given is None and not isinstance(start, Pretrained):
        if fresh:
            raise ConfigError(f"fresh={list(fresh)}: give checkpoint= or model.pretrained=, too.")
        return ""
    try:
        require_parts("fresh", fresh, [name for name, _ in model.named_parameters()])
        if given is not None:
            file, key = checkpoints.locate(given), "checkpoint"
            theirs = checkpoints.weights(checkpoints.load(file, key), file, key)
            tensors, left = layouts.translated(model, theirs), tuple(fresh)
            advice = layouts.remark(theirs, tensors)
        else:
            assert isinstance(start, Pretrained)
            file, key = start.file(), "model.pretrained"
            tensors = checkpoints.weights(checkpoints.load(file, key), file, key)
            tensors = translated(model, tensors)
            left = (*fresh, *left_out(model, tensors))
        checkpoints.restore(model, divided(model, tensors), file, left, key)
        if given is None:
            advice = remark(model)
        if not any(name.endswith(ORIGINAL) for name in tensors):
            refresh(model)
    except CheckpointError:
        raise
    except ValueError as error:
        raise ConfigError(str(error)) from error
    rest = f"; {', '.join(dict.fromkeys(left))} as initialised" if left else ""
    return f"begins with the weights of {file}{rest}{advice}"


def load_run(
    path: str | Path, *, which: Literal["best", "last"] = "best", packages: Allowed = ()
) -> tuple[nn.Module, dict[str, Any]]:
    """The network of a run, in evaluation mode on the CPU, and its plain configuration.

    `path`: a run directory or a checkpoint of advtrain. `packages`: those whose code the run's
    configuration may call beside advtrain's. CheckpointError: no checkpoint, or one without a
    configuration.
    """
    path = Path(path)
    file = path / "checkpoints" / f"{which}.pt" if path.is_dir() else path
    content = checkpoints.load(file)
    if not isinstance(content.get("config"), Mapping) or not isinstance(
        content.get("data"), Mapping
    ):
        raise CheckpointError(
            f"checkpoint={file} holds no configuration: say what its network is by a key `model` "
            "beside `checkpoint`, or build it yourself and use checkpoints.load_weights."
        )
    config = {**DEFAULTS, **content["config"], "compile": False, "recompute": False}
    confined(config.get("model"), "advtrain.models", f"{file}: model", packages)
    weights = checkpoints.weights(content, file)
    try:
        shape, classes = built_for(content)
        require_fitting(config["model"], shape, classes, weights, packages)
        model = make_model(config, shape, classes, torch.device("cpu"), packages)
    except (ConfigError, Refused, LookupError) as error:
        raise ConfigError(f"{file}: {error}") from error
    checkpoints.restore(model, weights, file)
    return model.eval(), dict(content["config"])


def built_for(content: Mapping[str, Any]) -> tuple[tuple[int, int, int], int]:
    """The shape of images and the number of classes that a checkpoint tells. Refused: it does not,
    or they are no sizes."""
    data = content.get("data")
    told = data if isinstance(data, Mapping) else {}
    shape, classes = told.get("shape"), told.get("classes")
    numbers = [*shape, classes] if isinstance(shape, list | tuple) else []
    sizes = [n for n in numbers if type(n) is int and 1 <= n <= LARGEST]
    if len(numbers) != 4 or sizes != numbers:
        raise Refused(f"its data have shape {str(shape)[:40]} and {str(classes)[:20]} classes")
    return (sizes[0], sizes[1], sizes[2]), sizes[3]


def require_fitting(
    node: Any,
    shape: tuple[int, int, int],
    classes: int,
    weights: Mapping[str, Tensor],
    allowed: Allowed = (),
) -> None:
    """Refused: a network that a file describes is larger than the weights that it brings.

    Nothing is said of networks of others, which are built by their own code.
    """
    target = node.get("_target_") if isinstance(node, Mapping) else None
    if not str(target).startswith("advtrain.") or target == "advtrain.models.custom.custom":
        return
    most = 2 * numbers(weights.values()) + 99
    require_size(lambda: make(node, shape, classes, path="model", allowed=allowed), most)


def source(setting: Setting, *, checkpoint: str, model: Network | None = None) -> nn.Module:
    """Another network than the one judged, in evaluation mode, for `transfer`.

    `checkpoint`: a run directory or a file of one; or anyone's state dict, of the network that
    `model` makes for the data of this evaluation. CheckpointError: as `load_run`.
    """
    file = checkpoints.locate(checkpoint)
    if model is None:
        return load_run(file, packages=setting.allowed)[0]
    with torch.random.fork_rng(devices=[]):
        network = model(setting.data.shape, len(setting.data.classes))
    theirs = checkpoints.weights(checkpoints.load(file), file)
    checkpoints.restore(network, layouts.translated(network, theirs), file)
    return network.eval()


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())

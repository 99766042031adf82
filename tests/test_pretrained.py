"""Published weights: what is loaded, what is left, when they are read, and what is refused."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import torchvision
from running import TRAINING, run
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from advtrain import checkpoints
from advtrain.checkpoints import CheckpointError
from advtrain.config import ConfigError
from advtrain.models.network import Network
from advtrain.models.pretrained import MEAN, STD
from advtrain.models.resnet import resnet18, resnet34, resnet50
from advtrain.models.small import small_cnn
from advtrain.models.spectral_norm import normalise
from advtrain.runs import load_run, start_weights

CIFAR, IMAGENET, GRAY = (3, 32, 32), (3, 224, 224), (1, 8, 8)
NORMAL = {"mean": list(MEAN), "std": list(STD)}
NAME = "resnet18-f37072fd.pth"
TRAIN = (*(each for each in TRAINING if each != "model=linear"), "epochs=1")
ONE_STEP = "eval.attacks.pgd.steps=1"
GRAYS = ("model=resnet18", "model.stem=imagenet")


@pytest.fixture(scope="module")
def theirs() -> nn.Module:
    """Torchvision's network with statistics and scales that matter, in evaluation mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = torchvision.models.resnet18(weights=None)
        for layer in model.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.running_mean.normal_(0, 0.2)
                layer.running_var.uniform_(0.5, 2)
                nn.init.uniform_(layer.weight, 0.5, 1.0)
    return model.eval()


@pytest.fixture(scope="module")
def file(theirs: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    path = tmp_path_factory.mktemp("weights") / NAME
    torch.save(theirs.state_dict(), path)
    yield str(path)
    path.unlink(missing_ok=True)


@pytest.fixture
def gray_file(theirs: nn.Module, tmp_path: Path) -> Path:
    """As for images of one channel, so that a run on digits can begin with it."""
    state = theirs.state_dict()
    state["conv1.weight"] = state["conv1.weight"].sum(1, keepdim=True)
    path = tmp_path / "gray.pth"
    torch.save(state, path)
    return path


def network(file: str | None, *, classes: int = 10, seed: int = 3, **more: object) -> Network:
    torch.manual_seed(seed)
    return resnet18(CIFAR, classes, **{"stem": "auto", **NORMAL, "pretrained": file, **more})


def test_with_pretrained_weights_ours_is_torchvisions_network(theirs: nn.Module, file: str) -> None:
    """One image of 224 by 224; the largest difference of logits seen is 0."""
    ours = resnet18(IMAGENET, 1000, stem="imagenet", **NORMAL, pretrained=file).eval()
    assert start_weights(ours, None) == f"begins with the weights of {file}"
    x = torch.rand(1, *IMAGENET)
    with torch.no_grad():
        seen = theirs((x - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None])
        torch.testing.assert_close(ours(x), seen, atol=1e-5, rtol=0)
    assert seen.std() > 0.1


@pytest.mark.parametrize(
    ("more", "parameters", "mmac"),
    [
        ({"stem": "imagenet"}, 11_181_642, 37.0),
        ({"stem": "imagenet_stride1"}, 11_181_642, 563.3),
        ({"stem": "cifar"}, 11_173_962, 555.4),
        ({"stem": "imagenet", "resize": 64}, 11_181_642, 148.1),
        ({"stem": "imagenet", "resize": 128}, 11_181_642, 592.2),
        ({"stem": "imagenet", "resize": 224}, 11_181_642, 1813.6),
    ],
)
def test_the_ways_to_fine_tune_on_small_images_cost_what_they_are_said_to(
    more: dict, parameters: int, mmac: float
) -> None:
    with torch.device("meta"):
        model, x = resnet18(CIFAR, 10, **NORMAL, **more).eval(), torch.empty(1, *CIFAR)
        with FlopCounterMode(display=False) as counter:
            model(x)
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert round(counter.get_total_flops() / 2e6, 1) == mmac


@pytest.mark.parametrize(
    ("stem", "classes", "left"),
    [
        ("auto", 10, {"head"}),
        ("imagenet", 1000, set()),
        ("imagenet_stride1", 1000, set()),
        ("cifar", 10, {"head", "body.conv1", "body.bn1"}),
    ],
)
def test_what_fits_is_loaded_and_the_rest_stays_as_initialised(
    theirs: nn.Module, file: str, stem: str, classes: int, left: set[str]
) -> None:
    model = network(file, classes=classes, stem=stem)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    line = start_weights(model, None)
    assert all(part in line for part in left) and ("as initialised" in line) == bool(left)
    expected = theirs.state_dict()
    for name, value in model.state_dict().items():
        if name.rpartition(".")[0] in left or name.startswith("normalise"):
            assert torch.equal(value, before[name]), name
        else:
            key = name.removeprefix("body.").replace("head.", "fc.")
            assert torch.equal(value, expected[key]), name


def test_the_stem_that_weights_fit_is_chosen_where_nothing_is_said(file: str) -> None:
    with torch.device("meta"):
        strides = {
            (side, given is None): resnet18(
                (3, side, side), 10, stem="auto", **NORMAL, pretrained=given
            ).body.conv1
            for side in (32, 224)
            for given in (None, file)
        }
        resized = resnet18(CIFAR, 10, stem="auto", **NORMAL, resize=224).body.conv1
    shapes = {key: (conv.kernel_size[0], conv.stride[0]) for key, conv in strides.items()}
    assert shapes == {(32, True): (3, 1), (32, False): (7, 1)} | {
        (224, none): (7, 2) for none in (True, False)
    }
    assert resized.kernel_size == (7, 7)


def test_resizing_is_inside_and_lets_gradients_through() -> None:
    """The radius is of the images' own pixels: the gradient has their size."""
    small, large = network(None), network(None, resize=48, stem="cifar")
    large.load_state_dict(small.state_dict())
    x = torch.rand(2, *CIFAR, dtype=torch.float32, requires_grad=True)
    bigger = F.interpolate(x, (48, 48), mode="bilinear")
    logits = large.eval()(x)
    torch.testing.assert_close(logits, small.eval()(bigger), atol=1e-5, rtol=1e-5)
    (gradient,) = torch.autograd.grad(logits.square().sum(), x)
    assert gradient.shape == x.shape and (gradient != 0).float().mean() > 0.99


def test_resizing_to_fewer_pixels_averages_them() -> None:
    stripes = (torch.arange(64) % 2).float().expand(1, 3, 64, 64)
    shrunk = network(None, resize=16, stem="cifar").resize(stripes)
    assert shrunk.shape[2:] == (16, 16)
    assert (shrunk - 0.5).abs().max() < 0.1  # every fourth pixel alone would be 0 or 1


def test_layers_that_divide_by_their_norm_take_the_weights(file: str, theirs: nn.Module) -> None:
    model = normalise(resnet18(CIFAR, 10, pretrained=file, stem="auto", **NORMAL), CIFAR, "matrix")
    told = start_weights(model, None)
    assert "head as initialised" in told and "conv1" not in told
    original = model.state_dict()["body.conv1.parametrizations.weight.original"]
    assert torch.equal(original, theirs.state_dict()["conv1.weight"])


def test_constants_are_torchvisions() -> None:
    for name in ("ResNet18", "ResNet34", "ResNet50"):
        weights = torchvision.models.get_weight(f"{name}_Weights.IMAGENET1K_V1")
        assert tuple(weights.transforms().mean) == MEAN
        assert tuple(weights.transforms().std) == STD


@pytest.mark.parametrize(
    ("factory", "name"),
    [
        (resnet18, NAME),
        (resnet34, "resnet34-b627a593.pth"),
        (resnet50, "resnet50-0676ba61.pth"),
    ],
)
def test_without_a_network_the_file_is_named_and_its_place(
    factory: Callable[..., Network], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(url: str, *_: object, **__: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    with torch.device("meta"):
        model = factory(CIFAR, 10, stem="auto", **NORMAL, pretrained="imagenet")
    with pytest.raises(ConfigError, match=r"^model\.pretrained=imagenet cannot") as refused:
        start_weights(model, None)
    assert f"/{name} (no route to host)" in str(refused.value)
    assert str(tmp_path / "hub" / "checkpoints") in str(refused.value)


def test_a_file_that_is_there_already_is_not_fetched(
    theirs: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", None)
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    torch.save(theirs.state_dict(), tmp_path / "hub" / "checkpoints" / NAME)
    model = network("imagenet")
    assert NAME in start_weights(model, None)
    assert torch.equal(model.body.conv1.weight, theirs.conv1.weight)
    (tmp_path / "hub" / "checkpoints" / NAME).unlink()


@pytest.mark.parametrize(
    ("shape", "constants", "message"),
    [
        (
            CIFAR,
            {"mean": [0.5] * 3, "std": [0.2] * 3},
            r"add model\.mean=\[0\.485,0\.456,0\.406\] ",
        ),
        (CIFAR, {"mean": None, "std": None}, r"model\.std=\[0\.229,0\.224,0\.225\]\.$"),
        (GRAY, {"mean": [0.0], "std": [1.0]}, "these images have 1 channel"),
    ],
)
def test_weights_of_imagenet_are_refused_other_constants_than_theirs(
    shape: tuple[int, int, int], constants: dict, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        resnet18(shape, 10, stem="auto", **constants, pretrained="imagenet")


def test_a_file_may_be_of_other_constants_and_this_is_said(file: str) -> None:
    expected = "; weights of ImageNet expect model.mean=[0.485,0.456,0.406] "
    assert expected not in start_weights(network(file), None)
    assert expected in start_weights(network(file, mean=None, std=None), None)
    assert expected in start_weights(network(file, mean=[0.5] * 3), None)


def test_files_of_the_robustness_package_are_read_as_they_are(
    theirs: nn.Module, tmp_path: Path
) -> None:
    state = theirs.state_dict()
    inner = {f"module.model.{key}": value for key, value in state.items()}
    copy = {f"module.attacker.model.{key}": value * 0 for key, value in state.items()}
    constants = {"module.normalizer.new_mean": torch.zeros(3, 1, 1)}
    torch.save({"model": copy | constants | inner, "epoch": 3}, tmp_path / "robust.pt")
    model = network(str(tmp_path / "robust.pt"))
    start_weights(model, None)
    assert torch.equal(model.body.layer4[1].conv2.weight, state["layer4.1.conv2.weight"])
    assert torch.equal(model.normalise.mean.flatten(), torch.tensor(MEAN))
    (tmp_path / "robust.pt").unlink()


def test_files_of_before_batches_were_counted_load(theirs: nn.Module, tmp_path: Path) -> None:
    state = theirs.state_dict()
    old = {key: value for key, value in state.items() if not key.endswith("batches_tracked")}
    torch.save(old, tmp_path / "old.pth")
    start_weights(network(str(tmp_path / "old.pth")), None)
    (tmp_path / "old.pth").unlink()


def test_weights_of_another_network_are_refused(file: str, tmp_path: Path) -> None:
    with torch.device("meta"):
        deeper = resnet34(CIFAR, 10, stem="auto", **NORMAL, pretrained=file)
    with pytest.raises(CheckpointError, match=r"^model\.pretrained=.* it lacks body\.layer1\.2"):
        start_weights(deeper, None)
    nowhere = network(str(tmp_path / "none.pth"))
    with pytest.raises(CheckpointError, match=r"^model\.pretrained=.*none\.pth: there is no such"):
        start_weights(nowhere, None)


def test_weights_are_read_where_a_training_starts_and_never_again(
    gray_file: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Not to go on with a run, not to load it, not to judge it: the file is gone by then."""
    few = ("dataset.train_size=16", "dataset.validation=2", "optimizer.lr=1e-9")
    chosen = (each for each in TRAIN if not each.startswith(("dataset.train", "dataset.valid")))
    options = (*chosen, *few, *GRAYS, f"model.pretrained={gray_file}")
    assert run(tmp_path / "a", *options)["state"] == "done"
    assert f"begins with the weights of {gray_file}; head as initialised" in capfd.readouterr().err
    published = checkpoints.load(gray_file)
    gray_file.unlink()
    model, _ = load_run(tmp_path / "a")
    torch.testing.assert_close(model.body.conv1.weight.data, published["conv1.weight"])
    assert run(tmp_path / "a", *options)["state"] == "done"
    judged = ("job=eval", "logger=none", "device=cpu", "eval=quick", "eval.size=2", ONE_STEP)
    status = run(tmp_path / "b", *judged, f"checkpoint={tmp_path / 'a'}")
    assert status["state"] == "done", status["error"]
    assert run(tmp_path / "c", *options)["exit_code"] == 2


def test_a_checkpoint_comes_before_pretrained_weights(file: str, tmp_path: Path) -> None:
    other = network(None, seed=4, stem="imagenet_stride1")
    torch.save(other.state_dict(), tmp_path / "other.pt")
    model = network(file)
    assert start_weights(model, str(tmp_path / "other.pt")).endswith("other.pt")
    assert torch.equal(model.body.conv1.weight, other.body.conv1.weight)
    (tmp_path / "other.pt").unlink()


def small(classes: int) -> Network:
    return small_cnn(GRAY, classes, mean=None, std=None)


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def test_a_run_on_other_classes_lends_all_but_its_head(tmp_path: Path) -> None:
    source, model = small(7), small(10)
    path = str(tmp_path / "seven.pt")
    torch.save(source.state_dict(), path)
    with pytest.raises(CheckpointError, match=r"may start from the rest of it: fresh=\[head\]\.$"):
        start_weights(model, path)
    before = state(model)
    assert start_weights(model, path, ["head"]) == (
        f"begins with the weights of {path}; head as initialised"
    )
    for name, value in model.state_dict().items():
        origin = before if name.startswith("head.") else source.state_dict()
        assert torch.equal(value, origin[name])


def test_parts_that_are_not_there_cannot_be_fresh(tmp_path: Path) -> None:
    torch.save(small(10).state_dict(), tmp_path / "ten.pt")
    with pytest.raises(ConfigError, match=r"^fresh: .* called fc\."):
        start_weights(small(10), str(tmp_path / "ten.pt"), ["fc"])
    with pytest.raises(ConfigError, match=r"^fresh=\['head'\]: give checkpoint="):
        start_weights(small(10), None, ["head"])


def test_a_run_begins_with_the_body_of_another_one(tmp_path: Path) -> None:
    options = ("model=small_cnn", "optimizer.lr=1e-9", *TRAIN)
    assert run(tmp_path / "a", *options, "seed=1")["state"] == "done"
    begun = (f"checkpoint={tmp_path / 'a'}", "fresh=[head]")
    assert run(tmp_path / "b", *options, *begun)["state"] == "done"
    first, second = (load_run(tmp_path / name)[0] for name in "ab")
    close = partial(torch.allclose, atol=1e-6)
    assert close(first.body[0].weight, second.body[0].weight)
    assert not close(first.head.weight, second.head.weight)

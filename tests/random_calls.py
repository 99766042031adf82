"""Random calls of attacks, and the promises that each of them has to keep.

A call is drawn by hypothesis, so that one that breaks a promise is made as small as it can be.
`kept(call)` makes the call, and says whether it was answered or refused.
"""

import traceback
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

import advtrain
from advtrain.attacks import objectives, starts
from advtrain.attacks.apgd import apgd
from advtrain.attacks.autoattack import autoattack
from advtrain.attacks.cw import cw
from advtrain.attacks.fab import fab
from advtrain.attacks.fast import fast
from advtrain.attacks.gama import gama_fw, gama_pgd
from advtrain.attacks.mim import mim
from advtrain.attacks.pgd import fgsm, pgd, rfgsm
from advtrain.attacks.square import square
from advtrain.threat import L1, L2, Ball, Linf

SOURCE = Path(advtrain.__file__).parent
STARTS = {
    "clean": starts.clean,
    "uniform": starts.uniform,
    "normal": starts.normal(std=0.01),
    "bernoulli": starts.bernoulli(size=0.1),
}
OBJECTIVES = {
    "cross_entropy": objectives.cross_entropy,
    "margin": objectives.margin,
    "dlr": objectives.dlr,
    "kl_to_clean": objectives.kl_to_clean,
    "expected": objectives.expected(objective=objectives.margin, samples=2),
}
MODELS = (
    *("linear", "linear", "conv", "conv", "constant", "steep", "nan", "inf", "patchy"),
    *("detached", "wide"),
)
FORMS = ("plain", "strided", "expanded", "requiring", "unrecorded", "inference", "inferred")
"""Images as others hand them over: views, parts of a graph, made or asked about without one."""
DTYPES = {
    "float32": torch.float32,
    "float64": torch.float64,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}

steps = st.sampled_from([0, *range(1, 5), *range(1, 5)])
restarts = st.integers(1, 2)
lengths = st.sampled_from([0.0, 1e-4, 0.03, 0.03, 0.4, 0.4, 2.0, float("nan"), -0.1])
whether = st.booleans()
climbing: dict[str, st.SearchStrategy[Any]] = {
    "steps": steps,
    "step_size": lengths,
    "restarts": restarts,
    "start": st.sampled_from(list(STARTS)),
    "objective": st.sampled_from(list(OBJECTIVES)),
    "targeted": whether,
    "keep": st.sampled_from(["last", "any"]),
}
ATTACKS: dict[str, tuple[Callable[..., Tensor], dict[str, st.SearchStrategy[Any]]]] = {
    "fgsm": (fgsm, {"targeted": whether}),
    "rfgsm": (rfgsm, {"noise_share": st.sampled_from([0.0, 0.5, 1.0])}),
    "fast": (fast, {"step_size": lengths}),
    "pgd": (pgd, climbing),
    "mim": (mim, {**climbing, "decay": st.sampled_from([0.0, 1.0, 5.0])}),
    "cw": (
        cw,
        {
            "steps": steps,
            "confidence": st.sampled_from([0.0, 1.0]),
            "binary_search_steps": st.integers(1, 3),
            "lr": st.sampled_from([0.01, 1.0]),
            "targeted": whether,
        },
    ),
    "gama_pgd": (gama_pgd, {"steps": steps, "restarts": restarts}),
    "gama_fw": (gama_fw, {"steps": steps}),
    "apgd": (
        apgd,
        {
            "steps": steps,
            "loss": st.sampled_from(["ce", "dlr", "dlr_targeted"]),
            "restarts": restarts,
            "targets": st.integers(1, 9),
            "eot": st.integers(1, 2),
        },
    ),
    "fab": (
        fab,
        {
            "steps": steps,
            "targets": st.sampled_from([None, 1, 3, 9]),
            "restarts": restarts,
        },
    ),
    "square": (
        square,
        {
            "queries": st.integers(0, 8),
            "p_init": st.sampled_from([0.05, 0.8]),
            "restarts": restarts,
        },
    ),
    "autoattack": (
        autoattack,
        {
            "version": st.sampled_from(["standard", "plus", "rand", "v1"]),
            "batch_size": st.integers(1, 3),
        },
    ),
}
SLOW = "autoattack"
"""Five thousand queries a call: drawn on models that fall at once, and rarely."""


@dataclass(frozen=True)
class Call:
    """An attack on a batch; all tensors follow from `seed`."""

    attack: str
    keys: Mapping[str, Any]
    threat: Ball
    shape: tuple[int, ...]
    classes: int
    model: str
    dtype: str
    generator: bool
    training: bool
    seed: int
    corners: bool
    form: str


@st.composite
def calls(
    draw: st.DrawFn, attacks: tuple[str, ...] = tuple(a for a in ATTACKS if a != SLOW)
) -> Call:
    """Calls that a user could make, most of them right ones."""
    name = draw(st.sampled_from(attacks))
    keys = {key: draw(strategy) for key, strategy in ATTACKS[name][1].items()}
    images = draw(st.integers(0, 4))
    model = draw(st.sampled_from(MODELS))
    sides = st.integers(2 if model == "conv" else 1, 7)  # batch norm cannot learn from one value
    if model == "conv" or name in ("square", SLOW) or draw(whether):
        shape = (images, draw(st.integers(1, 3)), draw(sides), draw(sides))
    else:
        shape = (images, draw(st.integers(1, 12)))
    return Call(
        attack=name,
        keys=keys,
        threat=draw(l2 if name == "cw" and draw(whether) else threats),
        shape=shape,
        classes=draw(st.integers(1, 6)),
        model=model,
        dtype=draw(st.sampled_from(list(DTYPES))),
        generator=draw(whether),
        training=draw(whether),
        seed=draw(st.integers(0, 2**16)),
        corners=draw(whether),
        form=draw(st.sampled_from(FORMS)),
    )


linf = st.builds(Linf, st.sampled_from([0.0, 1e-6, 8 / 255, 0.3, 1.0]))
l2 = st.builds(L2, st.sampled_from([0.0, 1e-6, 0.5, 3.0, 50.0]))
l1 = st.builds(L1, st.sampled_from([0.0, 1e-6, 1.5, 12.0, 100.0]))
threats = st.one_of(linf, l2, l1)


class Conv(nn.Module):
    """Convolution, batch norm and dropout: what a mode changes."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU(), nn.Dropout(0.2)
        )
        self.head = nn.Linear(3, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).mean((2, 3)))


class Flat(nn.Module):
    """A linear model with `change` on its logits."""

    def __init__(self, pixels: int, classes: int, change: Callable[[Tensor, Tensor], Tensor]):
        super().__init__()
        self.layer, self.change = nn.Linear(pixels, classes), change

    def forward(self, x: Tensor) -> Tensor:
        return self.change(self.layer(x.flatten(1)), x)


def _patchy(logits: Tensor, x: Tensor) -> Tensor:
    shade = x.flatten(1).mean(1, keepdim=True)
    return logits.masked_fill(shade > 0.5, float("nan"))


CHANGES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "constant": lambda logits, x: logits * 0 + 1,
    "linear": lambda logits, x: logits,
    "steep": lambda logits, x: logits * 1e4,
    "nan": lambda logits, x: logits * float("nan"),
    "inf": lambda logits, x: logits + float("inf"),
    "patchy": _patchy,
    "detached": lambda logits, x: logits.detach(),
    "wide": lambda logits, x: logits.unsqueeze(-1),
}


def subject(call: Call) -> nn.Module:
    """The model of a call, its parameters with gradients of an earlier step."""
    pixels = int(torch.Size(call.shape[1:]).numel())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(call.seed)
        model: nn.Module = (
            Conv(call.shape[1], call.classes)
            if call.model == "conv"
            else Flat(pixels, call.classes, CHANGES[call.model])
        )
    model = model.to(DTYPES[call.dtype]).train(call.training)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    return model


def batch(call: Call) -> tuple[Tensor, Tensor]:
    """Its images, some pixels at the ends of [0, 1], and labels."""
    draws = torch.Generator().manual_seed(call.seed)
    x = torch.rand(call.shape, generator=draws)
    if call.corners:
        x = (x * 3 - 1).clamp(0, 1)
    y = torch.randint(call.classes, call.shape[:1], generator=draws)
    x = x.to(DTYPES[call.dtype])
    if call.form == "strided":
        x = torch.stack([x, 1 - x], dim=-1)[..., 0]
    elif call.form == "expanded":
        x = x[:1].expand(x.shape)
    elif call.form == "inferred":
        with torch.inference_mode():
            x, y = x.clone(), y.clone()
    return x.requires_grad_(call.form == "requiring"), y


def around(call: Call) -> Any:
    """What the caller has switched off around the call."""
    return {"unrecorded": torch.no_grad, "inference": torch.inference_mode}.get(
        call.form, nullcontext
    )()


def kept(call: Call) -> str:
    """`answered` or `refused`; AssertionError: a promise is broken, or an error is none of ours."""
    model, (x, y) = subject(call), batch(call)
    before, images, labels = _state(model), x.clone(), y.clone()
    function, keys = ATTACKS[call.attack][0], dict(call.keys)
    keys |= {"start": STARTS[keys["start"]]} if "start" in keys else {}
    keys |= {"objective": OBJECTIVES[keys["objective"]]} if "objective" in keys else {}

    def ask(**more: Any) -> Tensor:
        with around(call):
            return function(model, x, y, threat=call.threat, **keys, **more)

    given = call.generator
    torch.manual_seed(call.seed)
    clock = torch.get_rng_state()
    try:
        x_adv = ask(generator=torch.Generator().manual_seed(7)) if given else ask()
    except ValueError as error:
        _require_sentence(error)
        x_adv = None
    assert torch.equal(x, images) and torch.equal(y, labels), "the batch was changed"
    _require_same(before, _state(model))
    if given:
        assert torch.equal(torch.get_rng_state(), clock), "the global random state has moved"
    if x_adv is None:
        return "refused"
    assert isinstance(x_adv, Tensor) and not x_adv.requires_grad, "the result carries a gradient"
    assert (x_adv.shape, x_adv.dtype, x_adv.device) == (x.shape, x.dtype, x.device)
    assert bool(torch.isfinite(x_adv).all()), "the result is not finite"
    assert bool(((x_adv >= 0) & (x_adv <= 1)).all()), "the result leaves [0, 1]"
    rounding = torch.finfo(x.dtype).eps
    apart = call.threat.distance(x_adv.double(), x.double())
    pixels = max(1, int(torch.Size(call.shape[1:]).numel()))
    several = {"linf": 1, "l2": pixels**0.5, "l1": pixels}[call.threat.norm]
    allowed = call.threat.eps * (1 + 1e-5) + several * max(rounding, 1e-7)
    assert bool((apart <= allowed).all()), f"{float(apart.max()):g} exceeds eps {call.threat.eps:g}"
    if given:
        again = ask(generator=torch.Generator().manual_seed(7))
        assert torch.equal(x_adv, again), "the same generator gives another result"
    return "answered"


def _require_sentence(error: ValueError) -> None:
    """A refusal is ours, and short."""
    raised = Path(traceback.extract_tb(error.__traceback__)[-1].filename)
    assert SOURCE in raised.parents, f"not refused by advtrain: {error}"
    assert 10 < len(str(error)) < 500 and "\n" not in str(error), str(error)


def _state(model: nn.Module) -> dict[str, Any]:
    state: dict[str, Any] = {n: module.training for n, module in model.named_modules()}
    for name, value in model.named_parameters():
        state[f"parameter {name}"] = value.detach().clone()
        state[f"gradient {name}"] = value.grad
        state[f"requires {name}"] = value.requires_grad
    return state | {f"buffer {name}": value.clone() for name, value in model.named_buffers()}


def _require_same(before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
    assert before.keys() == after.keys()
    for name, value in before.items():
        now = after[name]
        same = torch.equal(value, now) if isinstance(value, Tensor) else value == now
        assert same, f"{name} has changed"

"""A network for many passes with fixed weights: the same logits up to rounding, sooner.

In evaluation mode batch norm is an affine map with constants, so it goes into the convolution or
linear layer before it. A ReLU then overwrites what it reads, and kernels are stored channels last,
which processors prefer; a GPU does in half precision only. A linear layer that reads flattened maps
takes them in that order, so that nothing is copied. On a processor a layer applies the ReLU after
it by itself, see `rectified`, and strided layers of few channels get a faster gradient, see
`strided`.

Parts of a copy are exchanged, its code runs as it is: control flow, `features` and low precision
stay. Which part follows which is read from the graph of one pass, and a network whose logits come
out otherwise is not used at all.

Differs: torch.fx.experimental.optimization.fuse needs code that it can trace, and bakes in the
branches taken, such as the one on whether gradients are on.
"""

from collections import Counter
from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from advtrain.precision import full_precision, is_low
from advtrain.rectified import Rectified, offered
from advtrain.strided import Strided, gains

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
PARTS = (*CONVOLUTIONS, nn.Linear, *NORMS, nn.ReLU, nn.Flatten)
TOLERANCE = 1e-4  # of logits, over how far they are from their mean; float32 leaves 1e-6 to 1e-5
FLIPS = 0.1  # of gradients, over their length; a ReLU that rounding flips changes one by a little


def swift(model: nn.Module, x: Tensor) -> nn.Module:
    """A faster copy of `model`, whose parameters want no gradient; `model` where there is none.

    On the probes `x`, a few images, logits agree within `TOLERANCE` with gradients on and off, and
    for the same random draws, and so do gradients; the caller answers for probes that show the
    network at its work.
    The copy does not follow when `model` changes, and stays in evaluation mode. Networks that are
    in training mode, even in part, are compiled, or cannot be copied have none.
    """
    if not len(x) or any(part.training or _compiled(part) for part in model.modules()):
        return model
    for layout in _layouts(model, x):
        try:
            fast = deepcopy(model).requires_grad_(False)
            with full_precision(fast):
                joints, maps = _joints(deepcopy(fast), x)
            _join(fast, joints)
            if layout == torch.channels_last:
                _unroll(fast, joints, maps)
            fast.to(memory_format=layout)
            if x.device.type == "cpu" and not is_low(fast):
                _rectify(fast, joints)
                _exchange(fast)
            fast.eval()  # the layers that are new, too
            if agree(fast, deepcopy(model), x):
                return fast
        except Exception:  # anyone's code may refuse a copy or a layout, with any error
            continue
    return model


def _compiled(module: nn.Module) -> bool:
    return hasattr(module, "_orig_mod") or module._compiled_call_impl is not None


def _layouts(model: nn.Module, x: Tensor) -> list[torch.memory_format]:
    """Formats of the weights to try, the best first: code with `view` refuses channels last."""
    last = [torch.channels_last] if x.device.type == "cpu" or is_low(model) else []
    return [*last, torch.preserve_format]


def _joints(model: nn.Module, x: Tensor) -> tuple[dict[str, str], dict[str, torch.Size]]:
    """By name, parts of `model` and the one part that reads what they return; the shapes they read.

    Counted are `PARTS` without hooks that are called once in a pass on `x`.
    """
    names = {
        module: name
        for name, module in model.named_modules()
        if type(module) in PARTS and not _hooked(module)
    }
    calls: list[tuple[str, Node | None]] = []
    shapes: dict[str, torch.Size] = {}

    def note(module: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> None:
        calls.append((names[module], output.grad_fn))
        shapes[names[module]] = given[0].shape

    for module in names:
        module.register_forward_hook(note)
    with torch.random.fork_rng(devices=_devices(x)), torch.enable_grad():
        logits = model(x.detach().requires_grad_())
    readers = _readers(logits.grad_fn)
    times = Counter(name for name, _ in calls)
    once = [(node, name) for name, node in calls if node is not None and times[name] == 1]
    makers = {node: name for node, name in once if readers[node] == 1}
    read = [(source, name) for node, name in once for source, _ in node.next_functions]
    return {makers[source]: name for source, name in read if source in makers}, shapes


def _hooked(module: nn.Module) -> bool:
    forward = module._forward_hooks or module._forward_pre_hooks
    return bool(forward or module._backward_hooks or module._backward_pre_hooks)


def _readers(root: Node | None) -> Counter[Node | None]:
    """How many operations read the result of each operation that led to `root`."""
    readers: Counter[Node | None] = Counter({root: 1})
    waiting = [root]
    while waiting:
        node = waiting.pop()
        for source, _ in node.next_functions if node is not None else ():
            readers[source] += 1
            if readers[source] == 1:
                waiting.append(source)
    return readers


def _join(model: nn.Module, joints: dict[str, str]) -> None:
    """Fold batch norms into the layers before them, and let ReLUs overwrite what they read."""
    for name, follower in joints.items():
        part, after = model.get_submodule(name), model.get_submodule(follower)
        if isinstance(after, nn.ReLU) and not isinstance(part, nn.ReLU):
            after.inplace = True  # the others keep what they read for the gradient, a ReLU its own
        if isinstance(after, NORMS) and after.running_mean is not None:
            if isinstance(part, CONVOLUTIONS):
                model.set_submodule(name, fuse_conv_bn_eval(part, after))
                model.set_submodule(follower, nn.Identity())
            elif isinstance(part, nn.Linear):
                model.set_submodule(name, fuse_linear_bn_eval(part, after))
                model.set_submodule(follower, nn.Identity())


def _unroll(model: nn.Module, joints: dict[str, str], shapes: dict[str, torch.Size]) -> None:
    """Let linear layers read flattened maps channel by channel of a pixel, as they lie.

    Not the last layer, for what it reads is what `features` returns.
    """
    linears = [part for part in model.modules() if isinstance(part, nn.Linear)]
    for name, follower in joints.items():
        flat, linear = model.get_submodule(name), model.get_submodule(follower)
        whole = isinstance(flat, nn.Flatten) and (flat.start_dim, flat.end_dim) == (1, -1)
        if whole and linear in linears[:-1] and len(shapes[name]) == 4:
            weight = linear.weight.unflatten(1, shapes[name][1:]).permute(0, 2, 3, 1).flatten(1)
            linear.weight = nn.Parameter(weight, requires_grad=False)
            model.set_submodule(name, Unrolled())


class Unrolled(nn.Module):
    """Maps (B, C, H, W) as rows (B, H W C)."""

    def forward(self, maps: Tensor) -> Tensor:
        return maps.permute(0, 2, 3, 1).flatten(1)


def _rectify(model: nn.Module, joints: dict[str, str]) -> None:
    """Let layers apply the ReLU that alone reads what they return, past a norm folded into them."""
    for name, follower in joints.items():
        if isinstance(model.get_submodule(follower), nn.Identity):
            follower = joints.get(follower, follower)
        layer, after = model.get_submodule(name), model.get_submodule(follower)
        if isinstance(after, nn.ReLU) and offered(layer) and _untouched(layer):
            model.set_submodule(name, Rectified(layer))
            model.set_submodule(follower, nn.Identity())


def _exchange(model: nn.Module) -> None:
    """Put a faster gradient behind strided layers of few channels."""
    for name, part in list(model.named_modules()):
        owner = model.get_submodule(name.rpartition(".")[0])
        if name and gains(part) and _untouched(part) and not isinstance(owner, Rectified):
            model.set_submodule(name, Strided(part))


def _untouched(part: nn.Module) -> bool:
    """Whether a call of `part` is its class's own, nothing around it."""
    return not _hooked(part) and part.__dict__.get("forward") is None


def agree(fast: nn.Module, model: nn.Module, x: Tensor) -> bool:
    """Whether logits agree, and nearly so the gradients, in which rounding may flip a ReLU."""
    found, expected = _seen(fast, x), _seen(model, x)
    logits = expected[0]
    scale = (logits - logits.mean(-1, keepdim=True)).abs().amax()
    near = (found[0] - logits).abs() <= TOLERANCE * scale
    return bool(near.all()) and bool(_apart(found[1], expected[1]) <= FLIPS)


def _apart(found: Tensor, expected: Tensor) -> Tensor:
    """The distance of two gradients over the length of the second; 0 where both are 0."""
    return (found - expected).norm() / expected.norm().clamp_min(torch.finfo(found.dtype).tiny)


def _seen(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Logits in float32 with gradients on, then off, (2, B, K), and the gradient of the largest."""
    found, gradient = [], torch.zeros_like(x)
    for wanted in (True, False):
        with (
            torch.random.fork_rng(devices=_devices(x)),
            torch.set_grad_enabled(wanted),
            full_precision(model),
        ):
            leaf = x.detach().requires_grad_(wanted)
            logits = model(leaf)
            if logits.requires_grad:
                (gradient,) = torch.autograd.grad(logits.amax(-1).sum(), leaf)
            found.append(logits.detach())
    return torch.stack(found), gradient.nan_to_num()


def _devices(x: Tensor) -> list[torch.device]:
    return [x.device] if x.is_cuda else []

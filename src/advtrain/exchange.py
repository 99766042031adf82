"""What the processes of a run tell each other; alone, nothing is sent and nothing is copied.

All processes make the same calls in the same order. Tensors go where they are (NCCL on CUDA, gloo
on the processor), objects by gloo. An error in a part that one process does is raised in all.
"""

import pickle
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd import Function

from advtrain.world import here, leads

T = TypeVar("T")
R = TypeVar("R")


@torch.no_grad()
def summed(parts: Sequence[Tensor | None], like: Sequence[Tensor]) -> list[Tensor | None]:
    """Sums over the processes, in the shapes of `like`; None where no process has a part.

    One collective for each dtype and device. Waits for the device where a part is missing.
    """
    if here().size == 1:
        return list(parts)
    found: list[Tensor | None] = [None] * len(parts)
    for places in _kinds(like):
        flags = like[places[0]].new_ones(len(places))
        pieces = []
        for at, place in enumerate(places):
            part = parts[place]
            if part is None:
                flags[at], part = 0, torch.zeros_like(like[place])
            pieces.append(part.flatten())
        flat = torch.cat([*pieces, flags])
        dist.all_reduce(flat)
        *sums, flags = flat.split([*(len(piece) for piece in pieces), len(places)])
        for place, total, flag in zip(places, sums, flags, strict=True):
            if parts[place] is not None or bool(flag > 0):
                found[place] = total.view(like[place].shape)
    return found


def sum_gradients(parameters: Iterable[Tensor]) -> None:
    """Let `.grad` be the sum over the processes, of the parameters that are trained."""
    if here().size > 1:
        trained = [each for each in parameters if each.requires_grad]
        sums = summed([each.grad for each in trained], trained)
        for each, total in zip(trained, sums, strict=True):
            each.grad = total


def averaged(logs: Mapping[str, Tensor], weight: float) -> dict[str, Tensor]:
    """Means of scalars, which every process has by the same names; the weights sum to 1."""
    if here().size == 1:
        return dict(logs)
    names = sorted(logs)
    values = torch.stack([logs[name].detach().float() for name in names]) * weight
    dist.all_reduce(values)
    return dict(zip(names, values.unbind(), strict=True))


@torch.no_grad()
def follow(tensors: Sequence[Tensor]) -> None:
    """Overwrite `tensors` with the leader's; one broadcast for each dtype and device."""
    if here().size == 1:
        return
    for places in _kinds(tensors):
        mine = [tensors[place] for place in places]
        flat = torch.cat([each.flatten() for each in mine])
        dist.broadcast(flat, 0)
        pieces = flat.split([each.numel() for each in mine])
        for each, piece in zip(mine, pieces, strict=True):
            each.copy_(piece.view(each.shape))


def follow_buffers(model: nn.Module) -> None:
    """Overwrite what a network keeps beside its weights, as running statistics, with the leader's.

    Whole numbers count passes, and are the same in all.
    """
    if here().size > 1:
        follow([buffer for buffer in model.buffers() if buffer.is_floating_point()])


def added(values: Tensor) -> Tensor:
    """The sum over the processes, differentiable as often as one likes.

    A gradient is that of the sum of the losses of all processes.
    """
    total: Tensor = _Sum.apply(values) if here().size > 1 else values
    return total


class _Sum(Function):
    """A sum over processes; what each does with it comes back to all, summed as well."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        total = values.contiguous().clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, outer: Tensor) -> Tensor:
        back: Tensor = _Sum.apply(outer)
        return back


def largest(number: int) -> int:
    """The largest of the numbers of the processes."""
    if here().size == 1:
        return number
    found = torch.tensor(number)
    dist.all_reduce(found, dist.ReduceOp.MAX)
    return int(found)


def of_leader(action: Callable[[], T]) -> T:
    """What `action` returns in the leader, who alone does it; its error is raised in all."""
    if here().size == 1:
        return action()
    told: list[Any] = [_attempt(action) if leads() else None]
    dist.broadcast_object_list(told, 0)
    return _values(told)[0]


def of_all(action: Callable[[], T]) -> list[T]:
    """What `action` returns in each process, by rank; the first error is raised in all."""
    if here().size == 1:
        return [action()]
    told: list[Any] = [None] * here().size
    dist.all_gather_object(told, _attempt(action))
    return _values(told)


def interleaved(parts: Sequence[Tensor]) -> Tensor:
    """The batch whose shares, by `world.share`, are `parts`."""
    if len(parts) == 1:
        return parts[0]
    whole = torch.cat(list(parts))
    for rank, part in enumerate(parts):
        whole[rank :: len(parts)] = part
    return whole


def divided(
    work: Sequence[T], do: Callable[[T], Iterable[R]], stop: Callable[[], None]
) -> Iterator[R]:
    """The results of all pieces of `work` in their order, each done by one process, told to all.

    `stop` is called before each round, in which every process does one piece, and may raise.
    Alone, results come while a piece is done; else when its round is over.
    """
    world = here()
    for first in range(0, len(work), world.size):
        stop()
        mine = work[first + world.rank : first + world.rank + 1]
        if world.size == 1:
            yield from do(mine[0])
        else:
            for results in of_all(partial(_done, mine, do)):
                yield from results


def _done(work: Sequence[T], do: Callable[[T], Iterable[R]]) -> list[R]:
    return [result for each in work for result in do(each)]


def _kinds(tensors: Sequence[Tensor]) -> list[list[int]]:
    """Places of those that fit into one flat tensor."""
    kinds: dict[Any, list[int]] = defaultdict(list)
    for place, each in enumerate(tensors):
        kinds[each.dtype, each.device].append(place)
    return list(kinds.values())


def _attempt(action: Callable[[], Any]) -> tuple[Any, Exception | None]:
    try:
        return action(), None
    except Exception as error:
        return None, _portable(error)


def _portable(error: Exception) -> Exception:
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # it takes other arguments than it keeps, or holds what cannot travel
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def _values(told: Sequence[tuple[Any, Exception | None]]) -> list[Any]:
    for _, error in told:
        if error is not None:
            raise error
    return [value for value, _ in told]

"""Randomness as a pure function of where it is used: (seed, names and numbers) -> a stream.

A training step, an evaluation batch or a certificate seeds its stream from its own position, so
that it comes out the same alone, after an interruption, or next to others; no generator state
needs to be saved.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Generator


def derive(seed: int, *parts: object) -> int:
    """A seed in [0, 2^63) for the stream named by `parts`, which hold no slash.

    Distinct parts give unrelated streams.
    """
    text = "/".join(str(part) for part in (seed, *parts))
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def generators(device: torch.device) -> list[Generator]:
    """Those that draw for a computation on `device` unless it is given one: the processor's too."""
    found = [torch.default_generator]
    if device.type == "cuda":
        place = torch.cuda.current_device() if device.index is None else device.index
        found.append(torch.cuda.default_generators[place])
    return found


def seed(device: torch.device, number: int) -> None:
    """`torch.manual_seed` for what is computed on `device`, in a thousandth of its time.

    That seeds every kind of device, and keeps the stack of its caller for those not yet started.
    """
    for generator in generators(device):
        generator.manual_seed(number)


@contextmanager
def stream(device: torch.device, base: int, *parts: object) -> Iterator[None]:
    """Global draws inside come from the stream of `parts`; the state outside is left as it was."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        seed(device, derive(base, *parts))
        yield

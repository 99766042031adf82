"""Logits with known losses, and a small network with its batches, which tests of methods share."""

import torch
from torch import Tensor, nn

CLEAN_LOGITS = torch.tensor(
    [[2, -1, 0.5, 0], [0, 1, -2, 0.3], [-0.5, 0.2, 1.5, -1], [3, 0, 0, -3], [0.1, 0.2, 0.3, 0.4]],
    dtype=torch.float64,
)
ADV_LOGITS = torch.tensor(
    [
        [0.5, 0.4, 1, -0.2],
        [0.2, -0.3, -1, 1.1],
        [0.4, 0.1, 0.9, -0.6],
        [2, 0.5, -0.1, -1],
        [0.4, 0.3, 0.2, 0.1],
    ],
    dtype=torch.float64,
)
LABELS = torch.tensor([0, 1, 2, 0, 3])


def network(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(64, 3),
        )


def batch(size: int = 8, side: int = 4, seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand((size, 1, side, side), generator=generator)
    return x, torch.randint(3, (size,), generator=generator)

"""How near attacks come to the best point of a linear model, which has a closed form.

    python scripts/linear_optimum.py

Attacks in a ball: the largest rise of the margin, eps times the dual norm of its normal (Hoelder),
over the rise that was reached. Attacks that seek the nearest point: the distance found over the
gap divided by the dual norm. 1 is the optimum, above it is what is missing; means over 50 images
of 28x28, no box. The model has four classes, of which two never compete, so that every loss
applies.
"""

from collections.abc import Callable, Iterator
from functools import partial
from math import inf

import torch
from torch import Generator, Tensor, nn

from advtrain.attacks import cw, fab, objectives
from advtrain.attacks.apgd import apgd
from advtrain.attacks.gama import gama_fw, gama_pgd
from advtrain.attacks.mim import mim
from advtrain.attacks.pgd import fgsm, pgd
from advtrain.attacks.square import SPAN, square
from advtrain.threat import L1, L2, Ball, Linf
from advtrain.types import Attack

SHAPE, IMAGES = (1, 28, 28), 50
BALLS: tuple[Ball, ...] = (Linf(0.05, -inf, inf), L2(0.5, -inf, inf), L1(2.0, -inf, inf))


def within(threat: Ball) -> Iterator[tuple[str, Attack]]:
    """Attacks that ascend a loss in the ball, by name."""
    steps = {"steps": 40, "step_size": 2.5 * threat.eps / 40}
    if threat.norm != "l1":
        yield "FGSM", partial(fgsm, threat=threat)
        yield "PGD", partial(pgd, threat=threat, **steps)
        yield "PGD, margin", partial(pgd, threat=threat, objective=objectives.margin, **steps)
        yield "MIM", partial(mim, threat=threat, decay=1.0, **steps)
        yield "GAMA-PGD", partial(gama_pgd, threat=threat, steps=100)
        yield "GAMA-FW", partial(gama_fw, threat=threat, steps=100)
        yield "Square", partial(square, threat=threat, queries=5000, schedule=SPAN)
    for loss in ("ce", "dlr", "dlr_targeted"):
        yield f"APGD, {loss}", partial(apgd, threat=threat, steps=100, loss=loss, targets=1)


def nearest(threat: Ball) -> Iterator[tuple[str, Callable[..., Tensor]]]:
    """Attacks that look for the nearest point that fools, by name."""
    yield "FAB", partial(fab.closest, threat=threat, steps=100)
    yield "FAB-T", partial(fab.closest, threat=threat, steps=100, targets=3)
    if threat.norm == "l2":
        yield "C&W, 200 steps", partial(cw.closest, steps=200, lr=0.05)
        yield "C&W, 1000 steps", partial(cw.closest, steps=1000, lr=0.01)


def model(w: Tensor, lead: float) -> nn.Module:
    """Logits 0, <w, x - 1/2> - lead, and twice -30, for images around 1/2."""
    layer = nn.Linear(w.numel(), 4)
    with torch.no_grad():
        layer.weight.zero_()[1] = w.flatten()
        layer.bias.copy_(torch.tensor([0.0, -lead - w.sum().item() / 2, -30.0, -30.0]))
    return nn.Sequential(nn.Flatten(), layer).eval().requires_grad_(False)


def main() -> None:
    draws = Generator().manual_seed(0)
    w = torch.randn(SHAPE, generator=draws) / 5
    x, y = torch.full((IMAGES, *SHAPE), 0.5), torch.zeros(IMAGES, dtype=torch.int64)
    print("| attack | norm | optimum over ours, or ours over optimum |\n| --- | --- | --- |")
    for threat in BALLS:
        most = threat.support(w.flatten()[None]).item()
        stands = model(w, 1.5 * most)
        for name, attack in within(threat):
            rise = ((attack(stands, x, y, generator=draws) - x) * w).flatten(1).sum(1)
            print(f"| {name} | {threat.norm} | {(most / rise).mean():.4f} |", flush=True)
        for name, seek in nearest(threat):
            found = seek(model(w, 0.5 * most), x, y, generator=draws)
            away = threat.distance(found, x) / (0.5 * threat.eps)
            print(f"| {name} | {threat.norm} | {away.mean():.4f} |", flush=True)


if __name__ == "__main__":
    main()

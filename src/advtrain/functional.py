"""Losses and divergences of logits, one number per example; reduction is the caller's.

Logits have shape (B, K), labels (B,), results (B,), where nothing else is said. Logits of half
precision are taken to float32 first: in bfloat16 a margin of 0.01 between logits of size 10 does
not exist.
"""

from math import log

import torch
import torch.nn.functional as F
from torch import Tensor


def cross_entropy(logits: Tensor, y: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """-log p_y, at least 0. Its gradient is 0 in float32 once the margin exceeds 17 nats or so.

    `label_smoothing`: the probability that the target spreads over all K classes alike (Szegedy et
    al. 2016, https://arxiv.org/abs/1512.00567, sec. 7).
    """
    return F.cross_entropy(_wide(logits), y, reduction="none", label_smoothing=label_smoothing)


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """max_{j != y} z_j - z_y: positive exactly where another class wins. Needs K >= 2."""
    return _margin(_wide(logits), y)


def dlr(logits: Tensor, y: Tensor) -> Tensor:
    """Difference of logits ratio (Croce and Hein 2020, https://arxiv.org/abs/2003.01690, eq. 6).

    The margin over the distance of the first from the third largest logit: invariant to shift
    and scale of the logits; in [-1, 0] while y wins, positive otherwise. ValueError for K < 3.
    """
    if logits.shape[1] < 3:
        raise ValueError(
            f"dlr needs three classes, the model returns {logits.shape[1]} logits. Use margin."
        )
    wide = _wide(logits)
    top = wide.topk(3, dim=1).values
    return _margin(wide, y) / (top[:, 0] - top[:, 2] + 1e-12)


def dlr_targeted(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """The same for one class `target`, (B,) (Croce and Hein 2020, eq. 7).

    z_target - z_y, over the distance of the first logit from the mean of the third and the fourth.
    ValueError for K < 4.
    """
    if logits.shape[1] < 4:
        raise ValueError(
            f"dlr_targeted needs four classes, the model returns {logits.shape[1]} logits. Use dlr "
            "for three, margin for two."
        )
    wide = _wide(logits)
    top = wide.topk(4, dim=1).values
    apart = wide.gather(1, torch.stack([target, y], 1))
    return (apart[:, 0] - apart[:, 1]) / (top[:, 0] - (top[:, 2] + top[:, 3]) / 2 + 1e-12)


def kl(p_logits: Tensor, q_logits: Tensor) -> Tensor:
    """KL(p || q) of the two softmax distributions, in nats, at least 0 up to rounding."""
    p, q = F.log_softmax(_wide(p_logits), dim=1), F.log_softmax(_wide(q_logits), dim=1)
    return F.kl_div(q, p, reduction="none", log_target=True).sum(1)


def log_probabilities(logits: Tensor) -> Tensor:
    """Log-softmax over the last dimension, of any shape."""
    return logits.log_softmax(-1, dtype=torch.promote_types(logits.dtype, torch.float32))


def log_mean(log_p: Tensor) -> Tensor:
    """The log of the mean probability over draws or copies: log_p (m, B, K) to (B, K)."""
    return log_p.logsumexp(0) - log(len(log_p))


def _margin(logits: Tensor, y: Tensor) -> Tensor:
    label = y.unsqueeze(1)
    others = logits.scatter(1, label, -torch.inf)
    return others.max(1).values - logits.gather(1, label).squeeze(1)


def _wide(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))

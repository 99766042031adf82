"""Guided adversarial training (Sriramanan et al. 2020, https://arxiv.org/abs/2011.14969).

    L = CE(f(x), y) + lambda mean_i ||p(x_adv_i) - p(x_i)||_2^2,   p the softmax probabilities

with one step of eps along a sign, from noise of +-eps/2 per pixel, on the same function of x_adv.
With `alternate` only every second batch of an epoch is guided, from its second one on; the others
ascend cross-entropy alone.

Differs: for CIFAR-10 the authors take p(x) of the attack in training mode (`reference: train`),
for ImageNet in evaluation mode; MNIST is not alternated. Their clean training-mode pass is made in
every batch and keeps its graph, 12 passes a step; here it is made where the attack is guided, 9
passes, and 8 elsewhere. There the attack sees running statistics without it, and at momentum 0.1
clean images have 60 to 62 % of those, 66.8 in their code. Their MNIST script means to change lambda
three times and does so once, after 26 of 50 epochs.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from advtrain.defenses.guided import SingleStep


def squared(adv: Tensor, clean: Tensor) -> Tensor:
    """||softmax(adv) - softmax(clean)||_2^2 of logits (B, K), one per example, in [0, 2]."""
    wide = torch.promote_types(adv.dtype, torch.float32)
    return (adv.softmax(1, dtype=wide) - clean.softmax(1, dtype=wide)).square().sum(1)


@dataclass
class Gat(SingleStep):
    term = "l2"

    @staticmethod
    def distance(adv: Tensor, clean: Tensor) -> Tensor:
        return squared(adv, clean)

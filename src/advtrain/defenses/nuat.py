"""Nuclear-norm adversarial training (Sriramanan et al. 2021,
https://openreview.net/forum?id=kuK2VARZGnI).

    L = mean_i CE(f(x_i), y_i) + lambda ||F(x_adv) - F(x)||_* / B

F the logits of the whole batch, B by K, and ||.||_* the sum of singular values. One step of eps
along a sign, from noise of +-eps/2 per pixel, ascends the same function of x_adv. With `alternate`
only every second batch of an epoch is guided, from its second one on; the others ascend
cross-entropy alone. lambda rises from 0 epoch by epoch, so the first epoch is training on clean
images.

For full-rank differences the norm over B shrinks like 1/sqrt(B): lambdas are for B = 64, and at
another B they go with sqrt(B/64).

Differs: the paper does not tell of the alternation, the code has it; neither tells of the reference
in training mode (`reference: train`). The authors divide a short last batch by 64, here by its own
size. Their clean training-mode pass is made in every batch, here where the attack is guided; in the
others the attack sees running statistics without it, and at momentum 0.1 clean images have 60 to
62 % of those, 66.8 in their code.
"""

from dataclasses import dataclass

from torch import Tensor

from advtrain.defenses.guided import SingleStep
from advtrain.norms import nuclear_norm
from advtrain.sharing import whole


def nuclear(adv: Tensor, clean: Tensor) -> Tensor:
    """||adv - clean||_* / B of logits (B, K): one number for the batch, on all processes."""
    apart = whole(adv - clean)
    return nuclear_norm(apart) / len(apart)


@dataclass
class Nuat(SingleStep):
    term = "nuclear"

    @staticmethod
    def distance(adv: Tensor, clean: Tensor) -> Tensor:
        return nuclear(adv, clean)

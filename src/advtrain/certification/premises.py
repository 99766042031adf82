"""What certificates take for granted of a network: n independent answers of one function.

Clopper and Pearson's bound counts independent draws of f(x + e). A network whose answer hangs on
the rest of the batch, or on what it was asked before, gives no such draws. One that draws numbers
itself does if each row of a batch has its own; one mask for a whole batch makes its rows agree.
"""

from collections.abc import Collection, Iterator

import torch
from torch import Tensor

from advtrain.types import Classifier

COPIES = 16  # of an image in a batch, whose answers part where each row has draws of its own
TOGETHER = 0.1  # spread within a batch, over that between batches, which rows of their own exceed


def doubts(model: Classifier, x: Tensor, found: Collection[str]) -> Iterator[tuple[str, str]]:
    """What certificates of `model` do not hold for: names of checks and sentences.

    `found`: the checks that complained about it, of which those in `answers` matter. x (1, ...):
    an image; the model is in evaluation mode. Costs two passes of a random model, else none.
    """
    if "batch_dependent" in found:
        yield (
            "batch_dependent",
            "No certificate holds: an answer of the network hangs on the other images of its "
            "batch, so the draws around an image are not independent. Normalise with running "
            "statistics.",
        )
    if "mode_dependent" in found:
        yield (
            "mode_dependent",
            "Certificates are of the network as it answers in evaluation mode without gradients. "
            "If modules stay in training mode and normalise with a batch there, or buffers move "
            "from one question to the next, the draws around an image are not independent answers "
            "of one function, and no certificate holds.",
        )
    if "stochastic" in found:
        if shared_draws(model, x):
            text = (
                "No certificate holds: the network draws its random numbers once for a whole "
                "batch, so the draws around an image are not independent. Draw for each row."
            )
        else:
            text = (
                "The network draws random numbers: certificates are of the smoothed classifier "
                "that averages over those too, if each row of a batch has its own, as it seems; "
                "and certifying again gives other counts. Deploy it with its randomness."
            )
        yield "stochastic", text


def shared_draws(model: Classifier, x: Tensor) -> bool:
    """Whether the rows of a batch get the same random numbers, which another batch does not."""
    batch = x.expand(COPIES, *x.shape[1:])
    with torch.no_grad():
        first, again = model(batch), model(batch)
    within = max(float((each - each[:1]).abs().max()) for each in (first, again))
    return within <= TOGETHER * float((first - again).abs().max())

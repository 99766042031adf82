"""For how many images at once there was memory in an evaluation: `environment.portion`.

Passes with gradients, of attacks, take more than those without, of certificates, so each kind has a
room of its own.
"""

from advtrain.exchange import of_all
from advtrain.portions import Room


class Rooms:
    """`attacks` for all that takes gradients, `noise` for draws around an image, which take none.

    `least`: images that went through a network at once, of all processes, and of those before, as
    of the last `note`; None: all of a batch.
    """

    def __init__(self, before: int | None = None) -> None:
        self.attacks, self.noise = Room(), Room()
        self.least = before

    def note(self) -> None:
        """Take in how things stand; all processes do this at the same place."""
        mine = [self.least, self.attacks.size, self.noise.size]
        sizes = [size for each in of_all(lambda: mine) for size in each if size is not None]
        self.least = min(sizes, default=None)

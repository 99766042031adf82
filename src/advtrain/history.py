"""What a training has measured so far: a report per epoch, the best of them, what went wrong."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass
class History:
    """Saved with the state of training, and carried on by a resumed run.

    `best`: scores of the best epoch. `waited`: judged epochs since. `alarms`: what was said of
    this training; `alarmed`: whether of its newest epoch. `returns`: to an earlier state. `ended`:
    why training is over before its last epoch; empty if it is not.
    """

    reports: list[dict[str, float]] = field(default_factory=list)
    best: tuple[float, ...] = ()
    waited: int = 0
    alarms: list[str] = field(default_factory=list)
    alarmed: bool = False
    returns: int = 0
    ended: str = ""

    def improves(self, report: Mapping[str, float], metric: str) -> bool:
        """Whether these weights become the best: by `metric`, then clean accuracy, then first.

        Without a validation split the newest weights are the best.
        """
        if metric not in report:
            return not self.best
        scores = (report[metric], report["val_acc"])
        if self.best and scores <= self.best:
            self.waited += 1
            return False
        self.best, self.waited = scores, 0
        return True

    def state_dict(self) -> dict[str, Any]:
        lists = {name: list(getattr(self, name)) for name in ("reports", "best", "alarms")}
        return {**vars(self), **lists}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """ValueError: what was saved is no history."""
        given = {**state, "best": tuple(state["best"])}
        for name, value in given.items():
            if type(value) is not type(vars(self).get(name)):
                raise ValueError(f"{ascii(name)[:60]} of its history is of another kind")
        lists = (given["best"], *(report.values() for report in given.get("reports", ())))
        if not all(type(each) in (int, float) for values in lists for each in values):
            raise ValueError("a report of its history holds what is no number")
        vars(self).update(given)

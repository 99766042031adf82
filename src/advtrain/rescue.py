"""What training does when it goes wrong: say so, end, or return to the best state."""

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

from advtrain.history import History
from advtrain.training import Meter, TrainingFailed, TrainState
from advtrain.watchdog import Watchdog


class Rescue:
    """Carries out what the watchdog asks for.

    `good`: the state that training can return to, that of the best epoch; with an average, which
    falls later than the weights that it is of, the newest without an alarm may be ruined already.
    A return takes weights, optimizer, average and defense back, and leaves the clock as it is:
    time goes on, with other draws, towards lower rates.
    """

    def __init__(self, watchdog: Watchdog, state: TrainState, history: History) -> None:
        self.watchdog, self.state, self.history = watchdog, state, history
        self.good: dict[str, Any] = {}
        self.keep()

    def keep(self) -> None:
        """Training can return to the present state."""
        if self.watchdog.action != "warn" and not self.good:
            self.good = deepcopy(self.state.state_dict())

    def look(self, images: int) -> str:
        """After an epoch: act on what it shows; `images` were judged. What there is to say."""
        history, judged_by = self.history, self.state.defense.judged_by
        if judged_by not in history.reports[-1]:
            return ""  # an epoch that was not judged neither rings nor clears
        if history.waited == 0:
            self.good = {}
            self.keep()
        message = self.watchdog.alarm(history.reports, images, judged_by)
        if message is None:
            history.alarmed = False
        elif not (history.alarmed and self.watchdog.action == "warn"):  # said when it began
            history.alarmed = True
            return self._act(message, self._may_return())
        return self._tired()

    def from_failure(self, error: TrainingFailed, *, over: bool) -> str:
        """After weights or a loss that are not finite; `over`: in the last step of the run.

        Raises `error` where nothing can be done.
        """
        able = self._may_return() and not over
        if not able and (self.watchdog.action == "warn" or not self.history.reports):
            raise error
        text = self._act(str(error), able)
        if self.history.ended:
            self._return()  # what is saved last must be finite
        return text

    def _act(self, message: str, able: bool) -> str:
        self.history.alarms.append(message)
        if able:
            self.history.returns += 1
            self._return()
            return f"{message} Going back to the best state so far."
        if self.watchdog.action == "warn":
            return message
        self.history.ended = message
        return f"{message} Training ends here; checkpoints/best.pt is of the best epoch."

    def _may_return(self) -> bool:
        return self.watchdog.action == "back" and self.history.returns < self.watchdog.attempts

    def _return(self) -> None:
        now = self.state.step
        self.state.load_state_dict(deepcopy(self.good))
        self.state.step, self.state.meter = now, Meter()

    def _tired(self) -> str:
        patience = self.watchdog.patience
        if patience is None or self.history.waited < patience:
            return ""
        self.history.ended = f"no better epoch in the last {patience}."
        return "Training ends here: " + self.history.ended

    def state_dict(self) -> dict[str, Any]:
        """`good` is left out while it is the present state, as after every good epoch."""
        same = self.good.get("step") == self.state.step
        return {
            "state": self.state.state_dict(),
            "history": self.history.state_dict(),
            "good": {} if same else self.good,
        }

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        if saved["good"]:  # what training may return to must fit, which is found out now
            self.state.load_state_dict(saved["good"])
        self.state.load_state_dict(saved["state"])
        self.history.load_state_dict(saved["history"])
        self.good = dict(saved["good"])
        self.keep()

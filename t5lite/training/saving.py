"""Saves a run: when a checkpoint is due, and what is saved with the state."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from etils import epath

from t5lite.errors import InputError
from t5lite.parallel import gather
from t5lite.training.callbacks import Callback, Run
from t5lite.training.checkpoints import Checkpointer
from t5lite.training.ledger import Ledger
from t5lite.training.resuming import advice_for_new_run
from t5lite.training.state import TrainState

_EARLY = 0.9  # of an interval: few exchanges are needed to meet it


class Saver:
    """Saves the state with the data position, the ledger, metrics and the callbacks' states.

    Args:
      every: steps between two saves.
      every_minutes: longest time between two saves; None: steps alone decide.
      data_state: returns the data position of all hosts together; None for a single host.
      learning_rate: state → learning rate of its next update, compared on resume; None if unknown.
    """

    def __init__(
        self,
        checkpointer: Checkpointer,
        *,
        run: Run,
        batches: Any,
        ledger: Ledger,
        every: int,
        every_minutes: float | None = None,
        data_state: Callable[[], dict[str, Any]] | None = None,
        learning_rate: Callable[[TrainState], float | None] = lambda state: None,
    ):
        self.every, self.times = every, SaveTimes(every_minutes)
        self.is_best, self.wait = checkpointer.is_best, checkpointer.wait
        self._checkpointer, self._run = checkpointer, run
        self._batches, self._ledger = batches, ledger
        self._data_state = data_state or batches.state_dict
        self._learning_rate = learning_rate

    def begin(self, step: int) -> None:
        self.times.saved(step)

    def due(self, step: int) -> bool:
        """Returns whether to save after this step; the same on every process."""
        return step % self.every == 0 or self.times.due(step)

    def save(self, state: TrainState, step: int, held_out: Mapping[str, float]) -> None:
        """Starts a save of the state after `step` updates, with its held-out metrics."""
        progress = {
            "data": self._data_state(),
            "ledger": self._ledger.state_dict(),
            "metrics": self._run.metrics,
            "measured_at": self._run.measured_at,
            "learning_rate": self._learning_rate(state),
            "callbacks": [
                [*_identity(callback), callback.state_dict()]
                for callback in self._run.callbacks
                if hasattr(callback, "state_dict")
            ],
        }
        with self._ledger.meter.paused():
            self._checkpointer.save(step, state, progress=progress, metrics=held_out)
        self.times.saved(step)

    def load_progress(self, progress: Mapping[str, Any]) -> None:
        """Restores data, ledger, metrics and callbacks; an InputError if the data has changed."""
        try:
            self._batches.load_state_dict(progress["data"])
        except InputError as error:
            advice = advice_for_new_run(epath.Path(self._run.model_dir))
            raise InputError(f"{error}\n{advice}") from error
        self._ledger.load_state_dict(progress["ledger"])
        self._run.metrics.update(progress["metrics"])
        self._run.measured_at.update(progress["measured_at"])
        # By name, so that callbacks may come and go between two runs of a command.
        saved = list(progress["callbacks"])
        for callback in self._run.callbacks:
            if not hasattr(callback, "load_state_dict"):
                continue
            mine = [entry for entry in saved if entry[:-1] == _identity(callback)]
            if mine:
                saved.remove(mine[0])
                callback.load_state_dict(mine[0][-1])
            else:
                name = _shown(_identity(callback))
                self._run.say(f"not in the checkpoint, initialised: {name}")
        for *identity, _ in saved:
            self._run.say(f"no longer used, its state is dropped: {_shown(identity)}")


def _identity(callback: Callback) -> list[str]:
    """Returns the key of a callback in checkpoints: its class, and its metric, if any."""
    return [type(callback).__name__, str(getattr(callback, "metric", ""))]


def _shown(identity: Sequence[str]) -> str:
    name, metric = identity
    return f"{name}({metric})" if metric else name


class SaveTimes:
    """Decides after which steps to save, so that at most `minutes` of work can be lost.

    Several processes follow the clock of process 0. As reading it waits for the devices, they do so
    a few times per interval: after half of the steps that remain at the present pace. Without
    `minutes` no save is due.
    """

    def __init__(self, minutes: float | None, *, clock: Callable[[], float] = time.monotonic):
        self._seconds, self._clock = None if minutes is None else 60 * minutes, clock
        self.saved(0)

    def saved(self, step: int) -> None:
        """Begins an interval, after the save of this step or at the start of the run."""
        self._since, self._step, self._next = self._clock(), step, step + 1

    def due(self, step: int) -> bool:
        """Returns whether to save after this step; every process calls it with the same steps."""
        if self._seconds is None or step < self._next:
            return False
        elapsed = self._clock() - self._since
        if jax.process_count() == 1:
            return elapsed >= self._seconds
        elapsed = gather(elapsed)[0]
        if elapsed >= _EARLY * self._seconds:
            return True
        # The first step compiles: its pace says little, so at most twice as many come next.
        steps = step - self._step
        left = steps * (self._seconds - elapsed) / max(elapsed, 1e-3) / 2
        self._next = step + max(min(int(left), 2 * steps), 1)
        return False

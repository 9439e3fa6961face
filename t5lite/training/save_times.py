"""When the next save by the clock is due: at the same step on every process."""

import time
from collections.abc import Callable

import jax

from t5lite.parallel import gather

_EARLY = 0.9  # of an interval: few exchanges are needed to meet it


class SaveTimes:
    """Says after which steps to save so that no more than some minutes of work are ever lost.

    Several processes go by the clock of process 0, which they ask for after half the steps that
    are left at its pace: a few times in an interval, as that waits for the devices.

    Args:
      minutes: between two saves, at most; None: never by the clock.
      clock: returns seconds.
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
        done = step - self._step
        left = done * (self._seconds - elapsed) / max(elapsed, 1e-3) / 2
        self._next = step + max(min(int(left), 2 * done), 1)
        return False

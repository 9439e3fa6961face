"""The epoch of a run of several processes, of which each knows its own shards of the data only."""

import math

import jax

from t5lite.parallel import gather


class Epochs:
    """Exchanges the processes' epochs, no more often than the end of the run needs it.

    An exchange waits for the devices. So the next one comes after half the steps that are left at
    the fastest pace so far: a few in a run, and one after each of its last steps.

    Args:
      end: the epoch that ends the run; None: nothing is exchanged.
    """

    def __init__(self, end: float | None):
        self._end = end
        self._next = 0
        self._last = (0, 0.0)  # step and epoch of the last exchange

    def agree(self, step: int, epoch: float | None) -> float | None:
        """Returns the epoch of all processes together, None between two exchanges.

        Args:
          step: the same in every process, which all call this with the same steps.
          epoch: of this process's shards; None if the data do not tell.
        """
        if jax.process_count() == 1:
            return epoch
        if self._end is None or epoch is None or step < self._next:
            return None
        epochs = gather(epoch)
        # Each judges by its part of the data. Completed passes are those that all have completed.
        agreed = min(epochs) if isinstance(epoch, int) else math.fsum(epochs) / len(epochs)
        last_step, last_epoch = self._last
        self._last = step, agreed
        pace = max((agreed - last_epoch) / max(step - last_step, 1), agreed / max(step, 1))
        # Without a pace, the data are uncounted, or the run has just begun.
        steps = (self._end - agreed) / (2 * pace) if pace else min(step, 10)
        self._next = step + max(math.floor(steps), 1)
        return agreed

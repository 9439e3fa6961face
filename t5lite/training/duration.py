"""Duration of a run in steps, tokens or epochs, and the position in it."""

import dataclasses
import math

import jax

from t5lite.errors import InputError, check_value
from t5lite.parallel import gather
from t5lite.reporting import Position


@dataclasses.dataclass(frozen=True)
class Duration:
    """When a run ends: after the first step that reaches one of these.

    A learning-rate schedule has its own `total_steps`: without `steps` the number is unknown.

    Args:
      steps: updates in all.
      tokens: seen in all, of the global batches, without padding.
      epochs: passes over the data; fractions need data that count parts of an epoch.
    Raises: InputError none is set or one is out of range; fields are named as arguments of `train`.
    """

    steps: int | None = None
    tokens: int | None = None
    epochs: float | None = None

    def __post_init__(self) -> None:
        limits = {name: v for name, v in dataclasses.asdict(self).items() if v is not None}
        if not limits:
            raise InputError(
                "train.steps, train.tokens or train.epochs: one must say when to stop",
                field="train.steps",
            )
        for name, value in limits.items():
            rule = "number in (0, inf)" if name == "epochs" else "integer in [1, inf)"
            check_value(f"train.{name}", value, rule)

    def check(self, epoch: float | None) -> None:
        """Raises an InputError if data at this `epoch` cannot count to `epochs`."""
        if self.epochs is None:
            return
        if epoch is None:
            raise InputError(
                f"train.epochs = {self.epochs}: these data do not count epochs; "
                "set train.steps or train.tokens",
                field="train.epochs",
            )
        if isinstance(epoch, int) and self.epochs != int(self.epochs):
            raise InputError(
                f"train.epochs = {self.epochs}: must be whole, as these data count whole epochs "
                "only; round it, or set train.steps or train.tokens",
                field="train.epochs",
            )

    def share(self, position: Position) -> float:
        """Returns the finished share of the run, in [0, 1], by the nearest limit."""
        return min(max(value / limit for value, limit in self._limits(position)), 1.0)

    def over(self, position: Position) -> bool:
        return any(value >= limit for value, limit in self._limits(position))

    def _limits(self, position: Position) -> list[tuple[float, float]]:
        # Several processes' parts of an epoch add up to a whole one but for rounding.
        epochs = self.epochs and self.epochs * (1 - 1e-9)
        limits = (self.steps, self.tokens, epochs)
        return [(value or 0, limit) for value, limit in zip(position, limits, strict=True) if limit]


class Epochs:
    """Exchanges the epochs of several processes, each of which knows its own shards only.

    As an exchange waits for the devices, the next one comes after half of the steps that remain at
    the fastest pace so far: a few in a run, and one after each of its last steps. Without an `end`,
    the epoch that ends the run, nothing is exchanged.
    """

    def __init__(self, end: float | None):
        self._end = end
        self._next = 0
        self._last = (0, 0.0)  # step and epoch of the last exchange

    def agree(self, step: int, epoch: float | None) -> float | None:
        """Returns the epoch of all processes together; None between two exchanges.

        `epoch` is that of this process's shards; None if the data do not count it.
        """
        if jax.process_count() == 1:
            return epoch
        if self._end is None or epoch is None or step < self._next:
            return None
        epochs = gather(epoch)
        # An integer counts completed passes: the ones completed by all processes.
        agreed = min(epochs) if isinstance(epoch, int) else math.fsum(epochs) / len(epochs)
        last_step, last_epoch = self._last
        self._last = step, agreed
        pace = max((agreed - last_epoch) / max(step - last_step, 1), agreed / max(step, 1))
        # Without a pace, the data are uncounted, or the run has just begun.
        steps = (self._end - agreed) / (2 * pace) if pace else min(step, 10)
        self._next = step + max(math.floor(steps), 1)
        return agreed

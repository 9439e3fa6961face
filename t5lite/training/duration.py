"""Duration of a run in steps, tokens or epochs, and the position in it."""

import dataclasses

from t5lite.errors import InputError, check_value
from t5lite.reporting import Position


@dataclasses.dataclass(frozen=True)
class Duration:
    """When a run ends: after the first step that reaches one of these.

    A learning-rate schedule has its own `total_steps`: without `steps` the number is unknown.

    Args:
      steps: updates in all.
      tokens: seen in all, of the global batches, without padding.
      epochs: passes over the data; a part of one needs data that tell theirs.

    Raises:
      InputError: if none is given or one is out of range; it names them as arguments of `train`.
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
        """Raises an InputError if data that tell this epoch cannot tell when to stop."""
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
        """Returns whether the run ends here."""
        return any(value >= limit for value, limit in self._limits(position))

    def _limits(self, position: Position) -> list[tuple[float, float]]:
        # Several processes' parts of an epoch add up to a whole one but for rounding.
        epochs = self.epochs and self.epochs * (1 - 1e-9)
        limits = (self.steps, self.tokens, epochs)
        return [(value or 0, limit) for value, limit in zip(position, limits, strict=True) if limit]

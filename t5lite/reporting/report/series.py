"""A metric over the steps of a run, thinned to the resolution of a screen."""

import dataclasses
from collections.abc import Mapping

import numpy as np

MAX_POINTS = 2000
_RECENT = 10  # lines of training metrics that a held-out value is compared with


@dataclasses.dataclass(frozen=True, eq=False)
class Series:
    """`[points]` float64 values at increasing int64 steps; NaN where there was no finite one."""

    steps: np.ndarray
    values: np.ndarray

    @classmethod
    def of(cls, points: Mapping[int, float]) -> "Series":
        """Returns the series of `step → value`."""
        steps = np.array(sorted(points), np.int64)
        values = np.array([points[step] for step in steps.tolist()], np.float64)
        return cls(steps, np.where(np.isfinite(values), values, np.nan))

    def __len__(self) -> int:
        return len(self.steps)

    def finite(self) -> "Series":
        """Returns the points that have a value."""
        finite = np.isfinite(self.values)
        return Series(self.steps[finite], self.values[finite])

    def last(self) -> float | None:
        """Returns the last finite value, or None."""
        values = self.finite().values
        return float(values[-1]) if len(values) else None

    def thinned(self, max_points: int = MAX_POINTS) -> "Series":
        """Returns at most `max_points` >= 5: of each stretch the lowest, the highest and a NaN."""
        if len(self) <= max_points:
            return self
        stretches = np.array_split(np.arange(len(self)), (max_points - 2) // 3)
        indices = {0, len(self) - 1}
        for stretch in stretches:
            values = self.values[stretch]
            missing = np.isnan(values)
            if missing.any():
                indices.add(int(stretch[np.argmax(missing)]))
            if not missing.all():
                indices |= {int(stretch[np.nanargmin(values)]), int(stretch[np.nanargmax(values)])}
        chosen = sorted(indices)
        return Series(self.steps[chosen], self.values[chosen])


def gap(train: Series, held_out: Series) -> Series:
    """Returns how far a held-out loss is above that of training.

    Each held-out value is compared with the mean of the training lines since the one before it, the
    last ten at most, as the model changes.
    """
    train, held_out = train.finite(), held_out.finite()
    ends = np.searchsorted(train.steps, held_out.steps, side="right")
    points, previous = {}, 0
    measured = zip(held_out.steps.tolist(), held_out.values, ends.tolist(), strict=True)
    for step, value, end in measured:
        recent = train.values[max(previous, end - _RECENT) : end]
        if len(recent):
            points[step] = float(value - recent.mean())
        previous = end
    return Series.of(points)

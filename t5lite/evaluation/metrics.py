"""Weighted means over batches, from sums and weights."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np

Sums = Mapping[str, tuple[Any, Any]]


class Means:
    """Adds (sum, weight) pairs by name, in float64 on the host, since float32 forgets long sums."""

    def __init__(self) -> None:
        self.totals: dict[str, np.ndarray] = {}

    def add(self, sums: Sums) -> None:
        """Adds one batch's `{name: (sum, weight)}`, scalars already on the host."""
        for name, (total, weight) in sums.items():
            pair = np.array([total, weight], np.float64)
            self.totals[name] = self.totals.get(name, np.zeros(2)) + pair

    def means(self) -> dict[str, float]:
        """Returns `{name: sum / weight}`, NaN where the weight is 0."""
        return {name: float(s / w) if w else math.nan for name, (s, w) in self.totals.items()}


def collect(dispatched: Iterable[Sums]) -> Means:
    """Adds up the sums of batches, without making the devices wait.

    A batch's sums are fetched only once the next batch is dispatched, so that the devices stay
    busy, and at most two batches are in flight, so that memory stays bounded.

    Args:
      dispatched: yields `{name: (sum, weight)}` of float32 device scalars per batch.
    """
    means, waiting = Means(), None
    for sums in dispatched:
        if waiting is not None:
            means.add(jax.device_get(waiting))
        waiting = sums
    if waiting is not None:
        means.add(jax.device_get(waiting))
    return means

"""Timing of a run's steps on local devices."""

import dataclasses
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from t5lite.reporting import Meter


@dataclasses.dataclass(frozen=True)
class Measured:
    """Timings of steps.

    Args:
      step_seconds: of each step alone, its batch on the devices before it starts.
      input_seconds: of each of these steps' batches, until it was on the devices.
      steps_per_second: of as many steps in sequence, as in training: the next batch is made while
        the devices work.
      input_wait: share of that time spent waiting for batches, in [0, 1].
      tokens_per_step: without padding, on average.
      device_bytes: peak use of any device; None if unknown.
      process_bytes: peak memory of this process.
    """

    step_seconds: tuple[float, ...]
    input_seconds: tuple[float, ...]
    steps_per_second: float
    input_wait: float
    tokens_per_step: float
    device_bytes: int | None
    process_bytes: int

    def quartiles(self) -> dict[str, float]:
        """Returns `first_quartile`, `median` and `third_quartile` of the steps' seconds."""
        low, median, high = np.percentile(self.step_seconds, [25, 50, 75]).tolist()
        return {"first_quartile": low, "median": median, "third_quartile": high}


def measure(
    step: Callable[[Any, Any], tuple[Any, Mapping[str, Any]]],
    state: Any,
    batches: Iterator[Mapping[str, np.ndarray]],
    place: Callable[[Mapping[str, np.ndarray]], Mapping[str, jax.Array]],
    *,
    steps: int,
    warmup: int,
    on_step: Callable[[], None] = lambda: None,
) -> Measured:
    """Times training steps on local devices.

    Args:
      step: `(state, batch) -> (state, metrics)`, compiled; may donate the state.
      batches: of this host.
      place: puts a batch on the devices.
      steps: timed one by one, and as many again in sequence; at least 1.
      warmup: steps before those.
      on_step: called after every step.
    """
    step_seconds, input_seconds, tokens = [], [], []
    for number in range(warmup + steps):
        start = time.perf_counter()
        batch = jax.block_until_ready(place(next(batches)))
        ready = time.perf_counter()
        state, metrics = jax.block_until_ready(step(state, batch))
        end = time.perf_counter()
        if number >= warmup:
            input_seconds.append(ready - start)
            step_seconds.append(end - ready)
            tokens.append(int(metrics["tokens"]))
        on_step()

    meter = Meter()
    previous = None
    for _ in range(steps):
        with meter.waiting():
            batch = next(batches)
        state, metrics = step(state, place(batch))
        if previous is not None:  # as in training: at most one step ahead
            jax.block_until_ready(previous)
        previous = metrics
        meter.step(tokens=0, flops=0)
        on_step()
    jax.block_until_ready(state)
    rates = meter.read()

    counts = [
        (device.memory_stats() or {}).get("peak_bytes_in_use") for device in jax.local_devices()
    ]
    unit = 1 if sys.platform == "darwin" else 1024
    return Measured(
        step_seconds=tuple(step_seconds),
        input_seconds=tuple(input_seconds),
        steps_per_second=rates.steps_per_second,
        input_wait=rates.input_wait,
        tokens_per_step=float(np.mean(tokens)),
        device_bytes=max((count for count in counts if count is not None), default=None),
        process_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit,
    )

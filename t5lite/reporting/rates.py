"""Rates of a run: steps, tokens and FLOPs per second, utilisation, and the wait for input."""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

# Dense bfloat16 FLOP/s of one device, by its `device_kind`.
# Sources: cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e}, "peak compute per chip"; NVIDIA's data sheets
# of the A100, H100 (SXM), H200 and B200, without sparsity.
PEAK_FLOPS = {
    "TPU v4": 2.75e14,
    "TPU v5 lite": 1.97e14,
    "TPU v5e": 1.97e14,
    "TPU v5": 4.59e14,
    "TPU v5p": 4.59e14,
    "TPU v6 lite": 9.18e14,
    "TPU v6e": 9.18e14,
    "NVIDIA A100-PCIE-40GB": 3.12e14,
    "NVIDIA A100-SXM4-40GB": 3.12e14,
    "NVIDIA A100-SXM4-80GB": 3.12e14,
    "NVIDIA A100 80GB PCIe": 3.12e14,
    "NVIDIA H100 80GB HBM3": 9.89e14,
    "NVIDIA H200": 9.89e14,
    "NVIDIA B200": 2.25e15,
}


def peak_flops(devices: Any) -> float | None:
    """Returns the FLOP/s of all these devices together, or None if a kind is unknown (a CPU)."""
    peaks = [PEAK_FLOPS.get(device.device_kind) for device in devices]
    return None if None in peaks else sum(peak for peak in peaks if peak)


@dataclasses.dataclass(frozen=True)
class Rates:
    """Speed of a run between two readings.

    Args:
      tokens_per_second: of all devices together.
      flops_per_second: the model's, without recomputation in the backward pass.
      utilisation: those over the devices' peak, in [0, 1]; None if the peak is unknown.
      input_wait: share of the time spent waiting for input, in [0, 1].
    """

    steps_per_second: float
    tokens_per_second: float
    flops_per_second: float
    utilisation: float | None
    input_wait: float

    def metrics(self) -> dict[str, float]:
        """Returns the rates by name, without an unknown utilisation."""
        return {name: v for name, v in dataclasses.asdict(self).items() if v is not None}


class Meter:
    """Counts steps, tokens, FLOPs and the time spent waiting, by a `clock` in seconds.

    `peak` is the FLOP/s of all devices together, see `peak_flops`.
    """

    def __init__(self, *, peak: float | None = None, clock: Callable[[], float] = time.monotonic):
        self._peak = peak
        self._clock = clock
        self._last = np.zeros(5)  # counts of the last reading
        self._restart()

    def step(self, *, tokens: float, flops: float) -> None:
        """Counts one step: the batch's tokens without padding, its FLOPs forward and backward."""
        self._steps += 1
        self._tokens += tokens
        self._flops += flops

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Counts the time inside as waiting for input."""
        start = self._clock()
        yield
        self._waited += self._clock() - start

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leaves the time inside out: evaluation, saving, compiling."""
        start = self._clock()
        yield
        self._start += self._clock() - max(start, self._start)  # it may have been read meanwhile

    def read(self) -> Rates:
        """Returns the rates since the last reading, and starts the next.

        A reading of few steps, such as the last one, includes those before it: steps are seen one
        late, so that of a single one it may be only the end.
        """
        seconds = max(self._clock() - self._start, 1e-9)
        counts = np.array([self._steps, self._tokens, self._flops, self._waited, seconds])
        if 2 * counts[0] < self._last[0]:
            counts = counts + self._last
        self._last = counts
        steps, tokens, flops, waited, seconds = counts.tolist()
        self._restart()
        return Rates(
            steps_per_second=steps / seconds,
            tokens_per_second=tokens / seconds,
            flops_per_second=flops / seconds,
            utilisation=flops / seconds / self._peak if self._peak else None,
            input_wait=min(waited / seconds, 1.0),
        )

    def _restart(self) -> None:
        self._start = self._clock()
        self._steps = 0
        self._tokens = self._flops = self._waited = 0.0

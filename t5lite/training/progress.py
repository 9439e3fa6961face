"""What people see while a run trains: rates, and a bar or, in a log, a line now and then."""

import contextlib
import dataclasses
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TextIO

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
    """How fast a run went between two readings.

    Args:
      steps_per_second: updates.
      tokens_per_second: of all devices together.
      flops_per_second: the model's, without what is computed again in the backward pass.
      utilisation: those over the devices' peak, in [0, 1]; None if the peak is unknown.
      input_wait: share of the time spent waiting for input, in [0, 1].
    """

    steps_per_second: float
    tokens_per_second: float
    flops_per_second: float
    utilisation: float | None
    input_wait: float

    def metrics(self) -> dict[str, float]:
        """Returns what is known, by name."""
        return {name: v for name, v in dataclasses.asdict(self).items() if v is not None}


class Meter:
    """Counts steps, tokens and FLOPs, and what the time went to.

    Args:
      peak: FLOP/s of all devices together, see `peak_flops`.
      clock: seconds.
    """

    def __init__(self, *, peak: float | None = None, clock: Callable[[], float] = time.monotonic):
        self._peak = peak
        self._clock = clock
        self._restart()

    def step(self, *, tokens: float, flops: float) -> None:
        """Counts one step.

        Args:
          tokens: in the whole batch, without padding.
          flops: of the model in forward and backward pass of the whole batch.
        """
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
        """Returns the rates since the last reading, and starts the next."""
        seconds = max(self._clock() - self._start, 1e-9)
        flops = self._flops / seconds
        rates = Rates(
            steps_per_second=self._steps / seconds,
            tokens_per_second=self._tokens / seconds,
            flops_per_second=flops,
            utilisation=flops / self._peak if self._peak else None,
            input_wait=min(self._waited / seconds, 1.0),
        )
        self._restart()
        return rates

    def _restart(self) -> None:
        self._start = self._clock()
        self._steps = 0
        self._tokens = self._flops = self._waited = 0.0


class Progress:
    """A bar on a terminal or in a notebook; elsewhere, such as in CI, a line now and then.

    Args:
      steps: of the whole run.
      start: steps done before it resumed.
      seconds: between two lines.
      active: False on all processes but the first: nothing is shown.
      live: whether to draw a bar; None finds out.
      stream: where bar and lines go, the standard error; `say` uses the standard output.
      clock: seconds.
    """

    def __init__(
        self,
        steps: int,
        *,
        start: int = 0,
        seconds: float = 10.0,
        active: bool = True,
        live: bool | None = None,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._steps = steps
        self._stream = stream or sys.stderr
        self._seconds = seconds
        self._active = active
        self._clock = clock
        self._step = self._first_step = start
        self._first_time: float | None = None
        self._next_line = clock() + seconds
        self._printed = start
        self._metrics: dict[str, float] = {}
        self._rates: Rates | None = None
        self._bar: Any = None
        if live is None:
            live = self._stream.isatty() or "ipykernel" in sys.modules
        if active and live:
            from tqdm import tqdm

            self._bar = tqdm(
                total=steps,
                initial=start,
                file=self._stream,
                dynamic_ncols=True,
                bar_format="{n_fmt}/{total_fmt} |{bar}| {desc}",
            )

    def update(
        self, step: int, *, metrics: Mapping[str, float] | None = None, rates: Rates | None = None
    ) -> None:
        """Shows that a step is done; cheap enough for every step.

        Args:
          step: steps done.
          metrics: `loss` and `learning_rate` are shown, until newer ones come.
          rates: shown until newer ones come.
        """
        now = self._clock()
        if self._first_time is None:  # compiling is over; the time left is judged from here
            self._first_step, self._first_time = step, now
        self._step = step
        self._metrics.update(metrics or {})
        self._rates = rates or self._rates
        if self._bar is not None:
            self._bar.set_description_str(self._status(now), refresh=False)
            self._bar.update(step - self._bar.n)
        elif self._active and now >= self._next_line:
            self._print(now)

    def say(self, text: str) -> None:
        """Prints a text above the bar."""
        if not self._active:
            return
        if self._bar is not None:
            self._bar.write(text, file=sys.stdout)
            sys.stdout.flush()
        else:
            print(text, flush=True)

    def close(self) -> None:
        """Shows the last step and ends the bar."""
        if self._bar is not None:
            self._bar.refresh()
            self._bar.close()
        elif self._active and self._step > self._printed:
            self._print(self._clock())

    def _print(self, now: float) -> None:
        share = 100 * self._step // max(self._steps, 1)
        line = f"step {self._step}/{self._steps} ({share}%) {self._status(now)}"
        print(line.rstrip(), file=self._stream, flush=True)
        self._printed = self._step
        self._next_line = now + self._seconds

    def _status(self, now: float) -> str:
        parts = []
        if "loss" in self._metrics:
            parts.append(f"loss {self._metrics['loss']:.3f}")
        if "learning_rate" in self._metrics:
            parts.append(f"lr {self._metrics['learning_rate']:.1e}")
        if self._rates is not None:
            parts.append(f"{_short(self._rates.tokens_per_second)} tok/s")
            if self._rates.utilisation is not None:
                parts.append(f"{100 * self._rates.utilisation:.0f}% util")
            else:
                parts.append(f"{_short(self._rates.flops_per_second)}FLOP/s")
            parts.append(f"{100 * self._rates.input_wait:.0f}% input")
        if self._first_time is not None and self._step > self._first_step:
            each = (now - self._first_time) / (self._step - self._first_step)
            parts.append(f"{_duration(each * (self._steps - self._step))} left")
        return " ".join(parts)


def _short(value: float) -> str:
    """Returns three digits and a unit: 52.1k, 3.40G."""
    for unit in ("", "k", "M", "G", "T", "P"):
        if value < 999.5 or unit == "P":
            break
        value /= 1000
    digits = 0 if value >= 99.95 or not unit else 1 if value >= 9.995 else 2
    return f"{value:.{digits}f}{unit}"


def _duration(seconds: float) -> str:
    """Returns 0:07, 3:12 or 2:03:40."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"

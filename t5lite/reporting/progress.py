"""Progress of a run: a bar on a terminal or in a notebook, in a log a line now and then."""

import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol, TextIO

from t5lite.reporting.rates import Rates


class Position(NamedTuple):
    """How far a run has come; the same on every process.

    Attributes:
      step: updates done, skipped ones included.
      tokens: trained on so far, of the global batches, without padding.
      epoch: passes over the data: examples read by examples in all; an integer counts completed
        ones only; None if the data do not tell.
    """

    step: int = 0
    tokens: int = 0
    epoch: float | None = None


class Limits(Protocol):
    """The ends of a run, see `training.Duration`: None where a unit sets no limit."""

    @property
    def steps(self) -> int | None: ...

    @property
    def tokens(self) -> int | None: ...

    @property
    def epochs(self) -> float | None: ...

    def share(self, position: Position) -> float:
        """Returns how much of the run is done, in [0, 1]."""


class Progress:
    """A bar on a terminal or in a notebook; elsewhere, such as in CI, a line now and then.

    Args:
      duration: of the whole run.
      seconds: between two lines.
      active: False on all processes but the first: nothing is shown.
      live: whether to draw a bar; None detects it.
      stream: of bar and lines, the standard error; `say` uses the standard output.
      clock: seconds.
    """

    def __init__(
        self,
        duration: Limits,
        *,
        seconds: float = 10.0,
        active: bool = True,
        live: bool | None = None,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._duration = duration
        self._stream = stream or sys.stderr
        self._seconds = seconds
        self._active = active
        self._clock = clock
        self._position = Position()
        self._first_share = 0.0
        self._first_time: float | None = None
        self._next_line = clock() + seconds
        self._printed = 0
        self._metrics: dict[str, float] = {}
        self._rates: Rates | None = None
        self._bar: Any = None
        self._live = live
        if live is None:
            self._live = self._stream.isatty() or "ipykernel" in sys.modules

    def begin(self, position: Position = Position()) -> None:
        """Shows where the run starts or resumes."""
        self._position, self._printed = position, position.step
        if self._active and self._live:
            from tqdm import tqdm

            self._bar = tqdm(
                total=1.0,
                initial=self._duration.share(position),
                file=self._stream,
                dynamic_ncols=True,
                bar_format=self._bar_format(),
            )

    def update(
        self,
        position: Position,
        *,
        metrics: Mapping[str, float] | None = None,
        rates: Rates | None = None,
    ) -> None:
        """Shows the position after a step; cheap enough for every step.

        `metrics` (of which `loss` and `learning_rate`) and `rates` are shown until newer ones come.
        """
        now, share = self._clock(), self._duration.share(position)
        if self._first_time is None:  # compiling is over; the time left is judged from here
            self._first_share, self._first_time = share, now
        self._position = position
        self._metrics.update(metrics or {})
        self._rates = rates or self._rates
        if self._bar is not None:
            self._bar.bar_format = self._bar_format()
            self._bar.set_description_str(self._status(now), refresh=False)
            self._bar.update(share - self._bar.n)
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
        elif self._active and self._position.step > self._printed:
            self._print(self._clock())

    def _bar_format(self) -> str:
        return f"{describe(self._duration, self._position)} |{{bar}}| {{desc}}"

    def _print(self, now: float) -> None:
        line = f"{describe(self._duration, self._position)} {self._status(now)}"
        print(line.rstrip(), file=self._stream, flush=True)
        self._printed = self._position.step
        self._next_line = now + self._seconds

    def _status(self, now: float) -> str:
        duration, (_, tokens, epoch) = self._duration, self._position
        parts = []
        if "loss" in self._metrics:
            parts.append(f"loss {self._metrics['loss']:.3f}")
        if "learning_rate" in self._metrics:
            parts.append(f"lr {self._metrics['learning_rate']:.1e}")
        if epoch is not None and duration.epochs is None:
            parts.append(_epoch(epoch))
        if tokens and duration.tokens is None:
            parts.append(f"{_short(tokens)} tokens")
        if self._rates is not None:
            parts.append(f"{_short(self._rates.tokens_per_second)} tok/s")
            if self._rates.utilisation is not None:
                parts.append(f"{100 * self._rates.utilisation:.0f}% util")
            else:
                parts.append(f"{_short(self._rates.flops_per_second)}FLOP/s")
            parts.append(f"{100 * self._rates.input_wait:.0f}% input")
        share = duration.share(self._position)
        if self._first_time is not None and share > self._first_share:
            whole_run = (now - self._first_time) / (share - self._first_share)
            parts.append(f"{_clock_time(whole_run * (1 - share))} left")
        return " ".join(parts)


def describe(duration: Limits, position: Position) -> str:
    """Returns how far a run has come: `step 20/1000 (2%)`, `step 20, 12.3k/1.00M tokens (1%)`."""
    steps = "" if duration.steps is None else f"/{duration.steps}"
    parts = [f"step {position.step}{steps}"]
    if duration.tokens is not None:
        parts.append(f"{_short(position.tokens)}/{_short(duration.tokens)} tokens")
    if duration.epochs is not None:
        parts.append(f"{_epoch(position.epoch or 0)}/{duration.epochs:g}")
    percent = int(100 * duration.share(position) + 1e-9)  # 100 · 0.29 is less than 29
    return f"{', '.join(parts)} ({percent}%)"


def _epoch(epoch: float) -> str:
    return f"epoch {epoch}" if isinstance(epoch, int) else f"epoch {epoch:.1f}"


def _short(value: float) -> str:
    """Returns three digits and a unit: 52.1k, 3.40G."""
    for unit in ("", "k", "M", "G", "T", "P"):
        if value < 999.5 or unit == "P":
            break
        value /= 1000
    digits = 0 if value >= 99.95 or not unit else 1 if value >= 9.995 else 2
    return f"{value:.{digits}f}{unit}"


def _clock_time(seconds: float) -> str:
    """Returns 0:07, 3:12 or 2:03:40."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"

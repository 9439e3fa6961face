"""The training loop: next batch, step, and now and then whatever else is due."""

import contextlib
import dataclasses
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import jax
import numpy as np
from etils import epath

from t5lite.parallel import gather
from t5lite.training.callbacks import Callback, Run, Stop
from t5lite.training.checkpoints import Checkpointer
from t5lite.training.profiling import Profiler
from t5lite.training.progress import Meter, Progress
from t5lite.training.state import TrainState

StepFn = Callable[[TrainState, Mapping[str, jax.Array]], tuple[TrainState, dict[str, Any]]]


class Batches(Protocol):
    """An endless iterator over this host's rows, and where it stands."""

    def __next__(self) -> dict[str, np.ndarray]: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


class NonFiniteLoss(RuntimeError):
    """A loss or gradient was NaN or infinite and the run was told to stop."""


@dataclasses.dataclass
class Loop:
    """Everything a run needs besides its state.

    Args:
      run: what callbacks are given.
      step_fn: `(state, batch) -> (state, metrics)`, compiled, donating the state.
      batches: this host's part of the training data.
      checkpointer: saves the state.
      checkpoint_every: steps between two saves.
      callbacks: run in order when due.
      learning_rate: step → learning rate, for display; None if unknown.
      flops: of one step, for display.
      meter: rates.
      progress: the bar.
      profiler: traces chosen steps; None for none.
      log_every: steps between two lines of metrics.
      data_state: gives the data position of all hosts together; None if there is only this one.
      stop_on_nan: whether a NaN ends the run.
    """

    run: Run
    step_fn: StepFn
    batches: Batches
    checkpointer: Checkpointer
    checkpoint_every: int
    callbacks: Sequence[Callback]
    meter: Meter
    progress: Progress
    learning_rate: Callable[[int], float] | None = None
    flops: float = 0.0
    profiler: Profiler | None = None
    log_every: int = 10
    data_state: Callable[[], dict[str, Any]] | None = None
    stop_on_nan: bool = True

    def __post_init__(self) -> None:
        self._logged: dict[str, tuple[float, float]] = {}
        self._num_skipped = 0

    def __call__(self, state: TrainState) -> TrainState:
        """Trains from `state` to `run.steps`, or until a callback stops.

        Raises:
          NonFiniteLoss: at a NaN or infinity, unless those are skipped.
          SystemExit: with 143 after SIGTERM, once the state is saved.
        """
        for callback in self.callbacks:
            if hasattr(callback, "check"):
                callback.check(self.run)
        first, last = int(state.step) + 1, self.run.steps
        before: tuple[int, dict, dict] | None = None
        with _termination() as terminated:
            for step in range(first, last + 1):
                with self.meter.waiting():
                    batch = next(self.batches)
                state, metrics = self._dispatch(state, batch, step)
                # Only now, with the next step under way, is waiting for the one before free.
                self._read(before)
                before = (step, batch, metrics)

                # Asked once: the notice may also come while callbacks run.
                ending = self._agreed(terminated, step)
                at_end = step == last or ending
                due = [c for c in self.callbacks if step % c.every == 0 or step == last]
                if due or at_end or step % self.checkpoint_every == 0:
                    self._read(before)
                    before = None
                    try:
                        measured, stop = self._run_callbacks(due, state, step)
                    except Exception:
                        # What fails to evaluate must not cost the training since the last save.
                        self.save(state, step, {})
                        raise
                    if stop or at_end or step % self.checkpoint_every == 0:
                        self.save(state, step, measured)
                    if stop:
                        self.run.say(f"stopped at step {step}: {stop.reason}")
                        break
                    if ending and step < last:
                        self.checkpointer.wait()
                        self.run.say(f"terminated: step {step} is saved; run again to resume")
                        raise SystemExit(128 + signal.SIGTERM)
        return state

    def _agreed(self, terminated: threading.Event, step: int) -> bool:
        """Whether to end after this step: processes must all leave after the same one."""
        if jax.process_count() == 1:
            return terminated.is_set()
        # Asking is a round trip, so not at every step.
        return step % 10 == 0 and any(gather(terminated.is_set()))

    def _dispatch(self, state: TrainState, batch: dict, step: int) -> tuple[TrainState, dict]:
        if self.profiler is not None:
            self.profiler.before_step(step)
        arrays = self.run.place(batch)
        # Whatever still moves between host and device inside the step would stall it every time.
        with jax.transfer_guard("disallow"):
            state, metrics = self.step_fn(state, arrays)
        if self.profiler is not None and self.profiler.after_step(step, state):
            self.run.say(f"profile of steps up to {step} written")
        return state, metrics

    def _read(self, dispatched: tuple[int, dict, dict] | None) -> None:
        """Fetches a step's metrics, checks them, and shows and writes what is due."""
        if dispatched is None:
            return
        step, batch, metrics = dispatched
        metrics = jax.device_get(metrics)
        sums = {name: (float(s), float(w)) for name, (s, w) in metrics["sums"].items()}
        for name in ("loss", "gradient_norm", "parameter_norm"):
            # The objective's own `loss`, without regularising terms, is the one people compare.
            key = name if name not in sums else "total_loss"
            sums[key] = (float(metrics[name]), 1.0)
        if not metrics["finite"]:
            self._report_nan(step, batch, float(metrics["loss"]))
        else:
            for name, (total, weight) in sums.items():
                old = self._logged.get(name, (0.0, 0.0))
                self._logged[name] = (old[0] + total, old[1] + weight)
        self.meter.step(tokens=_num_tokens(batch) * jax.process_count(), flops=self.flops)
        shown = {name: total / max(weight, 1e-9) for name, (total, weight) in sums.items()}
        if self.learning_rate is not None:
            # The rate that this update was made with: schedules count applied updates, from 0.
            shown["learning_rate"] = float(self.learning_rate(step - 1 - self._num_skipped))
        rates = None
        if step % self.log_every == 0 or step == self.run.steps:
            rates = self.meter.read()
            means = {name: total / max(w, 1e-9) for name, (total, w) in self._logged.items()}
            rate = {k: v for k, v in shown.items() if k == "learning_rate"}
            skipped = {"skipped_updates": float(self._num_skipped)} if self._num_skipped else {}
            line = means | rate | skipped | rates.metrics() | self._epoch()
            self.run.writers.write(step, {f"train/{name}": value for name, value in line.items()})
            self._logged = {}
        self.progress.update(step, metrics=shown, rates=rates)

    def _epoch(self) -> dict[str, float]:
        epoch = getattr(self.batches, "epoch", None)
        return {} if epoch is None else {"epoch": float(epoch)}

    def _report_nan(self, step: int, batch: dict, loss: float) -> None:
        self._num_skipped += 1
        folder = epath.Path(self.run.model_dir) / "bad_batches"
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"step_{step}_process_{jax.process_index()}.npz"
        with path.open("wb") as file:
            np.savez(file, **batch)
        message = f"step {step}: loss {loss} or its gradient is not finite; the batch is in {path}"
        if self.stop_on_nan:
            raise NonFiniteLoss(f"{message}\nthe update was not applied; earlier checkpoints stand")
        self.run.say(f"{message}; the update was skipped")

    def _run_callbacks(
        self, due: Sequence[Callback], state: TrainState, step: int
    ) -> tuple[dict[str, float], Stop | None]:
        """Returns what was measured at this step, and the first wish to stop."""
        measured: dict[str, float] = {}
        stop = None
        for callback in due:
            with self.meter.paused():
                result = callback(self.run, state, step=step)
            if isinstance(result, Stop):
                stop = stop or result
            elif result:
                metrics = {name: float(value) for name, value in result.items()}
                measured |= metrics
                self.run.metrics.update(metrics)
                self.run.writers.write(step, metrics)
        return measured, stop

    def save(self, state: TrainState, step: int, measured: Mapping[str, float]) -> None:
        """Saves the state, the data position and the callbacks' states.

        Args:
          state: to save.
          step: updates done.
          measured: held-out metrics of this very state, which the best checkpoint is chosen by.
        """
        progress = {
            "data": (self.data_state or self.batches.state_dict)(),
            # The metrics being averaged, so that their line comes out whole after a restart.
            "logged": self._logged,
            "num_skipped": self._num_skipped,
            "metrics": self.run.metrics,
            "callbacks": [
                callback.state_dict() if hasattr(callback, "state_dict") else {}
                for callback in self.callbacks
            ],
        }
        with self.meter.paused():
            self.checkpointer.save(step, state, progress=progress, metrics=measured)

    def load_progress(self, progress: Mapping[str, Any]) -> None:
        """Puts data and callbacks back to where `save` found them."""
        self.batches.load_state_dict(progress["data"])
        self._logged = {
            name: (total, weight) for name, (total, weight) in progress["logged"].items()
        }
        self._num_skipped = progress["num_skipped"]
        self.run.metrics.update(progress["metrics"])
        for callback, saved in zip(self.callbacks, progress["callbacks"], strict=False):
            if hasattr(callback, "load_state_dict"):
                callback.load_state_dict(saved)


@contextlib.contextmanager
def _termination() -> Iterator[threading.Event]:
    """Turns SIGTERM, a scheduler's notice, into an event; the step under way is finished first."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    previous = signal.signal(signal.SIGTERM, lambda *_: event.set())
    try:
        yield event
    finally:
        signal.signal(signal.SIGTERM, previous)


def _num_tokens(batch: Mapping[str, np.ndarray]) -> int:
    """Tokens of this host's rows without padding; decoder inputs are targets again."""
    return sum(
        int(np.count_nonzero(rows))
        for name, rows in batch.items()
        if name.endswith("_tokens") and not name.startswith("decoder_input")
    )

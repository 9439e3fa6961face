"""The training loop: next batch, step, and the callbacks, checkpoints and metrics that are due."""

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import jax
import numpy as np

from t5lite.reporting.progress import describe
from t5lite.training.callbacks import Callback, Edit, Run, Stop, edited, measured
from t5lite.training.duration import Duration, Epochs, Position
from t5lite.training.ledger import Dispatched, Ledger
from t5lite.training.profiling import Profiler
from t5lite.training.saving import Saver
from t5lite.training.signals import catching_signals
from t5lite.training.state import TrainState
from t5lite.training.step import segment_arrays

Rows = Mapping[str, np.ndarray | jax.Array]
StepFn = Callable[[TrainState, Mapping[str, jax.Array]], tuple[TrainState, dict[str, Any]]]


class Batches(Protocol):
    """An endless iterator over this host's rows, with a position to save.

    Batches that depend on the state, such as rollouts, have `next_batch(state)` in place of
    `__next__`, and may return global arrays on the devices. An optional `epoch` counts passes over
    the data up to the last batch: a float, or an integer of completed passes. `state_dict` is the
    same on all processes, or has the entries of that of `data.Batches`.
    """

    def __next__(self) -> Rows: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


@dataclasses.dataclass
class Loop:
    """Runs steps until the run ends, with callbacks, checkpoints and metrics in between.

    Args:
      run: its callbacks are called, in order, when due.
      step: `(state, batch) -> (state, metrics)`, compiled, donates the state.
      batches: this host's part of the training data.
      profiler: traces chosen steps; None for none.
    """

    run: Run
    step: StepFn
    batches: Batches
    ledger: Ledger
    saver: Saver
    duration: Duration
    profiler: Profiler | None = None

    def __post_init__(self) -> None:
        self._epochs = Epochs(self.duration.epochs)

    def train(self, state: TrainState) -> TrainState:
        """Trains from `state` to the end of `duration`, or until a callback stops.

        Raises:
          NonFiniteLoss: at a NaN or infinity, unless those are skipped, or after `max_skips`.
          SystemExit: with 143 after SIGTERM and 130 after Ctrl-C, once the state is saved.
          KeyboardInterrupt: at a second Ctrl-C.
        """
        ledger, saver, profiler = self.ledger, self.saver, self.profiler or Profiler()
        ledger.begin(int(state.step), self._epoch)
        saver.begin(int(state.step))
        with catching_signals() as signals:
            for step in itertools.count(int(state.step) + 1):
                rows, batch = self.next_batch(state)
                profiler.before_step(step)
                # A transfer between host and device inside the step would stall every step.
                with jax.transfer_guard("disallow"):
                    state, metrics = self.step(state, batch)
                profiler.after_step(step, state)
                num_positions = sum(ids.size for ids in segment_arrays(self.run.objective, batch))
                ledger.push(Dispatched(step, metrics, rows, num_positions, self._epoch))

                signalled = signals.end_run(step)  # once: one may also come while callbacks run
                last = self._is_last(step)
                callbacks = [c for c in self.run.callbacks if last or step % c.every == 0]
                save_due = saver.due(step)
                if not (callbacks or save_due or signalled or last):
                    continue
                ledger.flush(last=last)
                state, held_out, stop = self._call(callbacks, state, step)
                if stop:
                    ledger.flush(last=True)
                if stop or save_due or saver.is_best(held_out) or signalled or last:
                    saver.save(state, step, held_out)
                if stop:
                    self.run.say(f"stopped at step {step}: {stop.reason}")
                if stop or last:
                    break
                if signalled:
                    saver.wait()
                    ending = "interrupted" if signals.interrupted else "terminated"
                    self.run.say(f"{ending}: step {step} is saved; run again to resume")
                    raise SystemExit(signals.exit_code)
        return state

    def next_batch(self, state: TrainState) -> tuple[Rows, dict[str, jax.Array]]:
        """Returns the next batch: this host's rows, and the global arrays on the devices."""
        with self.ledger.meter.waiting():
            pull = getattr(self.batches, "next_batch", None)
            rows = next(self.batches) if pull is None else pull(state)  # type: ignore[call-overload]
        return rows, self.run.to_devices(rows)

    def begin(self, state: TrainState) -> bool:
        """Runs the checks of callbacks and duration, which write nothing, and prints the position.

        Returns whether there are steps left to train; raises InputError for what would fail later.
        """
        for callback in self.run.callbacks:
            stop = callback.check(self.run) if hasattr(callback, "check") else None
            if isinstance(stop, Stop):
                self.run.say(f"not trained any further: {stop.reason}")
                return False
        self.duration.check(self._epoch)
        step = int(state.step)
        position = Position(step, self.ledger.tokens, self._epoch)
        described = describe(self.duration, position)
        if self.duration.over(position._replace(epoch=self._epochs.agree(step, self._epoch))):
            self.run.say(f"{self.run.model_dir} is already trained to {described}")
            return False
        if step:
            self.run.say(f"resuming {self.run.model_dir} at {described}")
        if (scale := float(state.extra.get("update_scale", 1.0))) != 1.0:
            self.run.say(f"updates are scaled by {scale:.3g}, as a callback left them")
        return True

    @property
    def _epoch(self) -> float | None:
        """Passes over the data, by this host's part of it."""
        epoch: float | None = getattr(self.batches, "epoch", None)
        return epoch

    def _is_last(self, step: int) -> bool:
        epoch = self._epochs.agree(step, self._epoch)
        if self.duration.tokens is not None and self.ledger.most_tokens >= self.duration.tokens:
            # Only a step that may be the last is waited for before the next one is dispatched.
            self.ledger.flush()
        return self.duration.over(Position(step, self.ledger.tokens, epoch))

    def _call(
        self, callbacks: Sequence[Callback], state: TrainState, step: int
    ) -> tuple[TrainState, dict[str, float], Stop | None]:
        """Returns the state with all edits, this step's held-out metrics, and the first stop."""
        held_out: dict[str, float] = {}
        stop = None
        try:
            for callback in callbacks:
                with self.ledger.meter.paused():
                    result = callback(self.run, state, step=step)
                if isinstance(result, Stop):
                    stop = stop or result
                elif isinstance(result, Edit):
                    state = edited(callback, state, result)
                elif metrics := measured(callback, result):
                    held_out |= metrics
                    self.run.record(step, metrics)
        except Exception:
            # A failing evaluation must not cost the training since the last save. Saving needs all
            # processes, of which some may not have failed.
            if jax.process_count() == 1:
                self.saver.save(state, step, {})
            raise
        return state, held_out, stop

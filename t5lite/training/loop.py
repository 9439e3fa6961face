"""The training loop: next batch, step, and now and then whatever else is due."""

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import jax
import numpy as np
from etils import epath

from t5lite.errors import InputError
from t5lite.reporting import Meter, Position, Progress
from t5lite.reporting.progress import describe
from t5lite.training.callbacks import Callback, Run, Stop
from t5lite.training.checkpoints import Checkpointer
from t5lite.training.duration import Duration
from t5lite.training.epochs import Epochs
from t5lite.training.ledger import Dispatched, Ledger
from t5lite.training.notices import noticing
from t5lite.training.profiling import Profiler
from t5lite.training.resuming import start_anew
from t5lite.training.save_times import SaveTimes
from t5lite.training.state import TrainState
from t5lite.training.step import counted

StepFn = Callable[[TrainState, Mapping[str, jax.Array]], tuple[TrainState, dict[str, Any]]]


class Batches(Protocol):
    """An endless iterator over this host's rows, and where it stands.

    It may have an `epoch`: the passes over the data up to the last batch, a float, or an integer
    where it knows the completed ones only.
    """

    def __next__(self) -> dict[str, np.ndarray]: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


@dataclasses.dataclass
class Loop:
    """Everything a run needs besides its state.

    Args:
      run: what callbacks are given.
      duration: when the run ends.
      step_fn: `(state, batch) -> (state, metrics)`, compiled, donating the state.
      batches: this host's part of the training data.
      checkpointer: saves the state.
      checkpoint_every: steps between two saves.
      checkpoint_minutes: between two saves, at most; None: steps alone decide.
      callbacks: run in order when due.
      meter: rates.
      progress: the bar.
      flops: of a place for a token in a step, for display.
      profiler: traces chosen steps; None for none.
      log_every: steps between two lines of metrics.
      learning_rate: state → learning rate of its next update, saved to be compared on resume; None
        if unknown.
      data_state: gives the data position of all hosts together; None if there is only this one.
      stop_on_nan: whether a NaN ends the run.
      max_skips: updates skipped in a row that end the run.
    """

    run: Run
    duration: Duration
    step_fn: StepFn
    batches: Batches
    checkpointer: Checkpointer
    checkpoint_every: int
    callbacks: Sequence[Callback]
    meter: Meter
    progress: Progress
    flops: float = 0.0
    profiler: Profiler | None = None
    log_every: int = 10
    learning_rate: Callable[[TrainState], float | None] | None = None
    data_state: Callable[[], dict[str, Any]] | None = None
    stop_on_nan: bool = True
    max_skips: int = 100
    checkpoint_minutes: float | None = None

    def __post_init__(self) -> None:
        self.ledger = Ledger(
            run=self.run,
            meter=self.meter,
            progress=self.progress,
            flops=self.flops,
            log_every=self.log_every,
            stop_on_nan=self.stop_on_nan,
            max_skips=self.max_skips,
        )
        self._epochs = Epochs(self.duration.epochs)
        self._save_times = SaveTimes(self.checkpoint_minutes)

    def __call__(self, state: TrainState) -> TrainState:
        """Trains from `state` if there is anything left to train; see `begin` and `train`."""
        return self.train(state) if self.begin(state) else state

    def train(self, state: TrainState) -> TrainState:
        """Trains from `state` to the end of `duration`, or until a callback stops.

        Raises:
          NonFiniteLoss: at a NaN or infinity, unless those are skipped, or after `max_skips`.
          SystemExit: with 143 after SIGTERM and 130 after Ctrl-C, once the state is saved.
          KeyboardInterrupt: at a second Ctrl-C.
        """
        self.progress.begin(Position(int(state.step), self.ledger.tokens, self._epoch()))
        self._save_times.saved(int(state.step))
        with noticing() as notices:
            for step in itertools.count(int(state.step) + 1):
                with self.meter.waiting():
                    batch = next(self.batches)
                state = self._dispatch(state, batch, step)
                # Asked once: the notice may also come while callbacks run.
                ending = notices.ending(step)
                last = self._over(step, self._epochs.agree(step, self._epoch()))
                saving = step % self.checkpoint_every == 0 or self._save_times.due(step)
                due = [c for c in self.callbacks if step % c.every == 0 or last]
                if not (due or saving or ending or last):
                    continue
                self.ledger.settle(last=last)
                try:
                    measured, stop = self._run_callbacks(due, state, step)
                except Exception:
                    # What fails to evaluate must not cost the training since the last save. Saving
                    # takes all processes, and the others may not have failed.
                    if jax.process_count() == 1:
                        self.save(self._with_update_scale(state), step, {})
                    raise
                state = self._with_update_scale(state)
                if stop:
                    self.ledger.settle(last=True)
                best = self.checkpointer.is_best(measured)
                if stop or saving or best or ending or last:
                    self.save(state, step, measured)
                if stop:
                    self.run.say(f"stopped at step {step}: {stop.reason}")
                    break
                if last:
                    break
                if ending:
                    self.checkpointer.wait()
                    how = "interrupted" if notices.interrupted else "terminated"
                    self.run.say(f"{how}: step {step} is saved; run again to resume")
                    raise SystemExit(notices.exit_code)
        return state

    def begin(self, state: TrainState) -> bool:
        """Makes the checks of callbacks and duration, which write nothing.

        Returns:
          Whether there is anything left to train; where the run stands is said.

        Raises:
          InputError: for what would fail later.
        """
        for callback in self.callbacks:
            stop = callback.check(self.run) if hasattr(callback, "check") else None
            if isinstance(stop, Stop):
                self.run.say(f"not trained any further: {stop.reason}")
                return False
        self.duration.check(self._epoch())
        if "update_scale" in state.extra:
            self.run.update_scale = float(state.extra["update_scale"])
        step = int(state.step)
        agreed = self._epochs.agree(step, self._epoch())
        position = Position(step, self.ledger.tokens, self._epoch())
        where = describe(self.duration, position)
        if self.duration.over(position._replace(epoch=agreed)):
            self.run.say(f"{self.run.model_dir} is already trained to {where}")
            return False
        if step:
            self.run.say(f"resuming {self.run.model_dir} at {where}")
        return True

    def _over(self, step: int, epoch: float | None) -> bool:
        """Whether this step is the last one: the first that reaches the run's end."""
        if self.duration.tokens is not None and self.ledger.most_tokens >= self.duration.tokens:
            # It may be the one: only now is it worth waiting for it before the next begins.
            self.ledger.settle()
        return self.duration.over(Position(step, self.ledger.tokens, epoch))

    def _epoch(self) -> float | None:
        """Passes over the data, judged by this host's part of it."""
        epoch: float | None = getattr(self.batches, "epoch", None)
        return epoch

    def _dispatch(self, state: TrainState, batch: dict[str, np.ndarray], step: int) -> TrainState:
        if self.profiler is not None:
            self.profiler.before_step(step)
        arrays = self.run.place(batch)
        # Whatever still moves between host and device inside the step would stall it every time.
        with jax.transfer_guard("disallow"):
            state, metrics = self.step_fn(state, arrays)
        if self.profiler is not None and self.profiler.after_step(step, state):
            self.run.say(f"profile of steps up to {step} written")
        most_tokens = sum(tokens.size for tokens in counted(arrays))
        self.ledger.enter(Dispatched(step, metrics, batch, most_tokens, self._epoch()))
        return state

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
                self.run.record(step, metrics)
        return measured, stop

    def _with_update_scale(self, state: TrainState) -> TrainState:
        """Puts what callbacks made of `run.update_scale` where the next step reads it."""
        if "update_scale" not in state.extra:
            if self.run.update_scale != 1.0:
                raise InputError(
                    f"run.update_scale = {self.run.update_scale}: no callback said that it would "
                    "scale updates; give the one that does `scales_updates = True`"
                )
            return state
        scale = np.float32(self.run.update_scale)
        self.run.update_scale = float(scale)  # as a run that resumes from here would have it
        placed = jax.make_array_from_callback(
            (), state.extra["update_scale"].sharding, lambda _: scale
        )
        return state.replace(extra={**state.extra, "update_scale": placed})

    def save(self, state: TrainState, step: int, measured: Mapping[str, float]) -> None:
        """Saves the state, the data position and the callbacks' states.

        Args:
          state: to save.
          step: updates done.
          measured: held-out metrics of this very state, which the best checkpoint is chosen by.
        """
        progress = {
            "data": (self.data_state or self.batches.state_dict)(),
            "ledger": self.ledger.state_dict(),
            "metrics": self.run.metrics,
            "measured_at": self.run.measured_at,
            "learning_rate": self.learning_rate(state) if self.learning_rate else None,
            "callbacks": [
                [*_identity(callback), callback.state_dict()]
                for callback in self.callbacks
                if hasattr(callback, "state_dict")
            ],
        }
        with self.meter.paused():
            self.checkpointer.save(step, state, progress=progress, metrics=measured)
        self._save_times.saved(step)

    def load_progress(self, progress: Mapping[str, Any]) -> None:
        """Puts data and callbacks back to where `save` found them.

        Raises:
          InputError: if the data has changed since.
        """
        try:
            self.batches.load_state_dict(progress["data"])
        except InputError as error:
            raise InputError(f"{error}\n{start_anew(epath.Path(self.run.model_dir))}") from error
        self.ledger.load_state_dict(progress["ledger"])
        self.run.metrics.update(progress["metrics"])
        self.run.measured_at.update(progress["measured_at"])
        # By name, so that callbacks may come and go between two runs of a command.
        saved = list(progress["callbacks"])
        for callback in self.callbacks:
            if not hasattr(callback, "load_state_dict"):
                continue
            mine = [entry for entry in saved if entry[:-1] == _identity(callback)]
            if mine:
                saved.remove(mine[0])
                callback.load_state_dict(mine[0][-1])
            else:
                self.run.say(f"not in the checkpoint, starts anew: {_shown(_identity(callback))}")
        for *identity, _ in saved:
            self.run.say(f"no longer used, its memory is dropped: {_shown(identity)}")


def _shown(identity: Sequence[str]) -> str:
    name, metric = identity
    return f"{name}({metric})" if metric else name


def _identity(callback: Callback) -> list[str]:
    """Tells a callback from others: its class, and which metric it is concerned with, if any."""
    return [type(callback).__name__, str(getattr(callback, "metric", ""))]

"""Callbacks that watch a held-out metric: early stopping, and a lower rate at a plateau."""

import dataclasses
import fnmatch
import math
from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import numpy as np

from t5lite.errors import InputError, check_fields, unknown
from t5lite.training.callbacks import Callback, Edit, Run, Stop


@dataclasses.dataclass(kw_only=True)
class Watch:
    """Follows a metric that another callback measures.

    `every` must be a multiple of that callback's, and the watch come after it in `callbacks`.

    Args:
      patience: measurements in a row that may be no better than the best one, at least 1.
      every: steps between two looks.
      min_delta: smallest improvement that counts, at least 0.
      mode: `"min"` or `"max"`: which values are better.
    Raises: InputError if a field is out of range.
    """

    metric: str = "held_out/loss"
    patience: int
    every: int
    min_delta: float = 0.0
    mode: str = "min"

    _counts: ClassVar[tuple[str, ...]] = ("best", "best_step", "looked", "waited")

    def __post_init__(self) -> None:
        self._best: float | None = None
        self._best_step = self._looked = 0
        self._waited = 0
        check_fields(
            self,
            patience="integer in [1, inf)",
            every="integer in [1, inf)",
            min_delta="number in [0, inf)",
            mode=("min", "max"),
        )

    def state_dict(self) -> dict[str, Any]:
        return {"metric": self.metric} | {name: getattr(self, f"_{name}") for name in self._counts}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the measurements, unless they are of another metric."""
        if state.get("metric") == self.metric:
            for name in self._counts:
                setattr(self, f"_{name}", state[name])

    def _look(self, run: Run, step: int) -> bool:
        """Takes in the metric's latest value; returns whether it is new."""
        if self.metric not in run.metrics:
            error = unknown(f"metric at step {step}", self.metric, run.metrics)
            raise InputError(
                f"{type(self).__name__}.metric = {self.metric!r}: {error}\n"
                "a callback before this one must measure it, at this step or earlier",
                field=f"{type(self).__name__}.metric",
            )
        value, measured_at = run.metrics[self.metric], run.measured_at.get(self.metric, step)
        if measured_at <= self._looked:
            return False
        self._looked = measured_at
        sign = 1 if self.mode == "min" else -1
        if math.isfinite(value) and (
            self._best is None or sign * (self._best - value) > self.min_delta
        ):
            self._best, self._best_step, self._waited = value, measured_at, 0
        else:
            self._waited += 1
        return True

    def _explanation(self) -> str:
        best = "ever finite"
        if self._best is not None:
            best = f"better than {self._best:.6g}, of step {self._best_step}"
        noun = "measurement" if self._waited == 1 else "measurements"
        return f"{self.metric} was not {best}, in {self._waited} {noun}"


@dataclasses.dataclass(kw_only=True)
class EarlyStopping(Watch):
    """Ends the run when a held-out metric has stopped getting better; see `Watch` for the fields.

    The state of the last step is saved; `Checkpoints.best` keeps the best one too. The same command
    again trains no further, unless `patience` is higher than before.
    """

    def check(self, run: Run) -> Stop | None:
        """Returns a `Stop` if the run had ended before."""
        del run
        return self._stop()

    def __call__(self, run: Run, state: Any, *, step: int) -> Stop | None:
        """Returns a `Stop` once patience is over."""
        del state
        return self._stop() if self._look(run, step) else None

    def _stop(self) -> Stop | None:
        return Stop(self._explanation()) if self._waited >= self.patience else None


@dataclasses.dataclass(kw_only=True)
class ReduceOnPlateau(Watch):
    """Lowers the learning rate when a held-out metric has stopped getting better.

    From then on every update, and the learning rate shown with it, is multiplied by `factor` once
    more, whatever the optimizer's schedule. See `Watch` for the other fields.

    Args:
      factor: in (0, 1).
      cooldown: measurements after that, before patience counts again; at least 0.
      minimum: of all factors together, in [0, 1).
    """

    factor: float = 0.5
    cooldown: int = 0
    minimum: float = 0.0

    _counts: ClassVar[tuple[str, ...]] = (*Watch._counts, "cooling")

    def __post_init__(self) -> None:
        super().__post_init__()
        self._cooling = 0
        check_fields(
            self,
            factor="number in (0, 1)",
            cooldown="integer in [0, inf)",
            minimum="number in [0, 1)",
        )

    def __call__(self, run: Run, state: Any, *, step: int) -> Edit | None:
        """Returns a state with a lower `update_scale` once patience is over."""
        if not self._look(run, step):
            return None
        if self._cooling:
            self._cooling, self._waited = self._cooling - 1, 0
            return None
        if self._waited < self.patience:
            return None
        text, self._cooling, self._waited = self._explanation(), self.cooldown, 0
        scale = np.float32(state.extra["update_scale"])
        lower = np.float32(max(float(scale) * self.factor, self.minimum))
        if lower >= scale:
            return None
        run.say(f"step {step}: {text}; updates are now scaled by {lower:.3g}")
        array = jax.make_array_from_callback(
            (), state.extra["update_scale"].sharding, lambda _: lower
        )
        return Edit(state.replace(extra={**state.extra, "update_scale": array}))


def check_watched(callbacks: Sequence[Callback], run: Run, *, best: str | None = None) -> None:
    """Refuses to watch a metric that no callback measures, or that is measured at other steps.

    A callback without `metric_names` may measure any metric. The watches are those in `callbacks`,
    and `best` of `Checkpoints`; the InputError names the nearest metrics, or a fitting period.
    """
    watched = [
        (f"{type(callback).__name__}.metric", callback.metric, index)
        for index, callback in enumerate(callbacks)
        if isinstance(callback, Watch)
    ]
    if best is not None:
        watched.append(("Checkpoints.best", best, -1))
    # Name (`name/*` for all that begin so) → index of the callback that measures it.
    measured = {
        name: index
        for index, callback in enumerate(callbacks)
        if hasattr(callback, "metric_names") and watched
        for name in callback.metric_names(run)
    }
    all_named = all(isinstance(c, Watch) or hasattr(c, "metric_names") for c in callbacks)
    for field, metric, index in watched:
        sources = [at for name, at in measured.items() if fnmatch.fnmatchcase(metric, name)]
        if sources and index >= 0:
            _check_order(callbacks, index, sources[0])
        elif not sources and all_named:
            hint = unknown("metric", metric, measured) if measured else "no callback measures any"
            raise InputError(
                f"{field} = {metric!r}: {hint}\nwatch one that a callback of this run measures, "
                "or add the callback, such as @t5lite.evaluation.HeldOut()",
                field=field,
            )


def _check_order(callbacks: Sequence[Any], watching: int, measuring: int) -> None:
    """Raises an InputError unless a watch runs right after the measurement, at the same steps."""
    watch, source = callbacks[watching], callbacks[measuring]
    name, measures = type(watch).__name__, f"{type(source).__name__} measures {watch.metric}"
    if watch.every % source.every:
        raise InputError(
            f"{name}.every = {watch.every}: {measures} every {source.every} steps; "
            f"set a multiple of {source.every}",
            field=f"{name}.every",
        )
    if watching < measuring:
        raise InputError(
            f"train.callbacks: {measures} after {name} has looked at it; put {name} last",
            field="train.callbacks",
        )

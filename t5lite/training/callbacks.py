"""Callbacks of the training loop: the protocol, results, and the run they receive."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
from jax.sharding import Mesh

from t5lite.errors import InputError
from t5lite.parallel import Layout, batch_shardings, process_rows, to_devices, with_layout
from t5lite.reporting.writers import Writers
from t5lite.training.program import process_shards
from t5lite.training.state import TrainState, whole_params
from t5lite.training.tuning import Everything, Tuning


@dataclasses.dataclass(frozen=True)
class Stop:
    """Ends the run after this step; a callback returns it, with a `reason` for the user."""

    reason: str


@dataclasses.dataclass(frozen=True)
class Edit:
    """Replaces the state by one of the same structure, shapes and shardings; a callback returns it.

    Later callbacks see the edited state.
    """

    state: TrainState


@runtime_checkable
class Callback(Protocol):
    """Runs every `every` steps and after the last one, before the next step is dispatched.

    Returns held-out metrics, for writers, later callbacks and the choice of the best checkpoint; a
    `Stop`; an `Edit`; or None. Optional methods:

    - `state_dict() -> dict` (JSON-able) and `load_state_dict(dict)`: its state in checkpoints.
    - `check(run)`: called before anything is written; raises an InputError for what would fail
      hours later, or returns a `Stop`.
    - `metric_names(run) -> set[str]`: the metrics that it may return, `"name/*"` for a prefix; a
      misspelt name that another callback or `Checkpoints.best` watches is then refused.
    """

    every: int

    def __call__(
        self, run: "Run", state: TrainState, *, step: int
    ) -> Mapping[str, float] | Stop | Edit | None: ...


@dataclasses.dataclass
class Run:
    """The parts of a run that callbacks receive.

    Args:
      model_dir: folder of all outputs.
      model: pure functions, see `models.Model`.
      data: gives `batch_size`, `train_batches`, `validation_batches` and `examples`.
      steps: updates in all; None if only tokens or epochs limit the run.
      callbacks: called in this order when due.
      writers: of metrics; becomes one `Writers`, which writes on the first process alone.
      tuning: bound to the model.
      say: prints a text above the progress bar.
      metrics: the latest held-out metrics of all callbacks.
      measured_at: metric → step of its latest value.
    """

    model_dir: str
    model: Any
    objective: Any
    data: Any
    layout: Layout
    mesh: Mesh
    steps: int | None
    callbacks: Sequence[Callback] = ()
    writers: Any = ()
    tuning: Tuning = Everything()
    say: Callable[[str], None] = print
    metrics: dict[str, float] = dataclasses.field(default_factory=dict)
    measured_at: dict[str, int] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        self.writers = Writers(self.writers)

    def params(self, state: TrainState) -> Any:
        """Returns all parameters for evaluation, averaged ones where an average is kept."""
        return whole_params(state, self.tuning)

    def live_params(self, state: TrainState) -> Any:
        """Returns all parameters as the optimizer updates them, never averaged."""
        return self.tuning.merge(state.params, state.frozen["params"])

    def references(self, state: TrainState) -> Mapping[str, Any]:
        """Returns the parameters of the objective's references, by name."""
        return state.frozen["references"]  # type: ignore[no-any-return]

    def to_devices(self, batch: Mapping[str, np.ndarray | jax.Array]) -> dict[str, jax.Array]:
        """Puts this process's rows of a batch on its devices; global arrays stay as they are.

        Raises: InputError an id exceeds the model's size, which devices would not notice.
        """
        ready = {name: rows for name, rows in batch.items() if isinstance(rows, jax.Array)}
        local = {name: np.asarray(rows) for name, rows in batch.items() if name not in ready}
        for name, rows in local.items():
            _check_ids(name, rows, self._limits)
        sharding = batch_shardings(self.layout, self.mesh, self.objective.axes(), local)
        return to_devices(local, sharding, num_rows=self.data.batch_size) | ready

    @functools.cached_property
    def _limits(self) -> Mapping[str, Any]:
        return self.objective.limits(self.model)  # type: ignore[no-any-return]

    @functools.cached_property
    def rows(self) -> np.ndarray:
        """The rows of a batch that this process's devices hold, ascending."""
        rows = process_rows(self.layout, self.mesh, self.data.batch_size)
        return rows[jax.process_index()]

    @functools.cached_property
    def shards(self) -> tuple[int, ...]:
        """The virtual shards of the data that this process reads."""
        return process_shards(self.data, self.layout, self.mesh)[jax.process_index()]

    def record(self, step: int, metrics: Mapping[str, float]) -> None:
        """Keeps and writes metrics of the state after a step."""
        self.metrics.update(metrics)
        self.measured_at.update(dict.fromkeys(metrics, step))
        self.writers.write(step, metrics)

    def jit(self, fn: Callable, **options: Any) -> Callable:
        return with_layout(fn, self.layout, self.mesh, **options)


def edited(callback: Callback, before: TrainState, result: Edit) -> TrainState:
    """Returns the state of an `Edit`, sharded as the state before it.

    Raises: InputError if structure, shapes or types differ, which would compile another step.
    """
    name = f"the Edit of {type(callback).__name__}"
    structures: list[Any] = [jax.tree.structure(state) for state in (result.state, before)]
    if structures[0] != structures[1]:
        raise InputError(f"{name} has another structure than the state: return state.replace(...)")
    leaves = jax.tree_util.tree_leaves_with_path(before)
    for (path, was), now in zip(leaves, jax.tree.leaves(result.state), strict=True):
        if (np.shape(now), now.dtype) != (was.shape, was.dtype):
            raise InputError(
                f"{name} changes state{jax.tree_util.keystr(path)} from {was.dtype}"
                f"{list(was.shape)} to {now.dtype}{list(np.shape(now))}: keep shapes and types"
            )
    shardings = jax.tree.map(lambda leaf: leaf.sharding, before)
    return jax.device_put(result.state, shardings)  # type: ignore[no-any-return]


def measured(callback: Callback, result: Any) -> dict[str, float]:
    """Returns the metrics of a callback's result, {} of None.

    Raises: InputError if it is neither metrics nor another result of a callback.
    """
    if result is None:
        return {}
    if not isinstance(result, Mapping):
        raise InputError(
            f"{type(callback).__name__} returned {type(result).__name__}: a callback returns "
            "metrics by name, a Stop, an Edit or None"
        )
    return {name: float(value) for name, value in result.items()}


def _check_ids(name: str, rows: np.ndarray, limits: Mapping[str, Any]) -> None:
    limit = limits.get(name)
    if limit is None or rows.dtype.kind not in "iu":
        return
    if (largest := int(rows.max(initial=0))) >= limit.size:
        raise InputError(
            f"{name}: the id {largest} exceeds the model's {limit.size} {limit.noun}, 0 to "
            f"{limit.size - 1}; {limit.fix}",
            field="train.data",
        )

"""What a run does besides stepping: callbacks, and what they are given."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
from jax.sharding import Mesh

from t5lite.errors import InputError
from t5lite.parallel import Layout, batch_sharding, place, with_layout
from t5lite.training.state import TrainState
from t5lite.training.step import Transform, identity
from t5lite.training.writers import Writers


@dataclasses.dataclass(frozen=True)
class Stop:
    """Returned by a callback to end the run after this step.

    Args:
      reason: shown to the user.
    """

    reason: str


@runtime_checkable
class Callback(Protocol):
    """Runs every `every` steps and after the last one, before the next step is dispatched.

    It may return held-out metrics, which go to the writers, to later callbacks and to the choice of
    the best checkpoint; or a `Stop`. What it must remember over a restart goes through the optional
    methods `state_dict() -> dict` (JSON-able) and `load_state_dict(dict)`. An optional `check(run)`
    is called before the first step, to refuse then what would fail hours later.
    """

    every: int

    def __call__(
        self, run: "Run", state: TrainState, *, step: int
    ) -> Mapping[str, float] | Stop | None: ...


@dataclasses.dataclass
class Run:
    """What a run is made of, for those who look at it from a callback.

    Args:
      model_dir: where everything is written.
      model: pure functions, see `models.Model`.
      objective: what is trained.
      data: gives `train_batches`, `validation_batches` and `examples`.
      layout: how arrays are sharded over `mesh`.
      mesh: the devices.
      steps: after which the run ends.
      writers: where metrics go; becomes one `Writers`, which the first process alone writes to.
      transform: parameters and frozen ones to what the model gets.
      say: prints a text above the progress bar.
      vocab: the model's number of embeddings, which token ids are checked against.
      metrics: the latest held-out metrics of all callbacks.
    """

    model_dir: str
    model: Any
    objective: Any
    data: Any
    layout: Layout
    mesh: Mesh
    steps: int
    writers: Any = ()
    transform: Transform = identity
    say: Callable[[str], None] = print
    vocab: int | None = None
    metrics: dict[str, float] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        self.writers = Writers(self.writers)

    def params(self, state: TrainState) -> Any:
        """Returns the parameters to evaluate: averaged where an average is kept."""
        return self.transform(state.extra.get("ema", state.params), state.frozen)

    def place(self, batch: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
        """Puts this host's rows of a batch on the devices.

        Raises:
          InputError: if a token id has no embedding: on a device that would go unnoticed.
        """
        for name, rows in batch.items():
            if self.vocab and name.endswith("_tokens") and rows.max(initial=0) >= self.vocab:
                raise InputError(
                    f"{name} holds the token id {rows.max()}, but the model has only {self.vocab} "
                    "embeddings; was it tokenised with another vocabulary?"
                )
        return place(batch, batch_sharding(self.layout, self.mesh))

    def jit(self, fn: Callable, **options: Any) -> Callable:
        """Jits `fn` for the run's mesh and layout."""
        return with_layout(fn, self.layout, self.mesh, **options)

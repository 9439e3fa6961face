"""One training step: loss, gradient, update. Nothing else trains a model here."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import optax
from jax import lax

from t5lite.errors import InputError
from t5lite.training.state import TrainState

Tree = Any
Batch = Mapping[str, jax.Array]
Sums = dict[str, tuple[jax.Array, jax.Array]]
# transform(params, frozen) -> what the model gets; adapters and quantised weights plug in here.
Transform = Callable[[Tree, Tree], Tree]


class Objective(Protocol):
    """The device half of an objective, as the step sees it."""

    def weights(self, batch: Batch) -> Mapping[str, jax.Array]: ...

    def loss(
        self, model: Any, params: Tree, batch: Batch, *, rngs: Mapping[str, jax.Array], train: bool
    ) -> tuple[Sums, Sums]: ...


@dataclasses.dataclass(frozen=True)
class Update:
    """How gradients become an update, whatever the optimizer.

    Args:
      num_microbatches: parts of the batch computed one after the other; the sum of their gradients
        is exactly the whole batch's.
      clip_norm: largest global norm of the gradient; None for no clipping.
      ema_decay: of an average of the parameters, in (0, 1), used for evaluation; None for none.
      on_nan: what a NaN or infinite loss or gradient does: `stop` the run or `skip` the update. In
        both cases it never reaches the parameters.
    """

    num_microbatches: int = 1
    clip_norm: float | None = None
    ema_decay: float | None = None
    on_nan: str = "stop"

    def __post_init__(self) -> None:
        if not isinstance(self.num_microbatches, int) or self.num_microbatches < 1:
            raise InputError(f"Update.num_microbatches = {self.num_microbatches!r}: at least 1")
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise InputError(f"Update.clip_norm = {self.clip_norm!r}: must be above 0")
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise InputError(f"Update.ema_decay = {self.ema_decay!r}: must be in (0, 1)")
        if self.on_nan not in ("stop", "skip"):
            raise InputError(f"Update.on_nan = {self.on_nan!r}: must be 'stop' or 'skip'")


def identity(params: Tree, frozen: Tree) -> Tree:
    """The transform of full training: the model gets the parameters as they are."""
    del frozen
    return params


def train_step(
    state: TrainState,
    batch: Batch,
    *,
    model: Any,
    objective: Objective,
    optimizer: optax.GradientTransformationExtraArgs,
    update: Update = Update(),
    transform: Transform = identity,
    constrain_gradients: Callable[[Tree], Tree] = lambda gradients: gradients,
) -> tuple[TrainState, dict[str, Any]]:
    """Does one update.

    Args:
      state: before the step; donate it.
      batch: `[batch, length]` arrays under SeqIO's names, the whole global batch.
      model: pure functions `hidden` and `logits`, see `models.Model`.
      objective: gives the loss.
      optimizer: an Optax transformation; it is passed the loss as `value`.
      update: microbatches, clipping, averaging.
      transform: parameters and frozen ones to what the model gets.
      constrain_gradients: pins the gradients' sharding.

    Returns:
      The state after the step, and metrics: float32 scalars `loss`, `gradient_norm`,
      `parameter_norm`, bool `finite`, and `sums`, the objective's `name: (sum, weight)`.
    """
    loss, sums, gradients = _accumulated_gradients(
        state, batch, model, objective, update.num_microbatches, transform, constrain_gradients
    )
    gradient_norm = optax.tree.norm(gradients)
    finite = jnp.isfinite(loss) & jnp.isfinite(gradient_norm)
    if update.clip_norm is not None:
        factor = jnp.minimum(1.0, update.clip_norm / jnp.maximum(gradient_norm, 1e-12))
        gradients = jax.tree.map(lambda g: g * factor, gradients)
    # Optax's own code relies on implicit promotion here and there.
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params, value=loss)
        params = optax.apply_updates(state.params, updates)
    extra = dict(state.extra)
    if update.ema_decay is not None:
        extra["ema"] = optax.incremental_update(params, extra["ema"], 1 - update.ema_decay)

    kept = (state.params, state.opt_state, state.extra)
    params, opt_state, extra = jax.tree.map(
        lambda new, old: jnp.where(finite, new, old), (params, opt_state, extra), kept
    )
    metrics = {
        "loss": loss,
        "gradient_norm": gradient_norm,
        "parameter_norm": optax.tree.norm(params),
        "finite": finite,
        "sums": sums,
    }
    state = state.replace(step=state.step + 1, params=params, opt_state=opt_state, extra=extra)
    return state, metrics


def _accumulated_gradients(
    state: TrainState,
    batch: Batch,
    model: Any,
    objective: Objective,
    num_microbatches: int,
    transform: Transform,
    constrain_gradients: Callable[[Tree], Tree],
) -> tuple[jax.Array, Sums, Tree]:
    # The whole batch's weights first: with them the sums of the parts add up to the whole's mean.
    weights = objective.weights(batch)
    key = jax.random.fold_in(jax.random.wrap_key_data(state.rng), state.step)

    def loss_fn(params: Tree, part: Batch, index: jax.Array) -> tuple[jax.Array, Sums]:
        terms, sums = objective.loss(
            model,
            transform(params, state.frozen),
            part,
            rngs={"dropout": jax.random.fold_in(key, index)},
            train=True,
        )
        unweighted = jnp.float32(num_microbatches)
        loss = functools.reduce(
            jnp.add,
            [
                jnp.float32(coefficient) * total / jnp.maximum(weights.get(name, unweighted), 1e-8)
                for name, (total, coefficient) in terms.items()
            ],
        )
        return loss, sums

    def part_gradients(part: Batch, index: jax.Array) -> tuple[jax.Array, Sums, Tree]:
        (loss, sums), gradients = jax.value_and_grad(loss_fn, has_aux=True)(
            state.params, part, index
        )
        return loss, sums, constrain_gradients(gradients)

    if num_microbatches == 1:
        return part_gradients(batch, jnp.int32(0))

    def accumulate(total: Tree, part_and_index: tuple[Batch, jax.Array]) -> tuple[Tree, None]:
        return jax.tree.map(jnp.add, total, part_gradients(*part_and_index)), None

    parts = jax.tree.map(lambda rows: _split_rows(rows, num_microbatches), dict(batch))
    shapes = jax.eval_shape(part_gradients, jax.tree.map(lambda p: p[0], parts), jnp.int32(0))
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    indices = jnp.arange(num_microbatches, dtype=jnp.int32)
    return lax.scan(accumulate, zeros, (parts, indices))[0]


def _split_rows(rows: jax.Array, num_parts: int) -> jax.Array:
    """`[batch, …]` to `[num_parts, batch / num_parts, …]`, every device keeping its own rows."""
    batch, *rest = rows.shape
    return jnp.moveaxis(rows.reshape(batch // num_parts, num_parts, *rest), 1, 0)

"""One training step: loss, gradients, update, metrics."""

import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import optax

from t5lite.errors import unknown
from t5lite.training.microbatches import sum_over_microbatches
from t5lite.training.state import TrainState
from t5lite.training.tuning import Everything, Tuning
from t5lite.training.update import Update

Tree = Any
Batch = Mapping[str, jax.Array]
Sums = dict[str, tuple[jax.Array, jax.Array]]


class Objective(Protocol):
    """The device half of an objective, as the step sees it."""

    @property
    def streams(self) -> tuple[str, ...]: ...

    @property
    def min_rows(self) -> int: ...

    @property
    def token_arrays(self) -> tuple[str, ...]: ...

    def axes(self) -> Mapping[str, tuple[str | None, ...]]: ...

    def weights(self, batch: Batch) -> Mapping[str, jax.Array]: ...

    def loss(
        self,
        model: Any,
        params: Tree,
        batch: Batch,
        *,
        frozen: Mapping[str, Tree],
        rngs: Mapping[str, jax.Array],
        train: bool,
    ) -> tuple[Sums, Sums]: ...


def random_streams(names: Sequence[str], key: jax.Array) -> dict[str, jax.Array]:
    """Returns a key for each named stream; dropout's is `key` itself."""
    return {
        name: key if name == "dropout" else jax.random.fold_in(key, zlib.crc32(name.encode()))
        for name in names
    }


def train_step(
    state: TrainState,
    batch: Batch,
    *,
    model: Any,
    objective: Objective,
    optimizer: optax.GradientTransformationExtraArgs,
    update: Update = Update(),
    tuning: Tuning = Everything(),
    constrain_gradients: Callable[[Tree], Tree] = lambda gradients: gradients,
    learning_rate: Callable[[Tree], jax.Array | None] = lambda opt_state: None,
) -> tuple[TrainState, dict[str, Any]]:
    """Applies one update, or skips it if loss or gradients are non-finite or spike.

    Args:
      state: before the step; donate it.
      batch: `[batch, ...]` arrays under SeqIO's names, the whole global batch.
      model: pure functions `hidden`, `logits` and `output`, see `models.Model`.
      objective: gives the loss.
      optimizer: an Optax transformation; it is passed the loss as `value`.
      update: microbatches, clipping, averaging, guards.
      tuning: merges trained and frozen parameters; bound to the model.
      constrain_gradients: pins the gradients' sharding.
      learning_rate: the optimizer's state → the rate of its next update, for display.

    Returns:
      The state after the step, and metrics: float32 scalars `loss`, `gradient_norm`,
      `parameter_norm` (of trained parameters), `update_scale`, `learning_rate` where it is known
      (times `update_scale`), and `loss_scale` of float16; int32 `tokens`, see `segment_arrays`;
      bool `applied`, `finite` and `spike`, see `Verdict`; and `sums` of the objective, by name
      `(sum, weight)`.
    """
    # Gradients of the trained parameters, and whether they are fit for an update.
    loss, sums, gradients = loss_gradients(
        state,
        batch,
        model=model,
        objective=objective,
        tuning=tuning,
        num_microbatches=update.num_microbatches,
        constrain_gradients=constrain_gradients,
    )
    gradient_norm = optax.tree.norm(gradients)
    verdict, guards = update.judge(state.extra, loss, gradient_norm)
    gradients = update.clip(gradients, gradient_norm)

    # Update. Parts of Optax rely on implicit promotion.
    update_scale = state.extra["update_scale"]
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params, value=loss)
        params = optax.apply_updates(state.params, optax.tree.scale(update_scale, updates))
    new = state.replace(params=params, opt_state=opt_state, extra=update.average(state, params))
    # A skipped update leaves parameters, moments and average bit-identical.
    new = jax.tree.map(lambda after, before: jnp.where(verdict.applied, after, before), new, state)
    new = new.replace(step=state.step + 1, extra=new.extra | guards)

    # Metrics.
    tokens = [jnp.count_nonzero(ids).astype(jnp.int32) for ids in segment_arrays(objective, batch)]
    metrics = {
        "loss": loss,
        "gradient_norm": gradient_norm,
        "parameter_norm": optax.tree.norm(new.params),
        "tokens": sum(tokens, jnp.int32(0)),
        "update_scale": update_scale,
        **verdict._asdict(),
        "sums": sums,
    }
    if update.loss_scale is not None:
        metrics["loss_scale"] = state.extra["loss_scale"]["scale"]
    if (rate := learning_rate(state.opt_state)) is not None:
        metrics["learning_rate"] = rate * update_scale
    return new, metrics


def loss_gradients(
    state: TrainState,
    batch: Batch,
    *,
    model: Any,
    objective: Objective,
    tuning: Tuning,
    num_microbatches: int,
    constrain_gradients: Callable[[Tree], Tree],
) -> tuple[jax.Array, Sums, Tree]:
    """Returns loss, the objective's sums and gradients of the whole batch; see `train_step`."""
    # Each term is divided by the weight of the whole batch, so that microbatches add up exactly.
    weights = objective.weights(batch)
    key = jax.random.fold_in(jax.random.wrap_key_data(state.rng), state.step)
    loss_scale = state.extra["loss_scale"]["scale"] if "loss_scale" in state.extra else None

    def loss_fn(params: Tree, microbatch: Batch, index: jax.Array) -> tuple[jax.Array, tuple]:
        objective_loss = tuning.lift(
            lambda all_params: objective.loss(
                model,
                all_params,
                microbatch,
                frozen=state.frozen["references"],
                rngs=random_streams(objective.streams, jax.random.fold_in(key, index)),
                train=True,
            )
        )
        terms, sums = objective_loss(params, state.frozen["params"])
        loss = jnp.float32(0)
        for name, (total, coefficient) in terms.items():
            # A term without a weight is a mean already: it is averaged over the microbatches.
            weight = weights.get(name, jnp.float32(num_microbatches))
            loss += jnp.float32(coefficient) * total / jnp.maximum(weight, 1e-8)
        return (loss if loss_scale is None else loss * loss_scale), (loss, sums)

    def microbatch_gradients(microbatch: Batch, index: jax.Array) -> tuple[jax.Array, Sums, Tree]:
        grad = jax.grad(loss_fn, has_aux=True)
        gradients, (loss, sums) = grad(state.params, microbatch, index)
        if loss_scale is not None:
            gradients = jax.tree.map(
                lambda g: (g.astype(jnp.float32) / loss_scale).astype(g.dtype), gradients
            )
        return loss, sums, constrain_gradients(gradients)

    if num_microbatches == 1:
        return microbatch_gradients(batch, jnp.int32(0))
    return sum_over_microbatches(microbatch_gradients, batch, num_microbatches)


def segment_arrays(objective: Objective, batch: Mapping[str, Any]) -> list[Any]:
    """Returns the segment ids whose entries above 0 count as tokens seen.

    Raises: InputError if the batch lacks one.
    """
    for name in objective.token_arrays:
        if name not in batch:
            raise unknown(f"array in {type(objective).__name__}.token_arrays", name, batch)
    return [batch[name] for name in objective.token_arrays]

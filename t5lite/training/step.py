"""One training step: loss, gradient, update. Nothing else trains a model here."""

import functools
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax
from jax import lax

from t5lite.training.guards import after_loss, is_spike
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
    """Does one update, or none if the loss or its gradient is not fit for one.

    Args:
      state: before the step; donate it.
      batch: `[batch, ...]` arrays under SeqIO's names, the whole global batch.
      model: pure functions `hidden`, `logits` and `output`, see `models.Model`.
      objective: gives the loss.
      optimizer: an Optax transformation; it is passed the loss as `value`.
      update: microbatches, clipping, averaging, guards.
      tuning: merges trained and frozen parameters; bound to the model.
      constrain_gradients: pins the gradients' sharding.
      learning_rate: the optimizer's state → the rate of its next update, for display; see
        `state.next_learning_rate`.

    Returns:
      The state after the step, and metrics: float32 scalars `loss`, `gradient_norm`,
      `parameter_norm`, `update_scale`, where it is known `learning_rate` (times `update_scale`),
      and of float16 `loss_scale`; int32 `tokens`, see `counted`; bool `applied`, `finite` and
      `spike`, see `Verdict`; and `sums`, the objective's `name: (sum, weight)`.
    """
    loss, sums, gradients = _accumulated_gradients(
        state, batch, model, objective, update.num_microbatches, tuning, constrain_gradients
    )
    gradient_norm = optax.tree.norm(gradients)
    verdict, guards = _judge(state.extra, loss, gradient_norm, update)
    if update.clip_norm is not None:
        factor = jnp.minimum(1.0, update.clip_norm / jnp.maximum(gradient_norm, 1e-12))
        gradients = jax.tree.map(lambda g: g * factor, gradients)
    # Optax's own code relies on implicit promotion here and there.
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params, value=loss)
        updates = optax.tree.scale(state.extra["update_scale"], updates)
        params = optax.apply_updates(state.params, updates)
    average = {}
    if update.ema_decay is not None:
        ema = optax.incremental_update(params, state.extra["ema"], 1 - update.ema_decay)
        average = {"ema": ema}

    kept = (state.params, state.opt_state, {name: state.extra[name] for name in average})
    params, opt_state, average = jax.tree.map(
        lambda new, old: jnp.where(verdict.applied, new, old), (params, opt_state, average), kept
    )
    metrics = {
        "loss": loss,
        "gradient_norm": gradient_norm,
        "parameter_norm": optax.tree.norm(params),
        "tokens": sum(
            (jnp.count_nonzero(tokens).astype(jnp.int32) for tokens in counted(batch)), jnp.int32(0)
        ),
        "update_scale": state.extra["update_scale"],
        **verdict._asdict(),
        "sums": sums,
    }
    if update.loss_scale is not None:
        metrics["loss_scale"] = state.extra["loss_scale"]["scale"]
    if (rate := learning_rate(state.opt_state)) is not None:
        metrics["learning_rate"] = rate * state.extra["update_scale"]
    state = state.replace(
        step=state.step + 1,
        params=params,
        opt_state=opt_state,
        extra={**state.extra, **guards, **average},
    )
    return state, metrics


def counted(batch: Mapping[str, Any]) -> list[Any]:
    """Returns the arrays of token ids that count as seen: every text once.

    What a decoder reads is what it writes, one to the right; what an encoder is to say of its
    tokens stands where they stand.
    """
    again = {"encoder_target_tokens"}
    if "decoder_target_tokens" in batch:
        again.add("decoder_input_tokens")
    return [rows for name, rows in batch.items() if name.endswith("_tokens") and name not in again]


class Verdict(NamedTuple):
    """What is to be done with a step's gradient; bool scalars.

    Args:
      applied: whether the update counts; otherwise all but `step` and the guards stays as it was.
      finite: False if loss or gradient is NaN or infinite, except where only the loss scale was too
        high, which the guard sees to itself.
      spike: whether the loss is finite but far above those before it.
    """

    applied: jax.Array
    finite: jax.Array
    spike: jax.Array


def _judge(
    extra: Tree, loss: jax.Array, gradient_norm: jax.Array, update: Update
) -> tuple[Verdict, dict[str, Tree]]:
    """Returns the verdict, and the guards' part of `extra` after it."""
    finite = jnp.isfinite(loss) & jnp.isfinite(gradient_norm)
    failed, spike, guards = ~finite, jnp.bool_(False), {}
    if update.spike_threshold is not None:
        spike = finite & is_spike(
            extra["spike"],
            loss,
            threshold=update.spike_threshold,
            warmup_steps=update.spike_warmup_steps,
        )
        guards["spike"] = after_loss(
            extra["spike"], loss, finite=finite, spike=spike, decay=update.spike_decay
        )
    if update.loss_scale is not None:
        failed &= extra["loss_scale"]["scale"] <= update.loss_scale.minimum
        guards["loss_scale"] = update.loss_scale.after(extra["loss_scale"], finite)
    return Verdict(applied=finite & ~spike, finite=~failed, spike=spike), guards


def _accumulated_gradients(
    state: TrainState,
    batch: Batch,
    model: Any,
    objective: Objective,
    num_microbatches: int,
    tuning: Tuning,
    constrain_gradients: Callable[[Tree], Tree],
) -> tuple[jax.Array, Sums, Tree]:
    # The whole batch's weights first: with them the sums of the parts add up to the whole's mean.
    weights = objective.weights(batch)
    key = jax.random.fold_in(jax.random.wrap_key_data(state.rng), state.step)
    scale = state.extra["loss_scale"]["scale"] if "loss_scale" in state.extra else None

    def loss_fn(params: Tree, part: Batch, index: jax.Array) -> tuple[jax.Array, tuple]:
        terms, sums = objective.loss(
            model,
            tuning.merge(params, state.frozen["params"]),
            part,
            frozen=state.frozen["references"],
            rngs=random_streams(objective.streams, jax.random.fold_in(key, index)),
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
        return (loss if scale is None else loss * scale), (loss, sums)

    def part_gradients(part: Batch, index: jax.Array) -> tuple[jax.Array, Sums, Tree]:
        gradients, (loss, sums) = jax.grad(loss_fn, has_aux=True)(state.params, part, index)
        if scale is not None:
            gradients = jax.tree.map(
                lambda g: (g.astype(jnp.float32) / scale).astype(g.dtype), gradients
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

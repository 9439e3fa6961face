"""Runs Optax in float32, and where the project's strict type promotion is on."""

from typing import Any

import jax
import jax.numpy as jnp
import optax


def in_float32(
    transformation: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
    """Wraps a transformation so that its state and arithmetic are float32.

    Gradients and parameters of any float dtype come in as float32; updates leave in the dtype of
    the gradients' parameters. Several of Optax's own transformations mix dtypes (AdamW's bias
    correction, its schedules), so all of it runs under standard promotion, whatever the caller has.
    """
    transformation = optax.with_extra_args_support(transformation)

    def init(params: optax.Params) -> optax.OptState:
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            return transformation.init(_float32(params))

    def update(
        updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None, **extra
    ) -> tuple[optax.Updates, optax.OptState]:
        like = updates if params is None else params
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            params = None if params is None else _float32(params)
            updates, state = transformation.update(_float32(updates), state, params, **extra)
            return jax.tree.map(lambda u, p: u.astype(p.dtype), updates, like), state

    return optax.GradientTransformationExtraArgs(init, update)


def _float32(tree: Any) -> Any:
    return jax.tree.map(lambda x: x.astype(jnp.float32), tree)

"""Pooling: one vector for each text, from its tokens' vectors."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32

# The last three are sentence-transformers'.
POOLINGS = ("first", "mean", "last", "max", "mean_sqrt_length", "weighted_mean")


def pool(
    hidden: Float[Array, "batch length embed"], valid: Bool[Array, "batch length"], pooling: str
) -> Float32[Array, "batch embed"]:
    """Returns one vector for each text; a row of padding gives zeros or its first vector.

    Args:
      valid: the tokens that are not padding.
      pooling: one of `POOLINGS`. `mean_sqrt_length` divides the sum by the root of the number of
        tokens, `weighted_mean` weighs tokens by their position, from 1.
    """
    hidden = hidden.astype(jnp.float32)
    inside = valid.astype(jnp.float32)
    if pooling == "max":
        highest = jnp.where(valid[..., None], hidden, -jnp.inf).max(axis=1)
        return jnp.where(valid.any(axis=1)[:, None], highest, 0.0)
    if pooling == "weighted_mean":
        inside = inside * jnp.arange(1, valid.shape[1] + 1, dtype=jnp.float32)[None]
    if pooling in ("mean", "weighted_mean"):
        weights = inside / jnp.maximum(inside.sum(axis=1, keepdims=True), 1.0)
    elif pooling == "mean_sqrt_length":
        weights = inside / jnp.sqrt(jnp.maximum(inside.sum(axis=1, keepdims=True), 1.0))
    else:
        length = valid.shape[1]
        at = valid.argmax(axis=1) if pooling == "first" else length - 1 - valid[:, ::-1].argmax(1)
        weights = jax.nn.one_hot(at, length, dtype=jnp.float32)
    return jnp.einsum("bl,ble->be", weights, hidden)


def unit_length(x: Float32[Array, "*batch size"]) -> Float32[Array, "*batch size"]:
    """Scales vectors to length 1; zeros stay zeros."""
    # Smaller than lengths in training, so that a row of padding has a gradient.
    return x * jax.lax.rsqrt(jnp.sum(x * x, axis=-1, keepdims=True) + jnp.float32(1e-12))

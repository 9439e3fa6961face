"""Attention with all logits in memory: the definition that the other kernels must equal."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Float32

from t5lite.layers.kernels.request import ATTENDED, Request

# Finite, so that a row with every key masked gives uniform weights instead of NaN.
MASKED = -1e9


def softcapped(logits: Float32[Array, "*shape"], softcap: float) -> Float32[Array, "*shape"]:
    """Returns float32 logits within ±`softcap`, almost unchanged where they are far below it."""
    return jnp.float32(softcap) * jnp.tanh(logits / jnp.float32(softcap))


def attention(request: Request) -> Float[Array, "batch q_length heads head_dim"]:
    """`attended`, named for rematerialisation policies."""
    return checkpoint_name(attended(request), ATTENDED)


def attended(request: Request) -> Float[Array, "batch q_length heads head_dim"]:
    """Returns `[batch, q_length, heads, kv]`; logits and softmax in float32.

    Source: Vaswani et al. 2017, arXiv:1706.03762, §3.2.1; Ainslie et al. 2023, arXiv:2305.13245.
    """
    probabilities = weights(request)
    if request.dropout is not None:
        probabilities = request.dropout(probabilities)
    return mixed(probabilities.astype(request.query.dtype), request.kv.value)


def weights(request: Request) -> Float32[Array, "batch heads q_length kv_length"]:
    """Returns the attention weights, before dropout: they sum to 1 over the keys."""
    return softmax(logits_of(request))


@jax.custom_jvp
def softmax(logits: Float32[Array, "*shape"]) -> Float32[Array, "*shape"]:
    """Returns the softmax over the last axis; its statistics are named for policies, so that a
    backward pass makes the weights again without another reduction."""
    return _softmax(logits)


def _softmax(logits: jax.Array) -> jax.Array:
    # Named without their last axis, of one, which a TPU would fill up to 128 lanes.
    highest = checkpoint_name(lax.stop_gradient(jnp.max(logits, axis=-1)), ATTENDED)
    exponentials = jnp.exp(logits - highest[..., None])
    total = checkpoint_name(jnp.sum(exponentials, axis=-1), ATTENDED)
    return exponentials / total[..., None]


@softmax.defjvp
def _softmax_jvp(
    primals: tuple[jax.Array], tangents: tuple[jax.Array]
) -> tuple[jax.Array, jax.Array]:
    # Not by `softmax`, inside of which no policy would see the names.
    weights, tangent = _softmax(*primals), tangents[0]
    mean = jnp.sum(weights * tangent, axis=-1, keepdims=True)
    return weights, weights * (tangent - mean)


def mixed(
    weights: Float[Array, "batch heads q_length kv_length"],
    value: Float[Array, "batch kv_length kv_heads head_dim"],
    *,
    dtype: Any = None,
) -> Float[Array, "batch q_length heads head_dim"]:
    """Returns the weighted sums of values of the same dtype, in `dtype`; None for theirs."""
    batch, heads, q_length, _ = weights.shape
    groups, width = value.shape[2:]
    weights = weights.reshape(batch, groups, heads // groups * q_length, -1)
    sums = jnp.einsum(
        "bgqk,bgkd->bgqd", weights, jnp.swapaxes(value, 1, 2), preferred_element_type=dtype
    )
    return jnp.swapaxes(sums.reshape(batch, heads, q_length, width), 1, 2)


def logits_of(request: Request) -> Float32[Array, "batch heads q_length kv_length"]:
    """Returns the attention logits: scaled, capped, with bias and mask."""
    query, key = request.query, request.kv.key
    batch, q_length, heads, width = query.shape
    groups = key.shape[2]
    # Heads before lengths, as a cache has them: in another order XLA copies it on CPUs.
    query = jnp.moveaxis(query.reshape(batch, q_length, groups, heads // groups, width), 1, 3)
    query = query.reshape(batch, groups, -1, width)
    logits = jnp.einsum(
        "bgqd,bgkd->bgqk", query, jnp.swapaxes(key, 1, 2), preferred_element_type=jnp.float32
    )
    logits = logits.reshape(batch, heads, q_length, -1)
    if request.scale != 1.0:
        logits = logits * jnp.float32(request.scale)
    if request.softcap is not None:
        logits = softcapped(logits, request.softcap)
    if request.bias is not None:
        logits = logits + jnp.broadcast_to(request.bias, logits.shape)
    seen = None if request.mask is None else request.mask.array()
    if seen is not None:
        logits = jnp.where(seen, logits, jnp.float32(MASKED))
    return logits

"""Attention some queries at a time, so that not all logits are in memory together.

Each chunk has its queries' whole softmax, so results are `dot`'s but for rounding; the backward
pass recomputes each chunk from its softmax statistics.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from t5lite.layers.cache import KeyValues
from t5lite.layers.kernels import dot
from t5lite.layers.kernels.request import ATTENDED, Request

CHUNK = 256  # queries; large enough to keep the matrix units busy


def attention(
    request: Request, *, chunk: int = CHUNK
) -> Float[Array, "batch q_length heads head_dim"]:
    """Returns what `dot.attention` does, with `chunk / q_length` of its memory for logits.

    Source: Rabe and Staats 2021, arXiv:2112.05682, §3 (chunks of queries).
    """
    q_length = request.query.shape[1]
    if q_length <= chunk:
        return dot.attention(request)
    num_chunks, rest = divmod(q_length, chunk)

    # All chunks read the same keys and values, whose gradients add up in float32.
    kv, dtype = request.kv, request.query.dtype
    key, value = kv.key.astype(jnp.float32), kv.value.astype(jnp.float32)
    request = dataclasses.replace(request, kv=KeyValues(key, value))

    @functools.partial(
        jax.checkpoint,
        policy=jax.checkpoint_policies.save_only_these_names(ATTENDED),
        static_argnums=2,
    )
    def part(request: Request, start: jax.Array, size: int) -> jax.Array:
        kv = KeyValues(request.kv.key.astype(dtype), request.kv.value.astype(dtype))
        return dot.attended(_queries(dataclasses.replace(request, kv=kv), start, size))

    def step(_: None, start: jax.Array) -> tuple[None, jax.Array]:
        return None, part(request, start, chunk)

    starts = jnp.arange(num_chunks, dtype=jnp.int32) * chunk
    _, chunks = lax.scan(step, None, starts)
    whole = jnp.moveaxis(chunks, 0, 1).reshape(-1, num_chunks * chunk, *request.query.shape[2:])
    if rest:
        last = part(request, jnp.int32(num_chunks * chunk), rest)
        whole = jnp.concatenate([whole, last], axis=1)
    return checkpoint_name(whole, ATTENDED)


def _queries(request: Request, start: jax.Array, size: int) -> Request:
    bias, mask, dropout = request.bias, request.mask, request.dropout
    if bias is not None and bias.shape[2] > 1:
        bias = lax.dynamic_slice_in_dim(bias, start, size, axis=2)
    return dataclasses.replace(
        request,
        query=lax.dynamic_slice_in_dim(request.query, start, size, axis=1),
        bias=bias,
        mask=None if mask is None else mask.queries(start, size),
        dropout=None if dropout is None else dropout.fold_in(start),
    )

"""Attention some rows at a time, whose logits stay close to the processor: in a CPU's cache, or in
a TPU's vector memory.

The backward pass is written by hand: it keeps the output and the logarithm of each softmax's
normaliser, computes the logits again, and needs no sum over the keys.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from t5lite.layers.cache import KeyValues
from t5lite.layers.kernels import dot
from t5lite.layers.kernels.request import Request, mesh_axes

MAX_BYTES = 2**22  # of the logits that a device works on at once


def attention(request: Request, *, max_bytes: int = MAX_BYTES) -> jax.Array:
    """Returns what `dot.attention` does, with the logits of a few rows in memory.

    Args:
      request: of any kind.
      max_bytes: of the float32 logits that a device has at once; those of one row if that is more.

    Source: Dao et al. 2022, arXiv:2205.14135, appendix B.4 (the backward pass from the output and
      the softmax's normaliser).
    """
    batch, q_length, heads, _ = request.query.shape
    sizes = dict(jax.sharding.get_abstract_mesh().shape)
    num_shards, head_shards = (
        int(np.prod([sizes[axis] for axis in axes or ()], dtype=int))
        for axes in mesh_axes(("batch", "heads"))
    )
    if batch % num_shards:
        num_shards = 1
    rows = batch // num_shards  # of a device
    row_bytes = 4 * -(-heads // head_shards) * q_length * request.kv.key.shape[1]
    most = max(max_bytes // row_bytes, 1)
    size = max(n for n in range(1, rows + 1) if rows % n == 0 and n <= most)
    bias = request.bias
    if bias is not None and bias.shape[0] == 1 and num_shards > 1:
        # One for each device: what its rows say of the bias is added up there, and over devices
        # only in the end, rather than at every turn of the loop.
        bias = jnp.broadcast_to(bias, (num_shards, *bias.shape[1:]))
        bias = nn.with_logical_constraint(bias, ("batch", "heads", None, None))
        request = dataclasses.replace(request, bias=bias)
    return _attention(request, rows // size)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _attention(request: Request, num_parts: int) -> jax.Array:
    return _forward(request, num_parts)[0]


def _forward(request: Request, num_parts: int) -> tuple[jax.Array, Any]:
    def part(_: None, arrays: Any) -> tuple[None, tuple[jax.Array, ...]]:
        request, numbers = arrays
        logits = _logits(request)
        highest = jnp.max(logits, axis=-1, keepdims=True)
        weights = jnp.exp(logits - highest)
        total = jnp.sum(weights, axis=-1, keepdims=True)
        mixed = _mixed(request, numbers, weights, request.kv.value).astype(jnp.float32)
        output = (mixed / jnp.swapaxes(total, 1, 2)).astype(request.query.dtype)
        # Not as one sum: where all keys are masked it would lose the smaller of the two.
        return None, (output, highest, jnp.log(total))

    numbers = jnp.arange(request.query.shape[0], dtype=jnp.int32)
    _, kept = _each_part(part, None, (request, numbers), num_parts=num_parts)
    return kept[0], (request, numbers, *kept)


def _backward(num_parts: int, kept: Any, gradient: jax.Array) -> tuple[Request]:
    request = kept[0]
    shared = request.bias is not None and request.bias.shape[0] != request.query.shape[0]

    def part(total: jax.Array | None, arrays: Any) -> Any:
        request, numbers, output, highest, log_total, gradient = arrays
        query, kv, bias = request.query, request.kv, request.bias

        def logits_of(query: jax.Array, key: jax.Array, bias: jax.Array | None) -> jax.Array:
            kv = KeyValues(key, request.kv.value)
            return _logits(dataclasses.replace(request, query=query, kv=kv, bias=bias))

        logits, of_logits = jax.vjp(logits_of, query, kv.key, bias)
        weights = jnp.exp(logits - highest - log_total)
        _, of_mixed = jax.vjp(functools.partial(_mixed, request, numbers), weights, kv.value)
        d_weights, d_value = of_mixed(gradient)
        products = gradient.astype(jnp.float32) * output.astype(jnp.float32)
        mean = jnp.swapaxes(jnp.sum(products, axis=-1, keepdims=True), 1, 2)
        d_query, d_key, d_bias = of_logits(weights * (d_weights - mean))
        if shared:
            total, d_bias = total + d_bias, None
        return total, (d_query, d_key, d_value, d_bias)

    zeros = jnp.zeros_like(request.bias) if shared else None
    total, (d_query, d_key, d_value, d_bias) = _each_part(
        part, zeros, (*kept, gradient), num_parts=num_parts
    )
    d_bias = total if shared else d_bias
    d_kv = KeyValues(d_key, d_value)
    nothing: Any = {"mask": None, "dropout": None}
    return (dataclasses.replace(request, query=d_query, kv=d_kv, bias=d_bias, **nothing),)


_attention.defvjp(_forward, _backward)


def _logits(request: Request) -> jax.Array:
    """Returns `[rows, heads, q_length, kv_length]`; the bias may be of several rows each."""
    bias, rows = request.bias, request.query.shape[0]
    if bias is not None and bias.shape[0] not in (1, rows):
        bias = jnp.repeat(bias, rows // bias.shape[0], axis=0)
        request = dataclasses.replace(request, bias=bias)
    return dot.logits_of(request)


def _mixed(request: Request, numbers: jax.Array, weights: jax.Array, value: jax.Array) -> jax.Array:
    dropout = request.dropout
    if dropout is not None:
        # Draws of each row's own: however many rows are in a part, they are the same.
        weights = jax.vmap(lambda row, number: dropout.fold_in(number)(row))(weights, numbers)
    return dot.mixed(weights.astype(request.query.dtype), value)


def _each_part(
    fn: Callable[[Any, Any], tuple[Any, Any]], carry: Any, tree: Any, *, num_parts: int
) -> tuple[Any, Any]:
    """Runs `fn` on some rows after the others.

    Args:
      fn: `(carry, part of tree) -> (carry, arrays of the part's rows)`.
      carry: at first.
      tree: a `Request` and arrays of all rows. What has an axis for rows is split so that every
        device keeps its own; what has not is given to all parts.
      num_parts: how many.

    Returns:
      The last carry, and the arrays of all rows.
    """
    leaves, structure = jax.tree.flatten(tree)
    batch = jax.tree.leaves(tree)[0].shape[0]
    split = [leaf.shape[:1] == (batch,) for leaf in leaves]
    if num_parts == 1:
        return fn(carry, tree)

    def turn(carry: Any, part: Any) -> tuple[Any, Any]:
        rows = iter(part)
        own = [next(rows) if mine else leaf for leaf, mine in zip(leaves, split, strict=True)]
        return fn(carry, jax.tree.unflatten(structure, own))

    rows = [
        jnp.moveaxis(leaf.reshape(batch // num_parts, num_parts, *leaf.shape[1:]), 1, 0)
        for leaf, mine in zip(leaves, split, strict=True)
        if mine
    ]
    carry, parts = lax.scan(turn, carry, rows)
    return carry, jax.tree.map(
        lambda leaf: jnp.moveaxis(leaf, 0, 1).reshape(batch, *leaf.shape[2:]), parts
    )

"""Attention over a few batch rows at a time, so that logits stay in a CPU's cache or a TPU's VMEM.

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
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from t5lite.layers.cache import KeyValues
from t5lite.layers.kernels import dot
from t5lite.layers.kernels.request import ATTENDED, Request, mesh_axes, platform

# Of the float32 logits that a device works on at once, forwards and backwards. On a TPU the forward
# pass is two products, between which nothing is read twice; in the backward pass, what stays in
# the vector memory is worth more than larger products. (By the compiler's estimates.)
MAX_BYTES = {"cpu": (2**22, 2**22), "gpu": (2**22, 2**22), "tpu": (2**29, 2**22)}


def attention(
    request: Request, *, max_bytes: tuple[int, int] | None = None
) -> Float[Array, "batch q_length heads head_dim"]:
    """Returns what `dot.attention` does, with the logits of a few rows in memory.

    Args:
      max_bytes: of a device's float32 logits in memory, forwards and backwards, at least those of
        one row; None for the platform's of `MAX_BYTES`.
    Source: Dao et al. 2022, arXiv:2205.14135, appendix B.4 (the backward pass).
    """
    batch, q_length, heads, _ = request.query.shape
    max_bytes = MAX_BYTES[platform()] if max_bytes is None else max_bytes
    sizes = dict(jax.sharding.get_abstract_mesh().shape)
    num_shards, head_shards = (
        int(np.prod([sizes[axis] for axis in axes or ()], dtype=int))
        for axes in mesh_axes(("batch", "heads"))
    )
    if batch % num_shards:
        num_shards = 1
    rows = batch // num_shards  # of a device
    row_bytes = 4 * -(-heads // head_shards) * q_length * request.kv.key.shape[1]
    sizes_in_memory = (min(max(limit // row_bytes, 1), rows) for limit in max_bytes)
    forward, backward = (
        rows // max(n for n in range(1, size + 1) if rows % n == 0) for size in sizes_in_memory
    )
    bias = request.bias
    if bias is not None and bias.shape[0] == 1 and num_shards > 1:
        # One copy for each device, [shards, heads, q_length, kv_length]: its gradient is summed
        # over the device's own rows in the loop, and over devices once after it.
        bias = jnp.broadcast_to(bias, (num_shards, *bias.shape[1:]))
        bias = nn.with_logical_constraint(bias, ("batch", "heads", None, None))
        request = dataclasses.replace(request, bias=bias)
    return _attention(request, forward, backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _attention(request: Request, num_parts: int, backward_parts: int) -> jax.Array:
    return _forward(request, num_parts, backward_parts)[0]


def _forward(
    request: Request, num_parts: int, backward_parts: int
) -> tuple[jax.Array, tuple[Any, ...]]:
    def part(_: None, arrays: Any) -> tuple[None, tuple[jax.Array, ...]]:
        request, numbers = arrays
        logits = _logits(request)
        highest = jnp.max(logits, axis=-1, keepdims=True)
        weights = jnp.exp(logits - highest)
        mixed, total = _mixed_and_total(request, numbers, weights)
        output = (mixed / jnp.swapaxes(total, 1, 2)).astype(request.query.dtype)
        # Maximum and log total apart, [rows, heads, q_length] each: their sum would lose the
        # smaller one where all keys are masked (-1e9). A last axis of size 1 would be padded to
        # 128 lanes on TPUs.
        return None, (output, highest[..., 0], jnp.log(total)[..., 0])

    numbers = jnp.arange(request.query.shape[0], dtype=jnp.int32)
    _, saved = _scan_parts(part, None, (request, numbers), num_parts=num_parts)
    saved = tuple(checkpoint_name(array, ATTENDED) for array in saved)
    return saved[0], (request, numbers, *saved)


def _backward(_: int, num_parts: int, residuals: Any, gradient: jax.Array) -> tuple[Request]:
    request = residuals[0]
    shared = request.bias is not None and request.bias.shape[0] != request.query.shape[0]

    def part(total: jax.Array | None, arrays: Any) -> Any:
        request, numbers, output, highest, log_total, gradient = arrays
        query, kv, bias = request.query, request.kv, request.bias

        def logits_of(query: jax.Array, key: jax.Array, bias: jax.Array | None) -> jax.Array:
            kv = KeyValues(key, request.kv.value)
            return _logits(dataclasses.replace(request, query=query, kv=kv, bias=bias))

        logits, of_logits = jax.vjp(logits_of, query, kv.key, bias)
        weights = jnp.exp(logits - highest[..., None] - log_total[..., None])
        _, of_mixed = jax.vjp(functools.partial(_mixed, request, numbers), weights, kv.value)
        d_weights, d_value = of_mixed(gradient)
        products = gradient.astype(jnp.float32) * output.astype(jnp.float32)
        mean = jnp.swapaxes(jnp.sum(products, axis=-1, keepdims=True), 1, 2)
        d_query, d_key, d_bias = of_logits(weights * (d_weights - mean))
        if shared:
            total, d_bias = total + d_bias, None
        return total, (d_query, d_key, d_value, d_bias)

    zeros = jnp.zeros_like(request.bias) if shared else None
    total, (d_query, d_key, d_value, d_bias) = _scan_parts(
        part, zeros, (*residuals, gradient), num_parts=num_parts
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
        # A key for each row, so that draws do not depend on how many rows a part has.
        weights = jax.vmap(lambda row, number: dropout.fold_in(number)(row))(weights, numbers)
    return dot.mixed(weights.astype(request.query.dtype), value)


def _mixed_and_total(
    request: Request, numbers: jax.Array, weights: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Returns the weighted values, and the sums of weights `[rows, heads, q_length, 1]`."""
    value = request.kv.value
    if value.dtype == jnp.float32 or request.dropout is not None or value.shape[-1] % 128 == 0:
        total = jnp.sum(weights, axis=-1, keepdims=True)
        return _mixed(request, numbers, weights, value).astype(jnp.float32), total
    # A column of ones beside the values, [..., kv + 1]: the matrix unit, 128 wide, returns the sums
    # with the product.
    ones = jnp.ones((*value.shape[:-1], 1), value.dtype)
    wider = jnp.concatenate([value, ones], axis=-1)
    mixed = dot.mixed(weights.astype(value.dtype), wider, dtype=jnp.float32)
    return mixed[..., :-1], jnp.swapaxes(mixed[..., -1:], 1, 2)


def _scan_parts(
    fn: Callable[[Any, Any], tuple[Any, Any]], carry: Any, tree: Any, *, num_parts: int
) -> tuple[Any, Any]:
    """Scans `fn` over parts of the rows; returns the last carry, and the arrays of all rows.

    Args:
      fn: `(carry, part of tree) -> (carry, arrays of the part's rows)`.
      tree: a `Request` and arrays of all rows. Leaves with a row axis are split so that every
        device keeps its own rows; the others are passed to all parts.
    """
    leaves, structure = jax.tree.flatten(tree)
    batch = jax.tree.leaves(tree)[0].shape[0]
    split = [leaf.shape[:1] == (batch,) for leaf in leaves]
    if num_parts == 1:
        return fn(carry, tree)

    def step(carry: Any, part: Any) -> tuple[Any, Any]:
        rows = iter(part)
        own = [
            next(rows) if is_split else leaf for leaf, is_split in zip(leaves, split, strict=True)
        ]
        return fn(carry, jax.tree.unflatten(structure, own))

    rows = [
        _own_rows(jnp.moveaxis(leaf.reshape(batch // num_parts, num_parts, *leaf.shape[1:]), 1, 0))
        for leaf, is_split in zip(leaves, split, strict=True)
        if is_split
    ]
    carry, parts = lax.scan(step, carry, rows)
    return carry, jax.tree.map(
        lambda leaf: jnp.moveaxis(leaf, 0, 1).reshape(batch, *leaf.shape[2:]), parts
    )


def _own_rows(parts: jax.Array) -> jax.Array:
    """Constrains `[num_parts, rows, ...]` so that every device keeps its own rows."""
    return nn.with_logical_constraint(parts, (None, "batch", *(None,) * (parts.ndim - 2)))

"""Splash attention, JAX's Pallas kernel for TPUs: no logits in memory, masked blocks skipped."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from t5lite.layers.kernels.request import ATTENDED, Request, mesh_axes, platform

LANES = 128  # lengths and heads are multiples of it, or fill it


def refusal(request: Request) -> str | None:
    """Returns why splash attention cannot compute a request here; None if it can."""
    q_length, head_dim = request.query.shape[1], request.query.shape[-1]
    if platform() != "tpu":
        return f"splash attention runs on TPUs, and this is {platform()}"
    if request.bias is not None:
        return "splash attention adds no position bias"
    if request.dropout is not None:
        return "attention has dropout"
    if request.mask is None or not request.mask.self_attention or request.mask.q_prefix is not None:
        return "splash attention is for whole rows over themselves, without prefixes or a cache"
    if q_length % LANES:
        return f"rows are {q_length} long: a multiple of {LANES} is needed"
    if head_dim % LANES and LANES % head_dim:
        return f"heads are {head_dim} wide: a divisor or multiple of {LANES} is needed"
    if mesh_axes(("length",))[0] is not None:
        return "the layout shards the length"
    return None


def attention(
    request: Request, *, interpret: bool = False
) -> Float[Array, "batch q_length heads head_dim"]:
    """Returns `[batch, q_length, heads, kv]`, arbitrary at padding; `interpret` is for tests."""
    mask = request.mask
    assert mask is not None
    kernel = functools.partial(
        _one_row,
        causal=mask.causal,
        window=mask.window,
        softcap=request.softcap,
        interpret=interpret,
    )

    rows: Callable[..., jax.Array] = jax.vmap(kernel)
    query = request.query
    query = (query.astype(jnp.float32) * jnp.float32(request.scale)).astype(query.dtype)
    arrays = [jnp.swapaxes(x, 1, 2) for x in (query, request.kv.key, request.kv.value)]
    segments = mask.q_segments
    assert segments is not None
    segments = jnp.broadcast_to(segments, (query.shape[0], query.shape[1]))
    if jax.sharding.get_abstract_mesh().size > 1:
        # The partitioner cannot see into a kernel: each device runs its own rows and heads.
        def spec(array: jax.Array) -> PartitionSpec:
            heads = "shared_head" if array.shape[1] == 1 < query.shape[2] else "heads"
            return PartitionSpec(*mesh_axes(("batch", heads, "length", "kv")))

        rows = jax.shard_map(
            rows,
            in_specs=(*map(spec, arrays), PartitionSpec(*mesh_axes(("batch", "length")))),
            out_specs=spec(arrays[0]),
            check_vma=False,
        )
    return jnp.swapaxes(rows(*arrays, segments), 1, 2)


def _one_row(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    segments: jax.Array,
    *,
    causal: bool,
    window: int | None,
    softcap: float | None,
    interpret: bool,
) -> jax.Array:
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    heads, length, _ = query.shape
    shape = (length, length)
    rule: Any = splash.CausalMask(shape) if causal else splash.FullMask(shape)
    if window is not None:
        rule = splash.LocalMask(shape, (window, 0 if causal else window), 0)
    block = next(size for size in (512, 256, LANES) if length % size == 0)
    sides = ("block_q", "block_kv", "block_q_dkv", "block_kv_dkv", "block_q_dq", "block_kv_dq")
    sizes: dict[str, Any] = dict.fromkeys(sides, block)
    kernel = splash.make_splash_mha(
        splash.MultiHeadMask([rule] * heads),
        head_shards=1,
        q_seq_shards=1,
        block_sizes=splash.BlockSizes(**sizes),
        attn_logits_soft_cap=softcap,
        residual_checkpoint_name=ATTENDED,  # of the output and of its softmax's statistics
        interpret=interpret,
    )
    return kernel(query, key, value, segment_ids=splash.SegmentIds(segments, segments))

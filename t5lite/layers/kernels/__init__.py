"""Attention kernels: implementations of one function, and the choice among them."""

from collections.abc import Callable
from typing import Any

import jax
from jaxtyping import Array, Float

from t5lite.errors import InputError, unknown
from t5lite.layers.kernels import chunked, cudnn, dot, rows, splash
from t5lite.layers.kernels.request import ATTENDED, Request, platform

KERNELS: dict[str, Callable[[Request], jax.Array]] = {
    "dot": dot.attention,
    "rows": rows.attention,
    "chunked": chunked.attention,
    "splash": splash.attention,
    "cudnn": cudnn.attention,
}
# Why a kernel does not apply to a request; None where it does.
_REFUSALS = {"splash": splash.refusal, "cudnn": cudnn.refusal}
# From this many logits per head on, "auto" does not hold those of a whole row.
_MANY_LOGITS = 2048 * 2048

_named_attended = jax.checkpoint_policies.save_only_these_names(ATTENDED)


def attended_saveable(primitive: Any, *shapes: Any, **params: Any) -> Any:
    """A rematerialisation policy: saves attention's output and the statistics of its softmax, so
    that the backward pass recomputes logits and their exponentials alone."""
    named = _named_attended(primitive, *shapes, **params)
    return named or primitive.name == cudnn.FORWARD


def attention(
    request: Request, *, kernel: str = "auto"
) -> Float[Array, "batch q_length heads head_dim"]:
    """Computes softmax attention; returns `[batch, q_length, heads, kv]` of the query's dtype.

    Args:
      kernel: one of `KERNELS`, or "auto": splash on TPUs and cuDNN on GPUs where they apply,
        chunked from 2,048 × 2,048 logits a head on, rows where logits do not fit a cache, dot
        otherwise. "splash" is for whole rows over themselves: what a cache or an encoder holds is
        read as "auto" says.
    Raises: InputError if the requested kernel does not apply, with the reason.
    """
    if kernel not in (*KERNELS, "auto"):
        raise unknown("ComputeSpec.attention", kernel, (*KERNELS, "auto"))
    self_attention = request.mask is not None and request.mask.self_attention
    if kernel == "auto" or (kernel == "splash" and not self_attention):
        kernel = _choice(request)
    reason = _REFUSALS[kernel](request) if kernel in _REFUSALS else None
    if reason is not None:
        raise InputError(
            f"ComputeSpec.attention = {kernel!r}: {reason}; use 'auto'",
            field="ComputeSpec.attention",
        )
    return KERNELS[kernel](request)


def _choice(request: Request) -> str:
    fast = {"tpu": "splash", "gpu": "cudnn"}.get(platform())
    if fast is not None and _REFUSALS[fast](request) is None:
        return fast
    logits_per_head = request.query.shape[1] * request.kv.key.shape[1]
    if logits_per_head >= _MANY_LOGITS:
        return "chunked"
    batch, _, heads, _ = request.query.shape
    return "rows" if 4 * batch * heads * logits_per_head > rows.MAX_BYTES["cpu"][0] else "dot"

"""cuDNN's fused attention, for NVIDIA GPUs."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from t5lite.layers.kernels.request import Request, mesh_axes, platform

# JAX's primitive of attention's output and softmax statistics. They are computed inside a
# derivative of JAX's own, where a policy sees nothing but the primitive.
FORWARD = "dot_product_attention_fwd_wrapper"


def refusal(request: Request) -> str | None:
    """Returns why cuDNN cannot compute a request here; None if it can."""
    dtype, (_, q_length, _, head_dim) = request.query.dtype, request.query.shape
    kv_length, capability = request.kv.key.shape[1], _compute_capability()
    odd = bool(q_length % 2 or kv_length % 2)
    refusals = {
        f"cuDNN runs on NVIDIA GPUs, and this is {platform()}": platform() != "gpu",
        f"cuDNN computes in bfloat16 or float16, not {dtype}": dtype
        not in (jnp.bfloat16, jnp.float16),
        "cuDNN computes no gradient of a position bias": request.bias is not None,
        "attention has dropout": request.dropout is not None,
        "cuDNN caps no logits": request.softcap is not None,
        f"heads are {head_dim} wide: a multiple of 8 up to 128 is needed": head_dim % 8 != 0
        or head_dim > 128,
        f"{q_length} queries and {kv_length} keys: both must be even under a mask": odd
        and request.mask is not None,
        "the layout shards the length": mesh_axes(("length",))[0] is not None,
        f"the GPU has compute capability {capability}: 8.0 is needed": capability < 8.0,
    }
    return next((reason for reason, applies in refusals.items() if applies), None)


def _compute_capability() -> float:
    return float(getattr(jax.devices()[0], "compute_capability", 0.0))


def attention(request: Request) -> Float[Array, "batch q_length heads head_dim"]:
    seen = None if request.mask is None else request.mask.array()
    # cuDNN takes no mask that is broadcast over queries.
    batch, q_length = request.query.shape[:2]
    shape = (batch, 1, q_length, request.kv.key.shape[1])
    return jax.nn.dot_product_attention(
        request.query,
        request.kv.key,
        request.kv.value,
        mask=None if seen is None else jnp.broadcast_to(seen, shape),
        scale=request.scale,
        implementation="cudnn",
    )

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
    if platform() != "gpu":
        return f"cuDNN runs on NVIDIA GPUs, and this is {platform()}"
    if request.query.dtype not in (jnp.bfloat16, jnp.float16):
        return f"cuDNN computes in bfloat16 or float16, not {request.query.dtype}"
    if request.bias is not None:
        return "the gradient of a position bias is not cuDNN's"
    if request.dropout is not None:
        return "attention has dropout"
    if request.softcap is not None:
        return "cuDNN caps no logits"
    if request.query.shape[-1] % 8 or request.query.shape[-1] > 128:
        return f"heads are {request.query.shape[-1]} wide: a multiple of 8 up to 128 is needed"
    lengths = request.query.shape[1], request.kv.key.shape[1]
    if request.mask is not None and any(length % 2 for length in lengths):
        return f"{lengths[0]} queries and {lengths[1]} keys: both must be even under a mask"
    if mesh_axes(("length",))[0] is not None:
        return "the layout shards the length"
    if _compute_capability() < 8.0:
        return f"the GPU has compute capability {_compute_capability()}: 8.0 is needed"
    return None


def _compute_capability() -> float:
    return float(getattr(jax.devices()[0], "compute_capability", 0.0))


def attention(request: Request) -> Float[Array, "batch q_length heads head_dim"]:
    """Returns `[batch, q_length, heads, kv]`."""
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

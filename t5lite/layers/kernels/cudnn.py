"""cuDNN's fused attention, for NVIDIA GPUs."""

import jax
import jax.numpy as jnp

from t5lite.layers.kernels.request import Request


def refusal(request: Request) -> str | None:
    """Returns why cuDNN cannot compute a request here; None if it can."""
    if jax.default_backend() != "gpu":
        return f"cuDNN runs on NVIDIA GPUs, and this is {jax.default_backend()}"
    if request.query.dtype not in (jnp.bfloat16, jnp.float16):
        return f"cuDNN computes in bfloat16 or float16, not {request.query.dtype}"
    if request.bias is not None:
        return "the gradient of a position bias is not cuDNN's"
    if request.dropout is not None:
        return "attention has dropout"
    if request.query.shape[-1] % 8 or request.query.shape[-1] > 128:
        return f"heads are {request.query.shape[-1]} wide: a multiple of 8 up to 128 is needed"
    return None


def attention(request: Request) -> jax.Array:
    """Returns `[batch, q_length, heads, kv]`."""
    return jax.nn.dot_product_attention(
        request.query,
        request.kv.key,
        request.kv.value,
        mask=None if request.mask is None else request.mask.array(),
        scale=request.scale,
        implementation="cudnn",
    )

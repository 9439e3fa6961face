"""The arguments of attention kernels, and the mesh axes that they are sharded over."""

import dataclasses

import flax.linen as nn
import jax

from t5lite.layers.cache import KeyValues
from t5lite.layers.dropout import Dropout
from t5lite.layers.masks import AttentionMask

# The checkpoint name of attention's output and of the softmax statistics that its backward pass
# needs; each kernel names its own.
ATTENDED = "attended"


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Request:
    """The arguments of `softmax(scale · query · key + bias, where mask) · value`.

    Args:
      query: `[batch, q_length, heads, kv]`.
      kv: keys and values `[batch, kv_length, kv_heads, kv]`; `heads` is a multiple of `kv_heads`.
      bias: added to the scaled logits, float32, broadcastable to
        `[batch, heads, q_length, kv_length]`; None for none.
      mask: which keys each query sees; None for all.
      dropout: of the probabilities; None for none.
      softcap: after scaling, logits x become `softcap * tanh(x / softcap)`, before the bias; None
        for none. Source: Gemma Team 2024, arXiv:2408.00118, §2.
    """

    query: jax.Array
    kv: KeyValues
    bias: jax.Array | None = None
    mask: AttentionMask | None = None
    dropout: Dropout | None = None
    scale: float = dataclasses.field(default=1.0, metadata={"static": True})
    softcap: float | None = dataclasses.field(default=None, metadata={"static": True})


def platform() -> str:
    """Returns `cpu`, `gpu` or `tpu`: the platform of the mesh, whose devices may be elsewhere."""
    described = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if described is None else described.platform


def mesh_axes(axes: tuple[str, ...]) -> tuple:
    """Returns the mesh axes of size above 1 that the layout in force gives to logical axes."""
    sizes = dict(jax.sharding.get_abstract_mesh().shape)

    def used(axis: str | tuple[str, ...] | None) -> tuple[str, ...] | None:
        names = (axis,) if isinstance(axis, str) else axis or ()
        return tuple(name for name in names if sizes.get(name, 1) > 1) or None

    named = nn.logical_to_mesh_axes(axes) or (None,) * len(axes)
    return tuple(used(axis) for axis in named)

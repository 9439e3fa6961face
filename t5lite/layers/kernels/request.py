"""What an attention kernel is asked to compute."""

import dataclasses

import jax

from t5lite.layers.cache import KeyValues
from t5lite.layers.dropout import Dropout
from t5lite.layers.masks import AttentionMask


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
      scale: factor on the logits.
    """

    query: jax.Array
    kv: KeyValues
    bias: jax.Array | None = None
    mask: AttentionMask | None = None
    dropout: Dropout | None = None
    scale: float = dataclasses.field(default=1.0, metadata={"static": True})

"""Multi-head attention with grouped keys and values, an additive bias and a mask."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from t5lite.layers.cache import KeyValues
from t5lite.layers.projection import projection
from t5lite.layers.spec import Spec, positive

# Finite, so that a row with every key masked gives uniform weights instead of NaN.
MASKED = -1e9


@dataclasses.dataclass(frozen=True)
class AttentionSpec(Spec):
    """Multi-head attention.

    Args:
      num_heads: query heads.
      head_dim: width of one head; independent of the model's width.
      num_kv_heads: key and value heads, a divisor of `num_heads`; None for `num_heads`.
        Source: Ainslie et al. 2023, arXiv:2305.13245.
      logits_scale: factor on query · key; None for `head_dim**-0.5`. T5 has 1.0 and carries the
        factor in the query's initialiser instead.
    """

    num_heads: int
    head_dim: int = positive()
    num_kv_heads: int | None = None
    logits_scale: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(self.num_heads % self.kv_heads == 0, "num_kv_heads", "a divisor of num_heads")

    @property
    def kv_heads(self) -> int:
        return self.num_kv_heads or self.num_heads

    @property
    def scale(self) -> float:
        return self.head_dim**-0.5 if self.logits_scale is None else self.logits_scale

    def make(self, embed: int, *, dtype: jnp.dtype, dropout_rate: float) -> "Attention":
        """Returns the module for inputs of width `embed`."""
        return Attention(self, embed, dtype, dropout_rate)


class Attention(nn.Module):
    """Queries from one sequence over keys and values projected from the same or another.

    Keys and values come in two steps, `key_values` and then the call, so that a cache is between
    them and attention never hears of it.
    """

    spec: AttentionSpec
    embed: int
    dtype: jnp.dtype
    dropout_rate: float

    def setup(self) -> None:
        spec = self.spec
        heads, kv_heads = (spec.num_heads, spec.head_dim), (spec.kv_heads, spec.head_dim)
        axes = ("embed", "heads", "kv")
        # Logits of unit variance at initialisation, whatever the scale.
        query_scale = spec.head_dim**-0.5 / spec.scale
        project = functools.partial(projection, dtype=self.dtype, distribution="normal")
        self.query = project(axes, heads, init_scale=query_scale)
        self.key = project(axes, kv_heads)
        self.value = project(axes, kv_heads)
        self.output = project(("heads", "kv", "embed"), (self.embed,), num_contracted=2)
        self.dropout = nn.Dropout(self.dropout_rate)

    def key_values(self, x: jax.Array) -> KeyValues:
        """Projects `x` `[batch, kv_length, embed]` to keys and values."""
        names = ("batch", "length", "heads", "kv")
        return KeyValues(
            nn.with_logical_constraint(self.key(x), names),
            nn.with_logical_constraint(self.value(x), names),
        )

    def __call__(
        self, x: jax.Array, kv: KeyValues, *, bias: jax.Array | None, mask: jax.Array | None
    ) -> jax.Array:
        """Attends from `x` `[batch, q_length, embed]`; see `dot_product_attention`."""
        query = nn.with_logical_constraint(self.query(x), ("batch", "length", "heads", "kv"))
        y = dot_product_attention(
            query,
            kv,
            bias=bias,
            mask=mask,
            scale=self.spec.scale,
            dropout=lambda p: self.dropout(p, deterministic=not self.has_rng("dropout")),
        )
        return self.output(y)


def dot_product_attention(
    query: jax.Array,
    kv: KeyValues,
    *,
    bias: jax.Array | None = None,
    mask: jax.Array | None = None,
    scale: float = 1.0,
    dropout=lambda probabilities: probabilities,
) -> jax.Array:
    """Softmax attention; logits and softmax in float32.

    Args:
      query: `[batch, q_length, heads, kv]`.
      kv: keys and values `[batch, kv_length, kv_heads, kv]`; `heads` is a multiple of `kv_heads`.
      bias: added to the scaled logits, float32, broadcastable to
        `[batch, heads, q_length, kv_length]`.
      mask: bool, True where a key is seen, broadcastable to the same shape.
      scale: factor on the logits.
      dropout: applied to the probabilities.

    Returns:
      `[batch, q_length, heads, kv]` of the query's dtype.

    Source: Vaswani et al. 2017, arXiv:1706.03762, §3.2.1.
    """
    batch, q_length, heads, width = query.shape
    groups = kv.key.shape[2]
    query = query.reshape(batch, q_length, groups, heads // groups, width)
    logits = jnp.einsum("bqghd,bkgd->bghqk", query, kv.key, preferred_element_type=jnp.float32)
    logits = logits.reshape(batch, heads, q_length, -1)
    if scale != 1.0:
        logits = logits * jnp.float32(scale)
    if bias is not None:
        logits = logits + jnp.broadcast_to(bias, logits.shape)
    if mask is not None:
        logits = jnp.where(mask, logits, jnp.float32(MASKED))
    weights = dropout(jax.nn.softmax(logits, axis=-1)).astype(query.dtype)
    weights = weights.reshape(batch, groups, heads // groups, q_length, -1)
    return jnp.einsum("bghqk,bkgd->bqghd", weights, kv.value).reshape(batch, q_length, heads, width)

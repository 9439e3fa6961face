"""One transformer layer: its spec and its module."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from t5lite.layers import (
    AttentionSpec,
    KeyValues,
    MlpSpec,
    NormSpec,
    RelativeBiasSpec,
    RMSNormSpec,
    Spec,
)


@dataclasses.dataclass(frozen=True)
class BlockSpec(Spec):
    """One pre-norm transformer layer: attention, cross-attention where given, and an MLP.

    A block of your own is a frozen dataclass that extends this one and overrides `make`.

    Args:
      attention: over the stack's own sequence.
      mlp: the feed-forward layer.
      norm: before each sublayer.
      cross_attention: over the encoder's output; None in an encoder.
    """

    attention: AttentionSpec
    mlp: MlpSpec
    norm: NormSpec = RMSNormSpec()
    cross_attention: AttentionSpec | None = None

    def make(
        self,
        embed: int,
        *,
        dtype: jnp.dtype,
        dropout_rate: float,
        causal: bool,
        relative_bias: RelativeBiasSpec | None,
    ) -> "Block":
        """Returns the module; `relative_bias` is the layer's own, None where the stack has it."""
        return Block(self, embed, dtype, dropout_rate, causal, relative_bias)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Context:
    """What all layers of a stack share in one call; None where it does not apply.

    Args:
      mask: `[batch or 1, 1, length or 1, kv_length]` bool, of the self-attention.
      bias: `[batch or 1, heads, length, kv_length]` float32, where one table serves all layers.
      encoded: `[batch, encoder_length, embed]`, the encoder's output.
      cross_mask: `[batch, 1, length or 1, encoder_length]` bool.
      positions: `[batch, length]` int32, where `x` stands in the cache; None without a cache.
    """

    mask: jax.Array
    bias: jax.Array | None = None
    encoded: jax.Array | None = None
    cross_mask: jax.Array | None = None
    positions: jax.Array | None = None

    def replace(self, **changes: jax.Array) -> "Context":
        return dataclasses.replace(self, **changes)


class Block(nn.Module):
    """Pre-norm layer: `x + sublayer(norm(x))` for attention, cross-attention and MLP."""

    spec: BlockSpec
    embed: int
    dtype: jnp.dtype
    dropout_rate: float
    causal: bool
    relative_bias_spec: RelativeBiasSpec | None

    def setup(self) -> None:
        spec = self.spec
        sizes: Any = {"dtype": self.dtype, "dropout_rate": self.dropout_rate}
        if self.relative_bias_spec is not None:
            self.relative_bias = self.relative_bias_spec.make(
                spec.attention.num_heads, bidirectional=not self.causal
            )
        self.attention_norm = spec.norm.make(self.dtype)
        self.attention = spec.attention.make(self.embed, **sizes)
        if spec.cross_attention is not None:
            self.cross_attention_norm = spec.norm.make(self.dtype)
            self.cross_attention = spec.cross_attention.make(self.embed, **sizes)
        self.mlp_norm = spec.norm.make(self.dtype)
        self.mlp = spec.mlp.make(self.embed, **sizes)
        self.dropout = nn.Dropout(self.dropout_rate)

    def cross_key_values(self, encoded: jax.Array) -> KeyValues:
        """Projects the encoder's output once, for all later steps of decoding."""
        return self.cross_attention.key_values(encoded)

    def __call__(
        self,
        x: jax.Array,
        context: Context,
        cached: KeyValues | None = None,
        cross: KeyValues | None = None,
    ) -> tuple[jax.Array, KeyValues | None]:
        """Runs the layer.

        Args:
          x: `[batch, length, embed]`.
          context: what all layers of the stack share.
          cached: keys and values of the tokens before `x`; None without a cache.
          cross: the encoder's keys and values; None to project `context.encoded`.

        Returns:
          `[batch, length, embed]`, and `cached` with those of `x` appended.
        """
        normed = self.attention_norm(x)
        kv = self.attention.key_values(normed)
        if cached is not None:
            assert context.positions is not None, "a cache needs positions"
            kv = cached = cached.append(kv, context.positions[:, 0])
        bias = context.bias
        if self.relative_bias_spec is not None:
            bias = self.relative_bias(context.positions, x.shape[1], kv.key.shape[1])
        x = self._add(x, self.attention(normed, kv, bias=bias, mask=context.mask))
        if self.spec.cross_attention is not None:
            if cross is None:
                assert context.encoded is not None, "cross-attention needs `encoded` or `cross`"
                cross = self.cross_key_values(context.encoded)
            normed = self.cross_attention_norm(x)
            x = self._add(
                x, self.cross_attention(normed, cross, bias=None, mask=context.cross_mask)
            )
        return self._add(x, self.mlp(self.mlp_norm(x))), cached

    def _add(self, x: jax.Array, update: jax.Array) -> jax.Array:
        x = x + self.dropout(update, deterministic=not self.has_rng("dropout"))
        return nn.with_logical_constraint(x, ("batch", "length", "embed"))

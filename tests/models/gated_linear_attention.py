"""A block of a user's own, in one file: gated linear attention, whose cache is a state, not slots.

Source: Yang et al. 2023, arXiv:2312.06635, §3 and §4.1, in its recurrent form.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from t5lite.errors import InputError
from t5lite.layers import MlpSpec, NormSpec, Projection, RMSNormSpec, Weights
from t5lite.models import BlockSpec

TEMPERATURE = 16.0  # of the gates, §4.4


@dataclasses.dataclass(frozen=True)
class GatedLinearAttentionSpec(BlockSpec):
    """A matrix per head, decayed and added to by each token, and read by its query.

    Args:
      mlp: the feed-forward layer after it.
      num_heads: matrices.
      head_dim: width of keys and values of a head.
      norm: before each sublayer.
    """

    mlp: MlpSpec
    num_heads: int
    head_dim: int
    norm: NormSpec = RMSNormSpec()

    def make(
        self,
        embed,
        *,
        dtype,
        dropout_rate,
        causal,
        position_bias,
        kernel,
        weights=Weights(),
    ):
        """See `BlockSpec.make`."""
        if not causal or position_bias is not None:
            raise InputError("GatedLinearAttentionSpec is causal and takes no position bias")
        return GatedLinearAttention(self, embed, dtype, dropout_rate, weights)

    def empty_cache(self, batch, size, dtype, *, draft_length):
        """Returns the state, `[batch, heads, key, value]` float32, of whatever length."""
        return jnp.zeros((batch, self.num_heads, self.head_dim, self.head_dim), jnp.float32)

    def flops(self, embed, length, *, encoder_length=0, encoder_embed=None):
        """Five projections, and two products with the state for each token."""
        size = self.num_heads * self.head_dim
        mixing = 2 * 2 * length * size * self.head_dim
        return 5 * 2 * length * embed * size + mixing + self.mlp.flops(embed, length)

    @property
    def rewindable(self):
        """Not: what a token added to the state cannot be told from the rest."""
        return False

    @property
    def num_updates(self):
        """The mixing layer's and the MLP's."""
        return 2


class GatedLinearAttention(nn.Module):
    """See `models.block.Block` for the arguments and results."""

    spec: GatedLinearAttentionSpec
    embed: int
    dtype: jnp.dtype
    dropout_rate: float
    weights: Weights

    @nn.compact
    def __call__(self, x, context, cached=None, cross=None, drop_rate=None):
        spec = self.spec
        normed = spec.norm.make(self.dtype)(x)

        def into(name):
            heads = (spec.num_heads, spec.head_dim)
            projected = Projection(
                ("embed", "heads", "kv"), heads, self.weights, self.dtype, name=name
            )
            return projected(normed).astype(jnp.float32)

        query, key, value = (into(name) for name in ("query", "key", "value"))
        gate = jax.nn.sigmoid(into("gate")) ** jnp.float32(1 / TEMPERATURE)
        begins, mask = self._boundaries(x, context)
        gate = jnp.where(begins[:, :, None, None], jnp.float32(0), gate)
        gate = jnp.where(mask[:, :, None, None], gate, jnp.float32(1))
        key = jnp.where(mask[:, :, None, None], key, jnp.float32(0))
        state = cached
        if state is None:
            state = spec.empty_cache(len(x), x.shape[1], self.dtype, draft_length=0)

        def step(state, token):
            query, key, value, gate = token
            state = gate[..., None] * state + key[..., None] * value[..., None, :]
            return state, jnp.einsum("bhk,bhkv->bhv", query, state)

        by_time = [jnp.moveaxis(item, 1, 0) for item in (query, key, value, gate)]
        state, mixed = jax.lax.scan(step, state, tuple(by_time))
        mixed = jnp.moveaxis(mixed, 0, 1).astype(self.dtype)
        x = x + Projection(
            ("heads", "kv", "embed"),
            (self.embed,),
            num_contracted=2,
            dtype=self.dtype,
            weights=self.weights,
            role="attention_output",
            name="output",
        )(mixed)
        mlp = spec.mlp.make(
            self.embed, dtype=self.dtype, dropout_rate=self.dropout_rate, weights=self.weights
        )
        x = x + mlp(spec.norm.make(self.dtype)(x))
        return x, None if cached is None else state

    def _boundaries(self, x, context):
        """Returns `[batch, length]` bool: the first tokens of texts, and those that count."""
        shape = x.shape[:2]
        if context.mask is None:  # a step of decoding
            return jnp.zeros(shape, bool), jnp.ones(shape, bool)
        if context.mask.q_prefix is not None:
            raise InputError("GatedLinearAttentionSpec cannot see a prefix in both directions")
        segments = jnp.broadcast_to(context.mask.kv_segments, shape)
        before = jnp.pad(segments[:, :-1], ((0, 0), (1, 0)), constant_values=-1)
        mask = segments > 0
        if context.prompt_lengths is not None:
            mask &= jnp.arange(shape[1], dtype=jnp.int32)[None] < context.prompt_lengths[:, None]
        return segments != before, mask

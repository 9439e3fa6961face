"""One layer of a stack: the protocol of its spec, and the transformer layer."""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32

from t5lite.layers import (
    AttentionMask,
    AttentionSpec,
    MlpSpec,
    MoeSpec,
    NormSpec,
    PositionBiasSpec,
    RMSNormSpec,
    Slots,
    Spec,
    Weights,
    drop_residual,
)


@dataclasses.dataclass(frozen=True)
class BlockSpec(Spec):
    """The protocol of a stack's layer; extend it with a frozen dataclass for your own block.

    Its module is called as `Block` is, with the same arguments and results, and may keep any pytree
    from step to step whose leaves have the batch first. Properties not overridden describe a layer
    that reads its own sequence alone and adds to the residual stream once.
    """

    def make(
        self,
        embed: int,
        *,
        dtype: jnp.dtype,
        dropout_rate: float,
        causal: bool,
        position_bias: PositionBiasSpec | None,
        kernel: str,
        weights: Weights = Weights(),
    ) -> nn.Module:
        """Returns the module.

        Args:
          embed: width of the residual stream.
          dtype: of the computation.
          dropout_rate: in [0, 1).
          causal: whether a token sees only those before it.
          position_bias: the layer's own; None where the stack has it, or there is none.
          kernel: of attention, see `layers.attention`.
        """
        raise NotImplementedError

    def empty_cache(self, batch: int, size: int, dtype: jnp.dtype, *, draft_length: int) -> Any:
        """Returns the layer's decoding state before the first token: arrays `[batch, …]` in any
        pytree.

        Args:
          size: most tokens of a row.
          dtype: of the computation.
          draft_length: most tokens that are rewound, and that a step has beyond its first.
        """
        raise NotImplementedError

    def flops(
        self, embed: int, length: int, *, encoder_length: int = 0, encoder_embed: int | None = None
    ) -> int:
        """Returns multiply-adds × 2 of the layer's matrix products over one row, padding included.

        Args:
          encoder_length: tokens of the encoder's output, which cross-attention reads.
          encoder_embed: its width, where it is not `embed`.
        """
        raise NotImplementedError

    @property
    def rewindable(self) -> bool:
        """Whether its cache can forget the last tokens, as speculative decoding needs."""
        return True

    @property
    def windowed(self) -> bool:
        """Whether its cache has slots for a window only, which limits the length of a step."""
        return False

    @property
    def num_biased_heads(self) -> int | None:
        """Heads that a position bias of the stack is added to; None where none is."""
        return None

    @property
    def reads_encoder(self) -> bool:
        """Whether it has cross-attention, and its module `cross_slots(encoded)`."""
        return False

    @property
    def num_updates(self) -> int:
        """Number of additions to the residual stream."""
        return 1

    @property
    def has_experts(self) -> bool:
        """Whether it sows the losses of a mixture of experts."""
        return False


@dataclasses.dataclass(frozen=True)
class TransformerBlockSpec(BlockSpec):
    """One transformer layer: attention, cross-attention where it is set, and an MLP.

    Args:
      attention: over the stack's own sequence.
      mlp: the feed-forward layer, or a mixture of several.
      norm: the normalisation of each sublayer.
      cross_attention: over the encoder's output; None without an encoder.
      norm_placement: "before" the sublayer, `x + sublayer(norm(x))`; "after" the sum,
        `norm(x + sublayer(x))` (Vaswani et al. 2017, BERT); or "around" the sublayer,
        `x + norm(sublayer(norm(x)))` (Gemma 2, arXiv:2408.00118, §2).
      attention_norm: whether there is a norm before self-attention; not in ModernBERT's first
        layer, which reads normed embeddings.
      parallel: whether attention and MLP read the same `x`, and both are added to it. Source: Wang
        and Komatsuzaki 2021, GPT-J; Black et al. 2022, arXiv:2204.06745, §2.1.
    """

    attention: AttentionSpec
    mlp: MlpSpec | MoeSpec
    norm: NormSpec = RMSNormSpec()
    cross_attention: AttentionSpec | None = None
    norm_placement: Literal["before", "after", "around"] = "before"
    attention_norm: bool = True
    parallel: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        cross, before = self.cross_attention, self.norm_placement == "before"
        positioned = cross is not None and (cross.rotary is not None or cross.window is not None)
        expected = "without rotary and window: it has no positions"
        self.require(not positioned, "cross_attention", expected)
        self.require(before or self.attention_norm, "attention_norm", "True unless norms go before")
        valid = not self.parallel or (before and cross is None)
        expected = "False with cross-attention, or unless norms go before"
        self.require(valid, "parallel", expected)

    def make(
        self, embed: int, *, position_bias: PositionBiasSpec | None, **options: Any
    ) -> "Block":
        return Block(self, embed, position_bias_spec=position_bias, **options)

    def empty_cache(self, batch: int, size: int, dtype: jnp.dtype, *, draft_length: int) -> Slots:
        """Returns slots for `size` tokens, or for those that a window sees."""
        attention = self.attention
        if attention.window is not None:
            size = min(size, attention.window + 1 + draft_length)
        zeros = jnp.zeros((batch, attention.kv_heads, size, attention.head_dim), dtype)
        return Slots(zeros, zeros)

    def flops(
        self, embed: int, length: int, *, encoder_length: int = 0, encoder_embed: int | None = None
    ) -> int:
        total = self.attention.flops(embed, length, length) + self.mlp.flops(embed, length)
        if (cross := self.cross_attention) is not None:
            total += cross.flops(embed, length, encoder_length, kv_embed=encoder_embed)
        return total

    @property
    def windowed(self) -> bool:
        return self.attention.window is not None

    @property
    def num_biased_heads(self) -> int:
        return self.attention.num_heads

    @property
    def reads_encoder(self) -> bool:
        return self.cross_attention is not None

    @property
    def num_updates(self) -> int:
        return 2 if self.cross_attention is None else 3

    @property
    def has_experts(self) -> bool:
        return isinstance(self.mlp, MoeSpec)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Context:
    """The inputs that all layers of a stack share in one call; None where not applicable.

    Args:
      mask: which keys a token sees in self-attention; None where the cache says it.
      positions: `[batch or 1, length]` int32, of each token in its text.
      bias: `[batch or 1, heads, length, kv_length]` float32, where one table serves all layers.
      encoded: `[batch, encoder_length, embed]`, the encoder's output.
      cross_mask: which of the encoder's outputs a token sees.
      prompt_lengths: `[batch]` int32, where a cache is filled: the tokens of each row to store.
    """

    mask: AttentionMask | None
    positions: jax.Array
    bias: jax.Array | None = None
    encoded: jax.Array | None = None
    cross_mask: AttentionMask | None = None
    prompt_lengths: jax.Array | None = None

    def replace(self, **changes: Any) -> "Context":
        return dataclasses.replace(self, **changes)


class Block(nn.Module):
    """Attention, cross-attention and MLP, each a sublayer with a norm and a residual."""

    spec: TransformerBlockSpec
    embed: int
    dtype: jnp.dtype
    dropout_rate: float
    causal: bool
    position_bias_spec: PositionBiasSpec | None
    kernel: str
    weights: Weights = Weights()

    def setup(self) -> None:
        spec = self.spec
        options: Any = {
            "dtype": self.dtype,
            "dropout_rate": self.dropout_rate,
            "weights": self.weights,
        }
        if self.position_bias_spec is not None:
            self.position_bias = self.position_bias_spec.make(
                spec.attention.num_heads, bidirectional=not self.causal, weights=self.weights
            )
        if spec.attention_norm:
            self.attention_norm = spec.norm.make(self.dtype)
        self.attention = spec.attention.make(self.embed, kernel=self.kernel, **options)
        if (cross := spec.cross_attention) is not None:
            self.cross_attention_norm = spec.norm.make(self.dtype)
            self.cross_attention = cross.make(self.embed, kernel=self.kernel, **options)
        self.mlp_norm = spec.norm.make(self.dtype)
        if spec.norm_placement == "around":
            self.attention_output_norm = spec.norm.make(self.dtype)
            self.mlp_output_norm = spec.norm.make(self.dtype)
            if cross is not None:
                self.cross_attention_output_norm = spec.norm.make(self.dtype)
        self.mlp = spec.mlp.make(self.embed, **options)
        self.dropout = nn.Dropout(self.dropout_rate)

    def cross_slots(self, encoded: Float[Array, "batch length embed"]) -> Slots:
        """Projects the encoder's output once, for all later steps of decoding."""
        return Slots.of(self.cross_attention.key_values(encoded))

    def __call__(
        self,
        x: Float[Array, "batch length {self.embed}"],
        context: Context,
        cached: Slots | None = None,
        cross: Slots | None = None,
        drop_rate: Float32[Array, ""] | None = None,
    ) -> tuple[Float[Array, "batch length {self.embed}"], Slots | None]:
        """Runs the layer; returns the residual stream, and `cached` with the keys and values of
        `x`.

        Args:
          cached: keys and values of the tokens before `x`; None without a cache. It is filled where
            the context has `prompt_lengths`.
          cross: the encoder's keys and values; None to project `context.encoded`. A row of them
            serves `batch / rows` rows of `x` next to each other.
          drop_rate: of stochastic depth; None for none.
        """

        def attend(x: jax.Array) -> jax.Array:
            nonlocal cached
            kv = self.attention.key_values(x, context.positions)
            bias, mask, positions = context.bias, context.mask, None
            if cached is not None and context.prompt_lengths is not None:
                cached = cached.fill(kv, context.prompt_lengths)
            elif cached is not None:
                positions = context.positions
                cached = cached.append(kv, positions)
                kv, mask = cached.read(), AttentionMask.over_slots(positions, cached)
            if self.position_bias_spec is not None:
                bias = self.position_bias(positions, x.shape[1], kv.key.shape[1])
            return self.attention(x, kv, bias=bias, mask=mask, positions=context.positions)

        def attend_encoder(x: jax.Array) -> jax.Array:
            if cross is None:
                assert context.encoded is not None, "cross-attention needs `encoded` or `cross`"
                kv = self.cross_attention.key_values(context.encoded)
                return self.cross_attention(x, kv, mask=context.cross_mask)
            # Hypotheses of one input are queries of one row: its keys are read once for all.
            kv = cross.read()
            together = x.reshape(len(kv.key), -1, x.shape[-1])
            return self.cross_attention(together, kv, mask=context.cross_mask).reshape(x.shape)

        sublayers: dict[str, Callable[[jax.Array], jax.Array]] = {"attention": attend}
        if self.spec.cross_attention is not None:
            sublayers["cross_attention"] = attend_encoder
        sublayers["mlp"] = self.mlp
        if self.spec.parallel:
            updates = [self._update(x, name, sublayers[name], drop_rate) for name in sublayers]
            x = _residual_stream(x + updates[0] + updates[1])
        else:
            for name, sublayer in sublayers.items():
                total = x + self._update(x, name, sublayer, drop_rate)
                if self.spec.norm_placement == "after":
                    total = self._norm(f"{name}_norm", total)
                x = _residual_stream(total)
        return x, cached

    def _update(
        self, x: jax.Array, name: str, sublayer: Callable, drop_rate: jax.Array | None
    ) -> jax.Array:
        placement, deterministic = self.spec.norm_placement, not self.has_rng("dropout")
        update = sublayer(x if placement == "after" else self._norm(f"{name}_norm", x))
        if placement == "around":
            update = self._norm(f"{name}_output_norm", update)
        update = self.dropout(update, deterministic=deterministic)
        if drop_rate is not None and not deterministic:
            update = drop_residual(update, self.make_rng("dropout"), drop_rate)
        return update

    def _norm(self, name: str, x: jax.Array) -> jax.Array:
        norm = getattr(self, name, None)  # absent where the spec leaves it out
        return x if norm is None else norm(x)


def _residual_stream(x: jax.Array) -> jax.Array:
    return nn.with_logical_constraint(x, ("batch", "length", "embed"))

"""Heads: what is read off a model's hidden states. A model has at most one of each kind."""

import dataclasses
import functools
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32

from t5lite.errors import unknown
from t5lite.layers.dropout import Dropout
from t5lite.layers.embeddings import TokenEmbedding
from t5lite.layers.initializers import Initializers
from t5lite.layers.kernels.dot import softcapped
from t5lite.layers.mlp import ACTIVATIONS
from t5lite.layers.norms import LayerNormSpec, NormSpec
from t5lite.layers.projection import projection
from t5lite.layers.spec import Spec, positive

# Ways to one vector for a text; the last three are sentence-transformers'.
POOLINGS = ("first", "mean", "last", "max", "mean_sqrt_length", "weighted_mean")


class HeadSpec(Spec):
    """Any head; subclass it for one of your own.

    `kind` is what objectives ask for. Heads of kind "lm" give logits over the vocabulary; their
    module is called with hidden states and the token embedding. Others are called with hidden
    states and `valid` `[batch, length]` bool, the tokens that exist.
    """

    kind: ClassVar[str]

    def make(
        self, embed: int, vocab: int, dtype: jnp.dtype, init: Initializers = Initializers()
    ) -> nn.Module:
        """Returns the module for hidden states of width `embed`; its output is float32."""
        raise NotImplementedError(f"{type(self).__name__}.make")


@dataclasses.dataclass(frozen=True)
class LMHeadSpec(HeadSpec):
    """Logits over the vocabulary, `[batch, length, vocab]`.

    Args:
      tied: from the token embedding, rather than from a table of their own.
      logits_scale: factor on them; None for `embed**-0.5`, as in T5 v1.0.
      use_bias: whether a bias for each token is added.
      softcap: logits x become `softcap * tanh(x / softcap)` in the end; None for not at all.
        Source: Gemma Team 2024, arXiv:2408.00118, §2.
    """

    kind: ClassVar[str] = "lm"
    tied: bool = False
    logits_scale: float | None = 1.0
    use_bias: bool = False
    softcap: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(self.softcap is None or self.softcap > 0, "softcap", "above 0, or None")

    def make(
        self, embed: int, vocab: int, dtype: jnp.dtype, init: Initializers = Initializers()
    ) -> nn.Module:
        """Returns the module; see `HeadSpec`."""
        return LMHead(self, vocab, dtype, init)


@dataclasses.dataclass(frozen=True)
class MaskedLMHeadSpec(HeadSpec):
    """BERT's: a dense layer, its activation and a norm, then tied logits with a bias.

    Args:
      activation: one of `ACTIVATIONS`.
      norm: after it.
      use_bias: whether the dense layer adds a bias; the logits do.

    Source: Devlin et al. 2018, arXiv:1810.04805, and the authors' `run_pretraining.py`.
    """

    kind: ClassVar[str] = "lm"
    activation: str = "gelu"
    norm: NormSpec = LayerNormSpec(1e-12)
    use_bias: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.activation not in ACTIVATIONS:
            raise unknown("activation", self.activation, ACTIVATIONS)

    def make(
        self, embed: int, vocab: int, dtype: jnp.dtype, init: Initializers = Initializers()
    ) -> nn.Module:
        """Returns the module; see `HeadSpec`."""
        return MaskedLMHead(self, vocab, dtype, init)


@dataclasses.dataclass(frozen=True)
class ReplacedTokensHeadSpec(HeadSpec):
    """ELECTRA's: for each token, the logit of its not being the text's own, `[batch, length]`.

    Args:
      activation: one of `ACTIVATIONS`, behind a dense layer.

    Source: Clark et al. 2020, arXiv:2003.10555, §2, and the authors' `run_pretraining.py`.
    """

    kind: ClassVar[str] = "replaced_tokens"
    activation: str = "gelu"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.activation not in ACTIVATIONS:
            raise unknown("activation", self.activation, ACTIVATIONS)

    def make(
        self, embed: int, vocab: int, dtype: jnp.dtype, init: Initializers = Initializers()
    ) -> nn.Module:
        """Returns the module; see `HeadSpec`."""
        return ReplacedTokensHead(self, embed, dtype, init)


@dataclasses.dataclass(frozen=True)
class PoolerHeadSpec(HeadSpec):
    """BERT's pooler: a dense layer and an activation on the first token's vector, `[batch, embed]`.

    Args:
      activation: one of `ACTIVATIONS`.

    Source: Devlin et al. 2018, arXiv:1810.04805, and the authors' `modeling.py`.
    """

    kind: ClassVar[str] = "pooler"
    activation: str = "tanh"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.activation not in ACTIVATIONS:
            raise unknown("activation", self.activation, ACTIVATIONS)

    def make(
        self, embed: int, vocab: int, dtype: jnp.dtype, init: Initializers = Initializers()
    ) -> nn.Module:
        """Returns the module; see `HeadSpec`."""
        return PoolerHead(self, embed, dtype, init)


@dataclasses.dataclass(frozen=True)
class _PooledHeadSpec(HeadSpec):
    """A linear layer on one vector for each text.

    Args:
      pooling: which: that of the first token, of the last, or the mean of all.
      pooler: whether a dense layer and an activation come before, as in BERT.
      dropout_rate: before the linear layer.
      pooler_activation: of that dense layer, one of `ACTIVATIONS`.
      use_bias: whether the linear layer has a bias; transformers' decoders have none.
    """

    pooling: str = "mean"
    pooler: bool = False
    dropout_rate: float = 0.0
    pooler_activation: str = "tanh"
    use_bias: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(self.pooling in POOLINGS, "pooling", f"one of {', '.join(POOLINGS)}")
        if self.pooler_activation not in ACTIVATIONS:
            raise unknown("pooler_activation", self.pooler_activation, ACTIVATIONS)

    @property
    def num_outputs(self) -> int:
        raise NotImplementedError

    def make(
        self, embed: int, vocab: int, dtype: jnp.dtype, init: Initializers = Initializers()
    ) -> nn.Module:
        """Returns the module; see `HeadSpec`."""
        return PooledHead(self, embed, dtype, init)


@dataclasses.dataclass(frozen=True)
class ClassificationHeadSpec(_PooledHeadSpec):
    """Logits of classes for a text, `[batch, num_classes]`.

    Args:
      num_classes: how many, at least 2.
      pooling: `first`, `mean` or `last`: the vector that stands for the text.
      pooler: whether a dense layer and an activation come before, as in BERT.
      dropout_rate: before the linear layer.
      pooler_activation: of that dense layer, one of `ACTIVATIONS`.
      use_bias: whether the linear layer has a bias; transformers' decoders have none.
    """

    kind: ClassVar[str] = "classification"
    num_classes: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(self.num_classes >= 2, "num_classes", "at least 2")

    @property
    def num_outputs(self) -> int:
        return self.num_classes


@dataclasses.dataclass(frozen=True)
class RegressionHeadSpec(_PooledHeadSpec):
    """Numbers for a text, `[batch, num_targets]`.

    Args:
      num_targets: how many.
      pooling: `first`, `mean` or `last`: the vector that stands for the text.
      pooler: whether a dense layer and an activation come before, as in BERT.
      dropout_rate: before the linear layer.
      pooler_activation: of that dense layer, one of `ACTIVATIONS`.
      use_bias: whether the linear layer has a bias; transformers' decoders have none.
    """

    kind: ClassVar[str] = "regression"
    num_targets: int = 1

    @property
    def num_outputs(self) -> int:
        return self.num_targets


@dataclasses.dataclass(frozen=True)
class _TokenHeadSpec(HeadSpec):
    """A linear layer on the vector of each token."""

    @property
    def num_outputs(self) -> int:
        raise NotImplementedError

    def make(
        self, embed: int, vocab: int, dtype: jnp.dtype, init: Initializers = Initializers()
    ) -> nn.Module:
        """Returns the module; see `HeadSpec`."""
        return TokenHead(self.num_outputs, getattr(self, "dropout_rate", 0.0), dtype, init)


@dataclasses.dataclass(frozen=True)
class TokenLabelsHeadSpec(_TokenHeadSpec):
    """Logits of labels for each token, named entities say, `[batch, length, num_labels]`.

    Args:
      num_labels: how many, at least 2.
      dropout_rate: before the linear layer.
    """

    kind: ClassVar[str] = "token_labels"
    num_labels: int = 2
    dropout_rate: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(self.num_labels >= 2, "num_labels", "at least 2")

    @property
    def num_outputs(self) -> int:
        return self.num_labels


@dataclasses.dataclass(frozen=True)
class SpansHeadSpec(_TokenHeadSpec):
    """Logits of a span's first and last token, `[batch, length, 2]`.

    Source: Devlin et al. 2018, arXiv:1810.04805, §4.2.
    """

    kind: ClassVar[str] = "spans"

    @property
    def num_outputs(self) -> int:
        return 2


@dataclasses.dataclass(frozen=True)
class DenseSpec(Spec):
    """A dense layer on one vector for a text.

    Args:
      size: its width.
      activation: one of `ACTIVATIONS`; None for none.
      use_bias: whether it adds a bias.
    """

    size: int = positive()
    activation: str | None = "tanh"
    use_bias: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.activation is not None and self.activation not in ACTIVATIONS:
            raise unknown("activation", self.activation, ACTIVATIONS)


@dataclasses.dataclass(frozen=True)
class EmbeddingHeadSpec(HeadSpec):
    """One vector for a text, `[batch, size]`.

    Args:
      size: its width, from a linear layer; None for the hidden state's own.
      pooling: one of `POOLINGS`, or several joined by `+`, whose vectors are joined.
      normalized: whether its length is made 1.
      dense: layers on the pooled vector, before that.
    """

    kind: ClassVar[str] = "embedding"
    size: int | None = positive(None)
    pooling: str = "mean"
    normalized: bool = True
    dense: tuple[DenseSpec, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        known = all(part in POOLINGS for part in self.pooling.split("+"))
        self.require(known, "pooling", f"one of {', '.join(POOLINGS)}, or some joined by +")
        self.require(self.size is None or not self.dense, "size", "None with dense layers")

    def make(
        self, embed: int, vocab: int, dtype: jnp.dtype, init: Initializers = Initializers()
    ) -> nn.Module:
        """Returns the module; see `HeadSpec`."""
        return EmbeddingHead(self, dtype, init)


def pool(
    hidden: Float[Array, "batch length embed"], valid: Bool[Array, "batch length"], pooling: str
) -> Float32[Array, "batch embed"]:
    """Returns one vector for each text.

    Args:
      hidden: `[batch, length, embed]`.
      valid: `[batch, length]` bool. A row without any gives zeros or its first vector.
      pooling: one of `POOLINGS`. `mean_sqrt_length` divides the sum by the root of the number of
        tokens, `weighted_mean` weighs tokens by their place, from 1.

    Returns:
      `[batch, embed]` float32.
    """
    hidden = hidden.astype(jnp.float32)
    inside = valid.astype(jnp.float32)
    if pooling == "max":
        highest = jnp.where(valid[..., None], hidden, -jnp.inf).max(axis=1)
        return jnp.where(valid.any(axis=1)[:, None], highest, 0.0)
    if pooling == "weighted_mean":
        inside = inside * jnp.arange(1, valid.shape[1] + 1, dtype=jnp.float32)[None]
    if pooling in ("mean", "weighted_mean"):
        weights = inside / jnp.maximum(inside.sum(axis=1, keepdims=True), 1.0)
    elif pooling == "mean_sqrt_length":
        weights = inside / jnp.sqrt(jnp.maximum(inside.sum(axis=1, keepdims=True), 1.0))
    else:
        length = valid.shape[1]
        at = valid.argmax(axis=1) if pooling == "first" else length - 1 - valid[:, ::-1].argmax(1)
        weights = jax.nn.one_hot(at, length, dtype=jnp.float32)
    return jnp.einsum("bl,ble->be", weights, hidden)


def unit_length(x: Float32[Array, "*batch size"]) -> Float32[Array, "*batch size"]:
    """Returns float32 vectors `[..., size]` at length 1; zeros stay zeros."""
    # Below a length that training never sees, so that a row of padding has a gradient.
    return x * jax.lax.rsqrt(jnp.sum(x * x, axis=-1, keepdims=True) + jnp.float32(1e-12))


class LMHead(nn.Module):
    spec: LMHeadSpec
    vocab: int
    dtype: jnp.dtype
    init_: Initializers

    @nn.compact
    def __call__(self, hidden: jax.Array, embedding: TokenEmbedding) -> jax.Array:
        spec = self.spec
        if spec.tied:
            logits = embedding.attend(hidden)
            if spec.use_bias:
                logits = logits + jnp.broadcast_to(_vocab_bias(self), logits.shape)
        else:
            # Named after the module that it is all of.
            logits = projection(
                ("embed", "vocab"),
                (self.vocab,),
                dtype=self.dtype,
                use_bias=spec.use_bias,
                float32_output=True,
                init=self.init_.kernel("dense"),
                name="projection",
            )(hidden).astype(jnp.float32)
        scale = hidden.shape[-1] ** -0.5 if spec.logits_scale is None else spec.logits_scale
        if scale != 1.0:
            logits = logits * jnp.float32(scale)
        return logits if spec.softcap is None else softcapped(logits, spec.softcap)


class MaskedLMHead(nn.Module):
    spec: MaskedLMHeadSpec
    vocab: int
    dtype: jnp.dtype
    init_: Initializers

    def setup(self) -> None:
        self.norm = self.spec.norm.make(self.dtype)

    @nn.compact
    def __call__(self, hidden: jax.Array, embedding: TokenEmbedding) -> jax.Array:
        spec = self.spec
        dense = projection(
            ("embed", "mlp"),
            (embedding.embed,),
            dtype=self.dtype,
            use_bias=spec.use_bias,
            init=self.init_.kernel("dense"),
            name="dense",
        )
        x = ACTIVATIONS[spec.activation](dense(hidden))
        logits = embedding.attend(self.norm(x))
        return logits + jnp.broadcast_to(_vocab_bias(self), logits.shape)


class ReplacedTokensHead(nn.Module):
    spec: ReplacedTokensHeadSpec
    embed: int
    dtype: jnp.dtype
    init_: Initializers

    @nn.compact
    def __call__(self, hidden: jax.Array, valid: jax.Array) -> jax.Array:
        del valid
        project = functools.partial(
            projection, dtype=self.dtype, use_bias=True, init=self.init_.kernel("dense")
        )
        x = project(("embed", "mlp"), (self.embed,), name="dense")(hidden)
        x = ACTIVATIONS[self.spec.activation](x)
        return project(("embed", "classes"), (1,), name="projection")(x)[..., 0].astype(jnp.float32)


class PoolerHead(nn.Module):
    spec: PoolerHeadSpec
    embed: int
    dtype: jnp.dtype
    init_: Initializers

    @nn.compact
    def __call__(self, hidden: jax.Array, valid: jax.Array) -> jax.Array:
        x = pool(hidden, valid, "first").astype(self.dtype)
        dense = projection(
            ("embed", "mlp"),
            (self.embed,),
            dtype=self.dtype,
            use_bias=True,
            init=self.init_.kernel("dense"),
            name="dense",
        )
        return ACTIVATIONS[self.spec.activation](dense(x)).astype(jnp.float32)


class PooledHead(nn.Module):
    spec: _PooledHeadSpec
    embed: int
    dtype: jnp.dtype
    init_: Initializers

    @nn.compact
    def __call__(self, hidden: jax.Array, valid: jax.Array) -> jax.Array:
        spec = self.spec
        project = functools.partial(projection, dtype=self.dtype, init=self.init_.kernel("dense"))
        x = pool(hidden, valid, spec.pooling).astype(self.dtype)
        if spec.pooler:
            dense = project(("embed", "mlp"), (self.embed,), use_bias=True, name="pooler")
            x = ACTIVATIONS[spec.pooler_activation](dense(x))
        x = _dropped(self, x, spec.dropout_rate)
        output = project(
            ("embed", "classes"), (spec.num_outputs,), use_bias=spec.use_bias, name="projection"
        )
        return output(x).astype(jnp.float32)


class TokenHead(nn.Module):
    num_outputs: int
    dropout_rate: float
    dtype: jnp.dtype
    init_: Initializers

    @nn.compact
    def __call__(self, hidden: jax.Array, valid: jax.Array) -> jax.Array:
        del valid
        x = _dropped(self, hidden, self.dropout_rate)
        output = projection(
            ("embed", "classes"),
            (self.num_outputs,),
            dtype=self.dtype,
            use_bias=True,
            init=self.init_.kernel("dense"),
            name="projection",
        )
        return output(x).astype(jnp.float32)


class EmbeddingHead(nn.Module):
    spec: EmbeddingHeadSpec
    dtype: jnp.dtype
    init_: Initializers

    @nn.compact
    def __call__(self, hidden: jax.Array, valid: jax.Array) -> jax.Array:
        poolings = self.spec.pooling.split("+")
        x = jnp.concatenate([pool(hidden, valid, each) for each in poolings], axis=-1)
        for number, layer in enumerate(self.spec.dense):
            dense = projection(
                ("embed", "mlp"),
                (layer.size,),
                dtype=self.dtype,
                use_bias=layer.use_bias,
                init=self.init_.kernel("dense"),
                name=f"dense_{number}",
            )
            x = dense(x.astype(self.dtype)).astype(jnp.float32)
            x = x if layer.activation is None else ACTIVATIONS[layer.activation](x)
        if self.spec.size is not None:
            output = projection(
                ("embed", "mlp"),
                (self.spec.size,),
                dtype=self.dtype,
                init=self.init_.kernel("dense"),
                name="projection",
            )
            x = output(x.astype(self.dtype)).astype(jnp.float32)
        return unit_length(x) if self.spec.normalized else x


def _dropped(module: nn.Module, x: jax.Array, rate: float) -> jax.Array:
    if not rate or not module.has_rng("dropout"):
        return x
    return Dropout(module.make_rng("dropout"), rate)(x)


def _vocab_bias(module: "LMHead | MaskedLMHead") -> Any:
    init = nn.with_logical_partitioning(nn.initializers.zeros, ("vocab",))
    bias: Any = module.param("bias", init, (module.vocab,))
    return bias.astype(jnp.float32)

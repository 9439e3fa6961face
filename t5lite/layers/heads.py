"""Heads: outputs of a model's hidden states. A model has at most one of each kind."""

import dataclasses
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32

from t5lite.layers.dropout import Dropout
from t5lite.layers.embeddings import TokenEmbedding
from t5lite.layers.kernels.dot import softcapped
from t5lite.layers.mlp import ACTIVATIONS
from t5lite.layers.norms import LayerNormSpec, NormSpec
from t5lite.layers.pooling import POOLINGS, pool, unit_length
from t5lite.layers.projection import Projection
from t5lite.layers.spec import Spec, above, at_least, choice, positive
from t5lite.layers.weights import Weights

Hidden = Float[Array, "batch length embed"]
Valid = Bool[Array, "batch length"]


class HeadSpec(Spec):
    """The base of heads; subclass it for your own, and override `read` or `make`.

    `kind` is its name among a model's heads, which objectives choose by. Heads of kind "lm" give
    logits over the vocabulary and read hidden states and the token embedding; others read hidden
    states and `valid` `[batch, length]` bool, the tokens that are not padding.
    """

    kind: ClassVar[str]

    @property
    def limits(self) -> dict[str, int]:
        """Exclusive upper bounds of the labels that it is trained on, by their name in a batch."""
        return {}

    def make(
        self, embed: int, vocab: int, dtype: jnp.dtype, weights: Weights = Weights()
    ) -> nn.Module:
        """Returns the module for hidden states of width `embed`; its output is float32."""
        return Head(self, embed, vocab, dtype, weights)

    def read(self, head: "Head", hidden: Hidden, context: Any) -> Any:
        """Returns the output, float32.

        Args:
          head: the module, whose methods declare layers.
          context: the token embedding or `valid`, by `kind`.
        """
        raise NotImplementedError(f"{type(self).__name__}.read")


class Head(nn.Module):
    """The module of a head, and the layers of heads; a spec's `norm`, if any, is `head.norm`."""

    spec: Any
    embed: int
    vocab: int
    dtype: jnp.dtype
    weights: Weights

    def setup(self) -> None:
        if hasattr(self.spec, "norm"):
            self.norm = self.spec.norm.make(self.dtype)

    @nn.compact
    def __call__(self, hidden: jax.Array, context: Any) -> jax.Array:
        return self.spec.read(self, hidden, context)

    def project(
        self, x: Float[Array, "*batch _"], size: int, name: str, *, axis: str = "mlp", **fields: Any
    ) -> Float[Array, "*batch {size}"]:
        """Returns a linear layer's output, whose new axis has the logical name `axis`."""
        fields = {"use_bias": True, "weights": self.weights, "dtype": self.dtype, **fields}
        return Projection(("embed", axis), (size,), name=name, **fields)(x)

    def classify(
        self, x: Float[Array, "*batch _"], size: int, *, use_bias: bool = True
    ) -> Float32[Array, "*batch {size}"]:
        y = self.project(x, size, "projection", axis="classes", use_bias=use_bias)
        return y.astype(jnp.float32)

    def dropout(self, x: Float[Array, "*shape"], rate: float) -> Float[Array, "*shape"]:
        if not rate or not self.has_rng("dropout"):
            return x
        return Dropout(self.make_rng("dropout"), rate)(x)

    def vocab_bias(self, logits: Float32[Array, "*batch vocab"]) -> Float32[Array, "*batch vocab"]:
        """Returns logits with a bias for each token."""
        init = nn.with_logical_partitioning(nn.initializers.zeros, ("vocab",))
        bias: Any = self.param("bias", init, (self.vocab,))
        return logits + jnp.broadcast_to(bias.astype(jnp.float32), logits.shape)


@dataclasses.dataclass(frozen=True)
class LMHeadSpec(HeadSpec):
    """Logits over the vocabulary, `[batch, length, vocab]`.

    Args:
      tied: from the token embedding, rather than from a table of their own.
      logits_scale: factor on them; None for `embed**-0.5`, as in T5 v1.0.
      use_bias: whether a bias for each token is added.
      softcap: finally limits logits, see `kernels.Request`; None for none.
    """

    kind: ClassVar[str] = "lm"
    tied: bool = False
    logits_scale: float | None = 1.0
    use_bias: bool = False
    softcap: float | None = above(0, None)

    def read(
        self, head: Head, hidden: Hidden, embedding: TokenEmbedding
    ) -> Float32[Array, "batch length vocab"]:
        if self.tied:
            logits = embedding.attend(hidden)
            logits = head.vocab_bias(logits) if self.use_bias else logits
        else:
            options: Any = {"use_bias": self.use_bias, "float32_output": True}
            logits = head.project(hidden, head.vocab, "projection", axis="vocab", **options)
        scale = hidden.shape[-1] ** -0.5 if self.logits_scale is None else self.logits_scale
        if scale != 1.0:
            logits = logits * jnp.float32(scale)
        return logits if self.softcap is None else softcapped(logits, self.softcap)


@dataclasses.dataclass(frozen=True)
class MaskedLMHeadSpec(HeadSpec):
    """BERT's: a dense layer, its activation and a norm, then tied logits with a bias.

    Args:
      activation: one of `ACTIVATIONS`.
      use_bias: whether the dense layer adds a bias; the logits do.
    Source: Devlin et al. 2018, arXiv:1810.04805, and the authors' `run_pretraining.py`.
    """

    kind: ClassVar[str] = "lm"
    activation: str = choice(ACTIVATIONS, "gelu")
    norm: NormSpec = LayerNormSpec(1e-12)
    use_bias: bool = True

    def read(
        self, head: Head, hidden: Hidden, embedding: TokenEmbedding
    ) -> Float32[Array, "batch length vocab"]:
        x = head.project(hidden, embedding.embed, "dense", use_bias=self.use_bias)
        x = head.norm(ACTIVATIONS[self.activation](x))
        return head.vocab_bias(embedding.attend(x))


@dataclasses.dataclass(frozen=True)
class ReplacedTokensHeadSpec(HeadSpec):
    """ELECTRA's: for each token, the logit that it was replaced, `[batch, length]`; `activation`,
    one of `ACTIVATIONS`, follows a dense layer.

    Source: Clark et al. 2020, arXiv:2003.10555, §2, and the authors' `run_pretraining.py`.
    """

    kind: ClassVar[str] = "replaced_tokens"
    activation: str = choice(ACTIVATIONS, "gelu")

    def read(self, head: Head, hidden: Hidden, valid: jax.Array) -> Float32[Array, "batch length"]:
        x = ACTIVATIONS[self.activation](head.project(hidden, head.embed, "dense"))
        return head.classify(x, 1)[..., 0]


@dataclasses.dataclass(frozen=True)
class PoolerHeadSpec(HeadSpec):
    """BERT's pooler: a dense layer and one of `ACTIVATIONS` on the first token, `[batch, embed]`.

    Source: Devlin et al. 2018, arXiv:1810.04805, and the authors' `modeling.py`.
    """

    kind: ClassVar[str] = "pooler"
    activation: str = choice(ACTIVATIONS, "tanh")

    def read(self, head: Head, hidden: Hidden, valid: Valid) -> Float32[Array, "batch embed"]:
        x = pool(hidden, valid, "first").astype(head.dtype)
        y = ACTIVATIONS[self.activation](head.project(x, head.embed, "dense"))
        return y.astype(jnp.float32)


@dataclasses.dataclass(frozen=True)
class _PooledHeadSpec(HeadSpec):
    """A linear layer on one vector for each text; see `RegressionHeadSpec` for its fields."""

    pooling: str = choice(POOLINGS, "mean")
    pooler: bool = False
    dropout_rate: float = 0.0
    pooler_activation: str = choice(ACTIVATIONS, "tanh")
    use_bias: bool = True

    @property
    def num_outputs(self) -> int:
        raise NotImplementedError

    def read(self, head: Head, hidden: Hidden, valid: Valid) -> Float32[Array, "batch outputs"]:
        x = pool(hidden, valid, self.pooling).astype(head.dtype)
        if self.pooler:
            x = ACTIVATIONS[self.pooler_activation](head.project(x, head.embed, "pooler"))
        x = head.dropout(x, self.dropout_rate)
        return head.classify(x, self.num_outputs, use_bias=self.use_bias)


@dataclasses.dataclass(frozen=True)
class ClassificationHeadSpec(_PooledHeadSpec):
    """Logits of 2 or more classes, `[batch, num_classes]`; see `RegressionHeadSpec`."""

    kind: ClassVar[str] = "classification"
    num_classes: int = at_least(2, 2)

    @property
    def num_outputs(self) -> int:
        return self.num_classes

    @property
    def limits(self) -> dict[str, int]:
        return {"labels": self.num_classes}


@dataclasses.dataclass(frozen=True)
class RegressionHeadSpec(_PooledHeadSpec):
    """Numbers for a text, `[batch, num_targets]`, from a linear layer on one vector.

    Args:
      num_targets: at least 1.
      pooling: one of `POOLINGS`.
      pooler: whether a dense layer and an activation precede it, as in BERT.
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
class TokenLabelsHeadSpec(HeadSpec):
    """Logits of 2 or more labels for each token, `[batch, length, num_labels]`, after dropout."""

    kind: ClassVar[str] = "token_labels"
    num_labels: int = at_least(2, 2)
    dropout_rate: float = 0.0

    @property
    def num_outputs(self) -> int:
        return self.num_labels

    @property
    def limits(self) -> dict[str, int]:
        return {"token_labels": self.num_labels}

    def read(
        self, head: Head, hidden: Hidden, valid: jax.Array
    ) -> Float32[Array, "batch length labels"]:
        return head.classify(head.dropout(hidden, self.dropout_rate), self.num_labels)


@dataclasses.dataclass(frozen=True)
class SpansHeadSpec(HeadSpec):
    """Logits of a span's first and last token, `[batch, length, 2]`.

    Source: Devlin et al. 2018, arXiv:1810.04805, §4.2.
    """

    kind: ClassVar[str] = "spans"

    def read(
        self, head: Head, hidden: Hidden, valid: jax.Array
    ) -> Float32[Array, "batch length 2"]:
        return head.classify(hidden, 2)


@dataclasses.dataclass(frozen=True)
class DenseSpec(Spec):
    """A dense layer of width `size` on one vector for a text; its activation may be None."""

    size: int = positive()
    activation: str | None = choice(ACTIVATIONS, "tanh")
    use_bias: bool = True


@dataclasses.dataclass(frozen=True)
class EmbeddingHeadSpec(HeadSpec):
    """One vector for a text, `[batch, size]`.

    Args:
      size: its width, from a linear layer; None for the hidden state's.
      pooling: one of `POOLINGS`, or several joined by `+`, whose vectors are joined.
      normalized: whether it is scaled to length 1.
      dense: layers on the pooled vector, before that.
    """

    kind: ClassVar[str] = "embedding"
    size: int | None = positive(None)
    pooling: str = "mean"
    normalized: bool = True
    dense: tuple[DenseSpec, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        parts = self.pooling.split("+")
        self.require(
            {*parts} <= {*POOLINGS}, "pooling", f"one of {', '.join(POOLINGS)}, or some joined by +"
        )
        self.require(self.size is None or not self.dense, "size", "None with dense layers")

    def read(self, head: Head, hidden: Hidden, valid: Valid) -> Float32[Array, "batch size"]:
        poolings = [pool(hidden, valid, pooling) for pooling in self.pooling.split("+")]
        x = jnp.concatenate(poolings, axis=-1)
        for index, layer in enumerate(self.dense):
            x, name = x.astype(head.dtype), f"dense_{index}"
            x = head.project(x, layer.size, name, use_bias=layer.use_bias).astype(jnp.float32)
            x = x if layer.activation is None else ACTIVATIONS[layer.activation](x)
        if self.size is not None:
            x = head.project(x.astype(head.dtype), self.size, "projection", use_bias=False)
            x = x.astype(jnp.float32)
        return unit_length(x) if self.normalized else x

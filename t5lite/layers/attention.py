"""Multi-head attention with grouped keys and values, an additive bias and a mask."""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Float32, Int32

from t5lite.layers.cache import KeyValues
from t5lite.layers.dropout import Dropout
from t5lite.layers.kernels import attention, dot
from t5lite.layers.kernels.request import Request
from t5lite.layers.masks import AttentionMask
from t5lite.layers.norms import NormSpec
from t5lite.layers.projection import Projection
from t5lite.layers.rotary import RotarySpec, rotate
from t5lite.layers.spec import Spec, above, positive
from t5lite.layers.weights import Weights


@dataclasses.dataclass(frozen=True)
class AttentionSpec(Spec):
    """Multi-head attention.

    Args:
      num_heads: query heads.
      head_dim: width of one head; independent of the model's width.
      num_kv_heads: key and value heads, a divisor of `num_heads`; None for `num_heads`. Source:
        Ainslie et al. 2023, arXiv:2305.13245.
      logits_scale: factor on query · key; None for `head_dim**-0.5`. T5 has 1.0 and carries the
        factor in the query's initialiser instead.
      rotary: rotation of queries and keys by their positions; None for none.
      window: the largest distance, in tokens, at which a query sees a key; None for any. (Mistral's
        `sliding_window` counts the visible keys: one more.) Source: Beltagy et al. 2020,
        arXiv:2004.05150, §3.1.
      logits_softcap: see `kernels.Request`; None for none.
      query_key_norm: of each head's queries and keys, before rotation; None for none. Source: Henry
        et al. 2020, arXiv:2010.04245; Dehghani et al. 2023, arXiv:2302.05442, §2.
    """

    num_heads: int
    head_dim: int = positive()
    num_kv_heads: int | None = None
    logits_scale: float | None = None
    use_bias: bool = False
    rotary: RotarySpec | None = None
    window: int | None = positive(None)
    logits_softcap: float | None = above(0, None)
    query_key_norm: NormSpec | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(self.num_heads % self.kv_heads == 0, "num_kv_heads", "a divisor of num_heads")
        if self.num_kv_heads == self.num_heads:  # equal specs compare equal
            object.__setattr__(self, "num_kv_heads", None)
        rotary_size = 2 if self.rotary is None else self.rotary.size(self.head_dim)
        self.require(
            rotary_size >= 2 and rotary_size % 2 == 0,
            "head_dim",
            "even, and not 0, in its rotary fraction",
        )

    @property
    def kv_heads(self) -> int:
        return self.num_kv_heads or self.num_heads

    @property
    def kv_axis(self) -> str:
        """Logical name of the key and value heads: a single shared one cannot be sharded."""
        return "shared_head" if self.kv_heads == 1 < self.num_heads else "heads"

    @property
    def scale(self) -> float:
        return self.head_dim**-0.5 if self.logits_scale is None else self.logits_scale

    def flops(
        self, embed: int, q_length: int, kv_length: int, *, kv_embed: int | None = None
    ) -> int:
        """Returns multiply-adds × 2 of the matrix products over one row, masked ones included;
        `kv_embed` is the width of the keys' input, None for `embed`."""
        query_and_output = 2 * 2 * q_length * embed * self.num_heads * self.head_dim
        key_and_value = 2 * 2 * kv_length * (kv_embed or embed) * self.kv_heads * self.head_dim
        logits_and_mix = 2 * 2 * q_length * kv_length * self.num_heads * self.head_dim
        return query_and_output + key_and_value + logits_and_mix

    def make(self, embed: int, **options: Any) -> "Attention":
        """Returns the module for width `embed`; options are the other fields of `Attention`."""
        return Attention(self, embed, **options)


class Attention(nn.Module):
    """Queries from one sequence over keys and values projected from the same or another.

    `key_values` and the call are two steps, between which a cache may come.
    """

    spec: AttentionSpec
    embed: int
    dtype: jnp.dtype
    dropout_rate: float
    kernel: str = "auto"
    weights: Weights = Weights()

    def setup(self) -> None:
        spec = self.spec
        heads, kv_heads = (spec.num_heads, spec.head_dim), (spec.kv_heads, spec.head_dim)
        axes = ("embed", "heads", "kv")
        # Under fan-in initialisation, logits have unit variance whatever their scale.
        gain = spec.head_dim**-0.5 / spec.scale
        project = functools.partial(
            Projection, weights=self.weights, dtype=self.dtype, use_bias=spec.use_bias
        )
        self.query = project(axes, heads, role="query", gain=gain)
        self.key = project(("embed", spec.kv_axis, "kv"), kv_heads, role="key")
        self.value = project(("embed", spec.kv_axis, "kv"), kv_heads, role="value")
        self.output = project(
            ("heads", "kv", "embed"),
            (self.embed,),
            num_contracted=2,
            role="attention_output",
        )
        if spec.query_key_norm is not None:
            self.query_norm = spec.query_key_norm.make(self.dtype, axis="kv")
            self.key_norm = spec.query_key_norm.make(self.dtype, axis="kv")

    def key_values(
        self,
        x: Float[Array, "batch kv_length embed"],
        positions: Int32[Array, "#batch kv_length"] | None = None,
    ) -> KeyValues:
        """Projects `x` to keys and values; `positions` are those of rotary keys."""
        names = ("batch", "length", self.spec.kv_axis, "kv")
        key = self.key(x)  # [batch, kv_length, kv_heads, kv]
        if self.spec.query_key_norm is not None:
            key = self.key_norm(key)
        key = nn.with_logical_constraint(self._rotated(key, positions), names)
        value = nn.with_logical_constraint(self.value(x), names)
        return KeyValues(self._named(key, "key"), self._named(value, "value"))

    def __call__(
        self,
        x: Float[Array, "batch q_length {self.embed}"],
        kv: KeyValues,
        *,
        bias: Float32[Array, "#batch heads q_length kv_length"] | None = None,
        mask: AttentionMask | None = None,
        positions: Int32[Array, "#batch q_length"] | None = None,
    ) -> Float[Array, "batch q_length {self.embed}"]:
        """Attends from `x`, at `positions`, over `kv`."""
        query = self.query(x)  # [batch, q_length, heads, kv]
        if self.spec.query_key_norm is not None:
            query = self.query_norm(query)
        query = self._rotated(query, positions)
        query = nn.with_logical_constraint(query, ("batch", "length", "heads", "kv"))
        query = self._named(query, "query")
        dropout = None
        if self.dropout_rate and self.has_rng("dropout"):
            dropout = Dropout(self.make_rng("dropout"), self.dropout_rate)
        spec = self.spec
        if spec.window is not None and mask is None:
            raise ValueError("attention in windows needs a mask")
        if mask is not None:
            mask = mask.within_window(spec.window)
        request = Request(query, kv, bias, mask, dropout, spec.scale, spec.logits_softcap)
        if self.is_mutable_collection("intermediates"):  # `Model.attention`
            self.sow("intermediates", "weights", dot.weights(request))
        return self._named(self.output(attention(request, kernel=self.kernel)), "output")

    def _named(self, x: jax.Array, name: str) -> jax.Array:
        """Names an activation for rematerialisation policies, `cross_…` in cross-attention."""
        return checkpoint_name(x, f"cross_{name}" if self.name == "cross_attention" else name)

    def _rotated(self, x: jax.Array, positions: jax.Array | None) -> jax.Array:
        if self.spec.rotary is None:
            return x
        assert positions is not None, "rotary attention needs positions"
        return rotate(x, positions, self.spec.rotary)

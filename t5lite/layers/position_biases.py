"""Position biases on attention logits: T5's bucketed distances and ALiBi's slopes."""

import dataclasses
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int32

from t5lite.layers.spec import Spec, positive
from t5lite.layers.weights import Weights


class PositionBiasSpec(Spec):
    """The base of biases by distance, one for each layer (`per_layer`) or for the whole stack."""

    per_layer: bool

    def make(
        self, num_heads: int, *, bidirectional: bool, weights: Weights = Weights()
    ) -> nn.Module:
        """Returns the module, called as `RelativeBias` is, for `num_heads` heads."""
        raise NotImplementedError(f"{type(self).__name__}.make")


@dataclasses.dataclass(frozen=True)
class RelativeBiasSpec(PositionBiasSpec):
    """A learned bias per head and bucket of distance, added to the attention logits.

    Args:
      num_buckets: of distances; even, as half of them look ahead in a bidirectional stack.
      max_distance: from which on all distances share the last bucket.
      per_layer: one table per layer (UMT5, T5X's scalable T5) instead of one per stack (T5).
    Source: Raffel et al. 2020, arXiv:1910.10683, §2.1.
    """

    num_buckets: int = 32
    max_distance: int = positive(128)
    per_layer: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(self.num_buckets % 2 == 0, "num_buckets", "even")
        self.require(self.max_distance > self.num_buckets, "max_distance", "above num_buckets")

    def make(
        self, num_heads: int, *, bidirectional: bool, weights: Weights = Weights()
    ) -> "RelativeBias":
        return RelativeBias(self, num_heads, bidirectional, weights)


@dataclasses.dataclass(frozen=True)
class AlibiSpec(PositionBiasSpec):
    """A bias that falls with distance, alike on both sides, at a slope for each head; no
    parameters.

    Source: Press et al. 2021, arXiv:2108.12409, §3.
    """

    per_layer = False  # not a field: layers cannot differ

    def make(self, num_heads: int, *, bidirectional: bool, weights: Weights = Weights()) -> "Alibi":
        return Alibi(num_heads)  # a causal mask hides the keys ahead


class Alibi(nn.Module):
    """The bias `-slope * |key - query|`; called as `RelativeBias`."""

    num_heads: int

    def __call__(
        self, q_positions: Int32[Array, "batch q_length"] | None, q_length: int, kv_length: int
    ) -> Float32[Array, "batch_or_1 heads {q_length} {kv_length}"]:
        if q_positions is None:
            q_positions = jnp.arange(q_length, dtype=jnp.int32)[None]
        keys = jnp.arange(kv_length, dtype=jnp.int32)[None, None]
        distance = jnp.abs(keys - q_positions[..., None]).astype(jnp.float32)[:, None]
        slopes = jnp.asarray(alibi_slopes(self.num_heads))[None, :, None, None]
        shape = (distance.shape[0], self.num_heads, *distance.shape[2:])
        return -jnp.broadcast_to(slopes, shape) * jnp.broadcast_to(distance, shape)


def alibi_slopes(num_heads: int) -> np.ndarray:
    """Returns `[num_heads]` float32: powers of `2**(-8 / n)`, n the largest power of two.

    Further heads have every other slope of 2 n heads, as in the authors' code.
    """
    n = 1 << (num_heads.bit_length() - 1)

    def powers(count: int) -> np.ndarray:
        return 2.0 ** (-8.0 / count * np.arange(1, count + 1))

    extra = powers(2 * n)[0::2][: num_heads - n]
    return np.concatenate([powers(n), extra]).astype(np.float32)


class RelativeBias(nn.Module):
    """The table, gathered for cached queries and laid out by diagonals for whole rows."""

    spec: RelativeBiasSpec
    num_heads: int
    bidirectional: bool
    weights: Weights = Weights()

    @nn.compact
    def __call__(
        self, q_positions: Int32[Array, "batch q_length"] | None, q_length: int, kv_length: int
    ) -> Float32[Array, "batch_or_1 heads {q_length} {kv_length}"]:
        """Returns the bias; `q_positions` count among keys 0, 1, …, None if query i is at key i."""
        init = self.weights.init.position_bias(
            nearest_distances(self.spec, bidirectional=self.bidirectional)
        )
        table: Any = self.param(
            "embedding",
            nn.with_logical_partitioning(init, ("heads", "relpos_buckets")),
            (self.num_heads, self.spec.num_buckets),
        )
        table = table.astype(jnp.float32)
        if q_positions is None:
            diagonals = np.arange(1 - q_length, kv_length)
            buckets = relative_buckets(diagonals, self.spec, bidirectional=self.bidirectional)
            return toeplitz(table[:, buckets], q_length)[None]
        keys = jnp.arange(kv_length, dtype=jnp.int32)[None, None]
        offsets = keys - q_positions[..., None]
        buckets = relative_buckets(offsets, self.spec, bidirectional=self.bidirectional)
        return jnp.moveaxis(table[:, buckets], 0, 1)


def relative_buckets(
    offsets: np.ndarray | jax.Array, spec: RelativeBiasSpec, *, bidirectional: bool
) -> np.ndarray | jax.Array:
    """Returns the bucket of each key-minus-query offset, int32 in `[0, num_buckets)`.

    Half of a direction's buckets hold one distance each, the others grow logarithmically up to
    `max_distance`. Keys ahead have half of the buckets if `bidirectional`, otherwise bucket 0.
    """
    # A lookup on the host: an accelerator's own logarithm could round a border the other way.
    lookup = _bucket_of_distance(spec, bidirectional)
    xp = np if isinstance(offsets, np.ndarray) else jnp
    back = xp.asarray(lookup)[xp.clip(-offsets, 0, spec.max_distance)]
    if not bidirectional:
        return back
    half = np.int32(spec.num_buckets // 2)
    ahead = xp.asarray(lookup + half)[xp.clip(offsets, 0, spec.max_distance)]
    return xp.where(offsets > 0, ahead, back)


def nearest_distances(spec: RelativeBiasSpec, *, bidirectional: bool) -> np.ndarray:
    """Returns `[num_buckets]` int: the smallest distance of each bucket, in tokens."""
    sides = 2 if bidirectional else 1
    lookup = _bucket_of_distance(spec, bidirectional)
    return np.tile(np.searchsorted(lookup, np.arange(spec.num_buckets // sides)), sides)


def _bucket_of_distance(spec: RelativeBiasSpec, bidirectional: bool) -> np.ndarray:
    """Returns `[max_distance + 1]` int32: the bucket of each distance in one direction."""
    num_buckets = spec.num_buckets // 2 if bidirectional else spec.num_buckets
    max_distance = spec.max_distance
    distance = np.arange(max_distance + 1)
    exact = num_buckets // 2
    ratio = np.log(np.maximum(distance, 1) / exact) / math.log(max_distance / exact)
    # The nudge keeps powers that are whole numbers on paper from falling just below.
    large = exact + (ratio * (num_buckets - exact) + 1e-6).astype(np.int32)
    bucket = np.where(distance < exact, distance, np.minimum(large, num_buckets - 1))
    return bucket.astype(np.int32)


def toeplitz(
    values: Float[Array, "heads diagonals"], num_rows: int
) -> Float[Array, "heads {num_rows} diagonals-{num_rows}+1"]:
    """Lays one value per diagonal out as a matrix; entry i is of column minus row
    `i - (num_rows - 1)`.

    Repeating a row of n + 1 values and cutting the run every n shifts each row by one. Without a
    gather the gradient is a sum over diagonals, not a scatter of `num_rows * num_columns` terms.
    """
    heads, n = values.shape
    padded = jnp.pad(values, ((0, 0), (0, 1)))
    run = jnp.tile(padded, (1, num_rows))[:, : num_rows * n]
    return run.reshape(heads, num_rows, n)[:, :, num_rows - 1 :]

"""Position embeddings, which are added to those of tokens: learned or sinusoidal."""

import dataclasses

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int32

from t5lite.errors import InputError
from t5lite.layers.embeddings import TokenEmbedding
from t5lite.layers.initializers import Table
from t5lite.layers.spec import Spec, at_least, positive
from t5lite.layers.weights import Weights


class PositionEmbeddingSpec(Spec):
    """The base of position embeddings; subclass it for your own."""

    def make(self, embed: int, dtype: jnp.dtype, weights: Weights = Weights()) -> nn.Module:
        """Returns the module: positions `[batch or 1, length]` int32 → `[…, length, embed]`."""
        raise NotImplementedError(f"{type(self).__name__}.make")

    def check(self, length: int) -> None:
        """Raises an InputError if rows of this length have no positions."""


@dataclasses.dataclass(frozen=True)
class LearnedPositionsSpec(PositionEmbeddingSpec):
    """A table with a row for each position.

    Args:
      max_length: of a sequence.
      offset: unused rows of the table before the first position's (BART, RoBERTa).
    Source: Gehring et al. 2017, arXiv:1705.03122, §3.1.
    """

    max_length: int = positive()
    offset: int = at_least(0, 0)

    def make(self, embed: int, dtype: jnp.dtype, weights: Weights = Weights()) -> nn.Module:
        return LearnedPositions(self.max_length + self.offset, embed, dtype, weights, spec=self)

    def check(self, length: int) -> None:
        if length > self.max_length:
            raise InputError(
                f"a sequence of {length} tokens: the model has learned positions for "
                f"{self.max_length}; shorten it (TASK_FEATURE_LENGTHS; in generating, prompt and "
                "max_new_tokens), or override position_embedding.max_length"
            )


@dataclasses.dataclass(frozen=True)
class SinusoidalPositionsSpec(PositionEmbeddingSpec):
    """Sines, then cosines, of wavelengths from 2π to 10,000 · 2π; no parameters.

    Source: Vaswani et al. 2017, arXiv:1706.03762, §3.5.
    """

    def make(self, embed: int, dtype: jnp.dtype, weights: Weights = Weights()) -> nn.Module:
        return SinusoidalPositions(embed, dtype)


class LearnedPositions(TokenEmbedding):
    """A table that is looked up by position."""

    table: Table = "positions"
    axis: str = "positions"
    spec: LearnedPositionsSpec = LearnedPositionsSpec(1)

    def __call__(
        self, positions: Int32[Array, "batch length"]
    ) -> Float[Array, "batch length {self.embed}"]:
        self.spec.check(positions.shape[1])
        return self.rows(positions + self.spec.offset)


class SinusoidalPositions(nn.Module):
    embed: int
    dtype: jnp.dtype

    def __call__(
        self, positions: Int32[Array, "batch length"]
    ) -> Float[Array, "batch length {self.embed}"]:
        half = -(-self.embed // 2)
        frequencies = np.float32(10_000.0) ** (-np.arange(half, dtype=np.float32) / half)
        angles = positions.astype(jnp.float32)[..., None] * jnp.asarray(frequencies)[None, None]
        waves = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
        return waves[..., : self.embed].astype(self.dtype)

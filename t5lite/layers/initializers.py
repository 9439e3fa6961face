"""Initial values of weights: the rule each architecture was published with."""

import dataclasses
import math
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from t5lite.layers.spec import Spec, at_least, positive

Initializer = nn.initializers.Initializer
# The use of a matrix; `down` and `attention_output` write to the residual stream.
Role = Literal["query", "key", "value", "attention_output", "up", "down", "router", "dense"]
_ATTENTION = ("query", "key", "value", "attention_output")
_RESIDUAL = ("attention_output", "down")
Table = Literal["tokens", "positions", "token_types"]
# Fedus et al. 2021, Switch, arXiv:2101.03961, §2.4.
_ROUTER_SCALE = 0.1
_FAR_OFFSET = 2.0  # nats


class InitSpec(Spec):
    """The base of rules for initial values; subclass it for your own. Biases are 0, norms 1."""

    def kernel(self, role: Role, *, gain: float, num_updates: int) -> Initializer:
        """Returns the initializer of a matrix `[*contracted, *features]`, drawn as `[in, out]`.

        Args:
          role: the use of the matrix.
          gain: factor on a standard deviation from fan-in, so that attention logits have variance
            1.
          num_updates: matrices of the stack that write to its residual stream, two a layer (three
            with cross-attention); 1 outside stacks.
        """
        raise NotImplementedError(f"{type(self).__name__}.kernel")

    def table(self, table: Table) -> Initializer:
        """Returns the initializer of an embedding `[rows, width]`."""
        raise NotImplementedError(f"{type(self).__name__}.table")

    def position_bias(self, distances: np.ndarray) -> Initializer:
        """Returns the initializer of position biases `[heads, buckets]`, as T5X's; `distances`
        `[buckets]` int are the smallest of each bucket, in tokens."""
        return nn.initializers.variance_scaling(1.0, "fan_avg", "uniform")


@dataclasses.dataclass(frozen=True)
class FanInInitSpec(InitSpec):
    """A matrix has variance `scale / fan-in`: T5's rule, and with other scales Switch's and PaLM's.

    Attention is drawn from a normal distribution, a router always with scale 0.1 (Switch, §2.4),
    positions and token types with a standard deviation of 0.02.

    Args:
      scale: 1.0 in T5 and PaLM, 0.1 in Switch.
      distribution: of the matrices outside attention; T5's is truncated at two standard deviations,
        with the variance above.
      embedding_stddev: of token embeddings.
      position_bias_window: distance in tokens beyond which position biases start 2 nats lower than
        T5's, so that a small model attends to neighbours at first; None for T5's.
    Source: T5X's `layers.py`; Raffel et al. 2020, arXiv:1910.10683 (the same in its code).
    """

    scale: float = at_least(0, 1.0)
    distribution: Literal["truncated_normal", "normal"] = "truncated_normal"
    embedding_stddev: float = 1.0
    position_bias_window: int | None = positive(None)

    def kernel(self, role: Role, *, gain: float, num_updates: int) -> Initializer:
        scale = _ROUTER_SCALE if role == "router" else self.scale
        distribution = "normal" if role in _ATTENTION else self.distribution
        return nn.initializers.variance_scaling(scale * gain**2, "fan_in", distribution)

    def table(self, table: Table) -> Initializer:
        return nn.initializers.normal(self.embedding_stddev if table == "tokens" else 0.02)

    def position_bias(self, distances: np.ndarray) -> Initializer:
        drawn, window = super().position_bias(distances), self.position_bias_window
        if window is None:
            return drawn
        # Not lower: the steps of optimizers that scale with a table's norm would be too large.
        offset = np.where(distances > window, _FAR_OFFSET, 0.0)

        def draw(key: jax.Array, shape: Any, dtype: Any = jnp.float32) -> jax.Array:
            return drawn(key, shape, dtype) - jnp.asarray(offset, dtype)[None]

        return draw


@dataclasses.dataclass(frozen=True)
class NormalInitSpec(InitSpec):
    """Every matrix and embedding from one normal distribution, whatever its size.

    Args:
      scaled_residuals: whether `stddev` of matrices that write to the residual stream is divided by
        the square root of their number in the stack, `2 * num_layers` without cross-attention
        (Radford et al. 2019, GPT-2, §2.3; Shoeybi et al. 2019, Megatron, arXiv:1909.08053).
    """

    stddev: float = at_least(0, 0.02)
    scaled_residuals: bool = False

    def kernel(self, role: Role, *, gain: float, num_updates: int) -> Initializer:
        scaled = self.scaled_residuals and role in _RESIDUAL
        return self._draw(self.stddev / math.sqrt(num_updates) if scaled else self.stddev)

    def table(self, table: Table) -> Initializer:
        return self._draw(self.stddev)

    def _draw(self, stddev: float) -> Initializer:
        return nn.initializers.normal(stddev)


@dataclasses.dataclass(frozen=True)
class TruncatedNormalInitSpec(NormalInitSpec):
    """`NormalInitSpec`, truncated at two standard deviations, which leaves 0.88 of `stddev`."""

    def _draw(self, stddev: float) -> Initializer:
        return nn.initializers.truncated_normal(stddev)


@dataclasses.dataclass(frozen=True)
class SmallInitSpec(InitSpec):
    """GPT-NeoX's: variance `2 / (5 * embed)`; of matrices that write to the residual stream,
    standard deviation `2 / (num_layers * sqrt(embed))`.

    Source: Black et al. 2022, arXiv:2204.06745, §2.1.3; Nguyen and Salazar 2019, arXiv:1910.05895,
    §2.2 (small init); Wang and Komatsuzaki 2021 (the other).
    """

    def kernel(self, role: Role, *, gain: float, num_updates: int) -> Initializer:
        def draw(key: jax.Array, shape: Any, dtype: Any = jnp.float32) -> jax.Array:
            if role in _RESIDUAL:
                stddev = 4 / (num_updates * math.sqrt(shape[-1]))
            else:
                stddev = math.sqrt(2 / (5 * shape[0]))
            return nn.initializers.normal(stddev)(key, shape, dtype)

        return draw

    def table(self, table: Table) -> Initializer:
        def draw(key: jax.Array, shape: Any, dtype: Any = jnp.float32) -> jax.Array:
            return nn.initializers.normal(math.sqrt(2 / (5 * shape[-1])))(key, shape, dtype)

        return draw

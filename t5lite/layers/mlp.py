"""Position-wise feed-forward layers."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from t5lite.layers.projection import Projection
from t5lite.layers.spec import Spec, choice, positive
from t5lite.layers.weights import Weights

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "relu": jax.nn.relu,
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "silu": jax.nn.silu,
    "tanh": jnp.tanh,
    "sigmoid": jax.nn.sigmoid,
}


@dataclasses.dataclass(frozen=True)
class MlpSpec(Spec):
    """`down(activation(up(x)))`, or `down(activation(gate(x)) * up(x))` when gated.

    Args:
      hidden: width of the hidden layer.
      activation: one of `ACTIVATIONS`; T5's "gated-gelu" is `gelu_tanh` with `gated`.
      gated: a gated linear unit. Source: Shazeer 2020, arXiv:2002.05202.
    """

    hidden: int = positive()
    activation: str = choice(ACTIVATIONS, "relu")
    gated: bool = False
    use_bias: bool = False

    def make(self, embed: int, **options: Any) -> nn.Module:
        """Returns the module for inputs of width `embed`; options are the other fields of `Mlp`."""
        return Mlp(self, embed, **options)

    def flops(self, embed: int, length: int) -> int:
        """Returns multiply-adds × 2 of the matrix products over one row of `length` tokens."""
        return 2 * length * embed * self.hidden * (3 if self.gated else 2)


class Mlp(nn.Module):
    """Maps `[batch, length, embed]` to the same shape."""

    spec: MlpSpec
    embed: int
    dtype: jnp.dtype
    dropout_rate: float
    weights: Weights = Weights()

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch length {self.embed}"]
    ) -> Float[Array, "batch length {self.embed}"]:
        spec, activation = self.spec, ACTIVATIONS[self.spec.activation]
        project = functools.partial(
            Projection, weights=self.weights, dtype=self.dtype, use_bias=spec.use_bias
        )

        def into(name: str) -> jax.Array:
            hidden = project(("embed", "mlp"), (spec.hidden,), role="up", name=name)(x)
            return checkpoint_name(hidden, name)

        # Of an activation only the input is saved: the rest is cheap to recompute.
        if spec.gated:
            gated = jax.checkpoint(lambda gate, up: activation(gate) * up)
            hidden = gated(into("gate"), into("up"))
        else:
            hidden = jax.checkpoint(activation)(into("up"))
        hidden = nn.Dropout(self.dropout_rate, deterministic=not self.has_rng("dropout"))(hidden)
        hidden = nn.with_logical_constraint(hidden, ("batch", "length", "mlp"))
        y = project(("mlp", "embed"), (self.embed,), role="down", name="down")(hidden)
        return checkpoint_name(y, "down")

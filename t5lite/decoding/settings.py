"""All that shapes an answer apart from the model: one pytree, shared by every way to decode."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from t5lite.decoding.constraints import Constraints
from t5lite.decoding.sampling import Sampling
from t5lite.decoding.written import Written

LogitsFn = Callable[[jax.Array, Written], jax.Array]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Settings:
    """How rows are written, and when they end.

    Numbers are traced: others of the same kind need no compilation. What is an array of `[rows]`
    differs from row to row.

    Args:
      eos_id: the token that ends a row.
      limits: most tokens a row writes, a scalar or `[rows]` int32, at least 1; None for as many as
        there is room for.
      sampling: how the next token is drawn.
      constraints: which tokens may come next, and where a row ends early.
      logits_fn: a rule of your own, `(logits [rows, vocab] float32, written) -> logits`, applied
        behind `constraints` and before `sampling`; compiled anew for each function.
      pad_id: what follows a row's end.
    """

    eos_id: int = dataclasses.field(metadata={"static": True})
    limits: jax.Array | int | None = None
    sampling: Sampling = Sampling()
    constraints: Constraints = Constraints()
    logits_fn: LogitsFn | None = dataclasses.field(default=None, metadata={"static": True})
    pad_id: int = dataclasses.field(default=0, metadata={"static": True})

    def adjusted(self, logits: jax.Array, written: Written) -> jax.Array:
        """Returns what `constraints` and `logits_fn` make of the model's logits.

        Args:
          logits: `[rows, vocab]`, any float dtype.
          written: what stands before the token that they are for.

        Returns:
          `[rows, vocab]` float32.
        """
        logits = self.constraints.apply(logits.astype(jnp.float32), written, eos_id=self.eos_id)
        return logits if self.logits_fn is None else self.logits_fn(logits, written)

    def ended(self, written: Written) -> jax.Array:
        """Returns `[rows]` bool: rows whose last token is EOS, that hold a stop sequence's end or
        that are as long as they may be. Rows must have written at least one token."""
        last = jnp.take_along_axis(written.tokens, written.lengths[:, None] - 1, axis=1)[:, 0]
        limits = written.tokens.shape[1] if self.limits is None else self.limits
        limits = jnp.broadcast_to(jnp.asarray(limits, jnp.int32), last.shape)
        return (
            (last == self.eos_id) | (written.lengths >= limits) | self.constraints.stopped(written)
        )

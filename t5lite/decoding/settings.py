"""All that shapes an answer apart from the model: one pytree, shared by every way to decode."""

import dataclasses
from collections.abc import Callable, Sequence

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
      eos_ids: tokens that end a row, `[n]` or `[1 or rows, n]` int32, -1 for none. The first is the
        one that ends choices. An array of a few more places than needed suits other models too.
      limits: most tokens a row writes, a scalar or `[rows]` int32, at least 1; None for as many as
        there is room for.
      sampling: how the next token is drawn.
      constraints: which tokens may come next, and where a row ends early.
      logits_fn: a rule of your own, `(logits [rows, vocab] float32, written) -> logits`, applied
        behind `constraints` and before `sampling`; compiled anew for each function.
      pad_id: what follows a row's end.
    """

    eos_ids: jax.Array | Sequence[int]
    limits: jax.Array | int | None = None
    sampling: Sampling = Sampling()
    constraints: Constraints = Constraints()
    logits_fn: LogitsFn | None = dataclasses.field(default=None, metadata={"static": True})
    pad_id: int = dataclasses.field(default=0, metadata={"static": True})

    @property
    def ends(self) -> jax.Array:
        """Returns `[1 or rows, n]` int32, the tokens that end a row."""
        return jnp.atleast_2d(jnp.asarray(self.eos_ids, jnp.int32))

    def adjusted(self, logits: jax.Array, written: Written) -> jax.Array:
        """Returns what `constraints` and `logits_fn` make of the model's logits.

        Args:
          logits: `[rows, vocab]`, any float dtype.
          written: what stands before the token that they are for.

        Returns:
          `[rows, vocab]` float32.
        """
        logits = self.constraints.apply(
            logits.astype(jnp.float32), written, eos_ids=self.ends, limits=self.limits
        )
        return logits if self.logits_fn is None else self.logits_fn(logits, written)

    def ended(self, written: Written) -> jax.Array:
        """Returns `[rows]` bool: rows whose last token is an EOS or completes a stop, and those as
        long as they may be. Rows must have written at least one token."""
        last = jnp.take_along_axis(written.tokens, written.lengths[:, None] - 1, axis=1)[:, 0]
        limits = written.tokens.shape[1] if self.limits is None else self.limits
        limits = jnp.broadcast_to(jnp.asarray(limits, jnp.int32), last.shape)
        is_eos = jnp.any(last[:, None] == self.ends, axis=1)
        return is_eos | (written.lengths >= limits) | self.constraints.stopped(written)

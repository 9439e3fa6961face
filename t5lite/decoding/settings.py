"""Generation settings: one pytree, shared by all decoding algorithms."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float32, Int32

from t5lite.decoding.constraints import Constraints, Flags
from t5lite.decoding.output import Output, Rows, filled
from t5lite.decoding.sampling import Sampling
from t5lite.decoding.stops import Stops, token_table

LogitsFn = Callable[[jax.Array, Output], jax.Array]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Settings(Rows):
    """How rows are generated, and when they end.

    Values are traced: others of the same shapes compile nothing. `Settings.neutral` has every value
    as an array by row, so that any request can enter a running batch; None leaves a rule out.

    Args:
      eos_ids: tokens that end a row, `[n]` or `[1 or rows, n]` int32, -1 for none. The first ends
        choices.
      limits: most tokens of a row, a scalar or `[rows]` int32, at least 1; None for the capacity.
      sampling: how the next token is drawn.
      constraints: which tokens are allowed next, and where a row ends early.
      num_top: `[rows]` int32, above 0 for rows whose most probable tokens are recorded, if the
        state has room for them; see `start`.
      logits_fn: a custom logits processor, `(logits [rows, vocab] float32, output) -> logits`,
        after `constraints` and before `sampling`; each function compiles once.
      pad_id: follows a row's end.
    """

    eos_ids: jax.Array | Sequence[int] = filled(-1)
    limits: jax.Array | int | None = None
    sampling: Sampling = Sampling()
    constraints: Constraints = Constraints()
    num_top: jax.Array | None = None
    logits_fn: LogitsFn | None = dataclasses.field(default=None, metadata={"static": True})
    pad_id: int = dataclasses.field(default=0, metadata={"static": True})

    @classmethod
    def neutral(
        cls,
        rows: int,
        vocab: int,
        *,
        max_eos: int = 4,
        max_bias: int = 32,
        max_forced: int = 16,
        max_choices: int = 8,
        choice_length: int = 16,
        max_stops: int = 4,
        stop_length: int = 16,
        token_bytes: Any = None,
    ) -> "Settings":
        """Returns greedy settings without rules and a limit of 1 token: host arrays to be filled.

        Args:
          rows, vocab: of the batch, and of the model.
          max_eos, max_bias, max_forced, max_choices, max_stops: most ids or texts of a row.
          choice_length, stop_length: most tokens of a choice, EOS included, and bytes of a stop.
          token_bytes: see `Stops`; needed by rows with stops.
        """

        def full(*shape: int, value: Any = -1, dtype: Any = np.int32) -> Any:
            return np.full((rows, *shape), value, dtype)

        def number(value: float) -> Any:
            return full(value=value, dtype=np.float32)

        banned: Any = np.zeros(vocab, bool)
        token_bytes = token_table((), vocab=vocab) if token_bytes is None else token_bytes
        return cls(
            eos_ids=full(max_eos),
            limits=full(value=1),
            sampling=Sampling(
                temperature=number(0.0),
                top_k=full(value=0),
                top_p=number(1.0),
                min_p=number(0.0),
                typical_p=number(1.0),
            ),
            constraints=Constraints(
                banned=banned,
                repetition_penalty=number(1.0),
                presence_penalty=number(0.0),
                frequency_penalty=number(0.0),
                bias_ids=full(max_bias),
                bias=full(max_bias, value=0.0, dtype=np.float32),
                no_repeat_ngram_size=full(value=0),
                min_new_tokens=full(value=0),
                choices=full(max_choices, choice_length),
                forced=full(max_forced),
                forced_last=full(),
                stops=Stops(
                    token_bytes, full(max_stops, stop_length), full(value=True, dtype=bool)
                ),
            ),
            num_top=full(value=0),
        )

    @property
    def ends(self) -> Int32[Array, "any n"]:
        """`[1 or rows, n]` int32, the tokens that end a row."""
        return jnp.atleast_2d(jnp.asarray(self.eos_ids, jnp.int32))

    def flags(self) -> Flags:
        """Returns which rules some row has; a loop computes it once, see `Constraints.apply`."""
        flags = self.constraints.flags()
        if self.sampling.temperature is not None:
            flags["temperature"] = jnp.any(jnp.asarray(self.sampling.temperature) > 0)
        if self.num_top is not None:
            flags["num_top"] = jnp.any(self.num_top > 0)
        return flags

    def adjusted(
        self, logits: Float[Array, "rows vocab"], output: Output, flags: Flags | None = None
    ) -> Float32[Array, "rows vocab"]:
        """Returns the logits after `constraints` and `logits_fn`; see `Constraints.apply`."""
        logits = self.constraints.apply(
            logits, output, eos_ids=self.ends, limits=self.limits, flags=flags
        )
        return logits if self.logits_fn is None else self.logits_fn(logits, output)

    def ended(self, output: Output, flags: Flags | None = None) -> Bool[Array, " rows"]:
        """Returns `[rows]` bool: nonempty rows that end by an EOS, a stop, or their limit."""
        return self.complete(output) | self.constraints.stopped(output, flags)

    def complete(self, output: Output) -> Bool[Array, " rows"]:
        """Returns `[rows]` bool: rows that end with an EOS, or at their limit."""
        last = jnp.take_along_axis(output.tokens, output.lengths[:, None] - 1, axis=1)[:, 0]
        limits = output.tokens.shape[1] if self.limits is None else self.limits
        limits = jnp.broadcast_to(jnp.asarray(limits, jnp.int32), last.shape)
        return jnp.any(last[:, None] == self.ends, axis=1) | (output.lengths >= limits)

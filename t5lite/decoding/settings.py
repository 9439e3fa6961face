"""All that shapes an output apart from the model: one pytree, shared by every way to decode."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float32, Int32

from t5lite.decoding.constraints import Constraints, Flags
from t5lite.decoding.output import Output, insert_rows
from t5lite.decoding.sampling import Sampling
from t5lite.decoding.stops import Stops, token_table

LogitsFn = Callable[[jax.Array, Output], jax.Array]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Settings:
    """How rows are generated, and when they end.

    Values are traced: others of the same shapes compile nothing. `Settings.neutral` has every value
    as an array by row, so that a request of any kind can enter a running batch; None leaves a rule
    out of the compiled function.

    Args:
      eos_ids: tokens that end a row, `[n]` or `[1 or rows, n]` int32, -1 for none. The first ends
        choices.
      limits: most tokens of a row, a scalar or `[rows]` int32, at least 1; None for the capacity.
      sampling: how the next token is drawn.
      constraints: which tokens may come next, and where a row ends early.
      num_top: `[rows]` int32, rows whose most probable tokens are recorded, if above 0 and the
        state has room for them; see `start`.
      logits_fn: a logits processor of your own, `(logits [rows, vocab] float32, output) -> logits`,
        applied after `constraints` and before `sampling`; compiled anew for each function.
      pad_id: follows a row's end.
    """

    eos_ids: jax.Array | Sequence[int]
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
        """Returns greedy settings without rules, an array for each, and a limit of 1 token.

        Args:
          rows: of the batch.
          vocab: of the model.
          max_eos, max_bias, max_forced, max_choices, max_stops: most ids or texts of a row.
          choice_length: most tokens of a choice, its EOS included.
          stop_length: most bytes of a stop.
          token_bytes: see `Stops`; needed by rows with stops.

        Returns:
          Host arrays, which callers may fill.
        """

        def full(*shape: int, value: Any = -1, dtype: Any = np.int32) -> Any:
            return np.full((rows, *shape), value, dtype)

        banned: Any = np.zeros(vocab, bool)
        token_bytes = token_table((), vocab=vocab) if token_bytes is None else token_bytes
        number = lambda value: full(value=value, dtype=np.float32)  # noqa: E731
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

    def insert(self, rows: jax.Array, new: "Settings") -> "Settings":
        """Replaces whole rows, as `State.insert` does.

        Args:
          rows: `[n]` int32.
          new: settings of `n` rows, as `neutral` lays them out, of at most these sizes.

        Raises:
          InputError: if there is not enough room, e.g. for choices.
        """

        def put(name: str, fill: int = 0) -> jax.Array:
            return insert_rows(name, getattr(self, name), rows, getattr(new, name), fill=fill)

        mine, theirs = self.sampling, new.sampling
        sampling = jax.tree.map(
            lambda old, new: insert_rows("sampling", old, rows, new), mine, theirs
        )
        return dataclasses.replace(
            self,
            eos_ids=put("eos_ids", -1),
            limits=put("limits"),
            sampling=sampling,
            constraints=self.constraints.insert(rows, new.constraints),
            num_top=put("num_top"),
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
        """Returns the model's logits after `constraints` and `logits_fn`.

        Args:
          logits: `[rows, vocab]`, any float dtype.
          output: the tokens before the one that they predict.
          flags: as `flags()` returns them; None computes them.

        Returns:
          `[rows, vocab]` float32.
        """
        logits = self.constraints.apply(
            logits, output, eos_ids=self.ends, limits=self.limits, flags=flags
        )
        return logits if self.logits_fn is None else self.logits_fn(logits, output)

    def ended(self, output: Output, flags: Flags | None = None) -> Bool[Array, " rows"]:
        """Returns `[rows]` bool: rows whose last token is an EOS or completes a stop, and those at
        their limit. Every row must have a token."""
        return self.complete(output) | self.constraints.stopped(output, flags)

    def complete(self, output: Output) -> Bool[Array, " rows"]:
        """Returns `[rows]` bool: rows that end with an EOS, or at their limit."""
        last = jnp.take_along_axis(output.tokens, output.lengths[:, None] - 1, axis=1)[:, 0]
        limits = output.tokens.shape[1] if self.limits is None else self.limits
        limits = jnp.broadcast_to(jnp.asarray(limits, jnp.int32), last.shape)
        return jnp.any(last[:, None] == self.ends, axis=1) | (output.lengths >= limits)

"""Which tokens may come next, and where a row ends early."""

import dataclasses
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from t5lite.decoding.written import Written
from t5lite.errors import InputError, unknown


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Constraints:
    """Rules about the next token; None where there is none, which costs nothing.

    They work in the order below. A scalar, or a first axis of 1, holds for every row; `[rows]`
    differs from row to row. What may not come gets -inf. Where rules contradict each other the last
    one wins, so that some token is left: the continuations of choices come if they are all barred,
    and a forced token comes in any case.

    Callers refuse what they can see to be a contradiction: a choice with a banned token in it, or
    shorter than `min_new_tokens`; forced tokens that no choice begins with. They must refuse what
    leaves no token: all of them banned, and ids outside the vocabulary.

    Args:
      repetition_penalty: above 0, 1 is off: divides the positive and multiplies the negative logits
        of tokens in `written.prompts` or written. Source: Keskar et al. 2019, arXiv:1909.05858,
        §4.1; negative logits as in transformers' `RepetitionPenaltyLogitsProcessor`.
      presence_penalty: in nats, 0 is off: taken off the logits of tokens written, however often;
        prompts do not count.
      banned: `[vocab]` or `[rows, vocab]` bool, tokens that never come.
      min_new_tokens: no EOS before that many other tokens are written; 0 is off.
      choices: `[1 or rows, num_choices, length]` int32, -1 behind the end, each with its EOS:
        rows write one of these. A row that has written something else, or one in full, can write
        EOS alone.
      forced: `[1 or rows, n]` int32, the row's first tokens, -1 where it is free.
      stops: `[1 or rows, num_stops, length]` int32, -1 in front (`pack_sequences` with
        `align="right"`); see `stopped`.

    Raises:
      InputError: a Python number out of its range; arrays are not looked into.
    """

    repetition_penalty: jax.Array | float | None = None
    presence_penalty: jax.Array | float | None = None
    banned: jax.Array | None = None
    min_new_tokens: jax.Array | int | None = None
    choices: jax.Array | None = None
    forced: jax.Array | None = None
    stops: jax.Array | None = None

    def __post_init__(self) -> None:
        for name, allowed, good in (
            ("repetition_penalty", "above 0; 1 is off", lambda value: 0 < value < math.inf),
            ("presence_penalty", "finite; 0 is off", math.isfinite),
            ("min_new_tokens", "a whole number, at least 0", lambda value: value >= 0 == value % 1),
        ):
            value = getattr(self, name)  # of any kind when JAX rebuilds the tree
            if isinstance(value, int | float) and not good(value):
                raise InputError(f"{name}={value} must be {allowed}")

    def apply(self, logits: jax.Array, written: Written, *, eos_id: int) -> jax.Array:
        """Returns the logits under these rules.

        Args:
          logits: `[rows, vocab]`, any float dtype.
          written: what stands before the token that they are for.
          eos_id: the token that ends a row.

        Returns:
          `[rows, vocab]` float32, -inf for tokens that may not come.
        """
        logits = logits.astype(jnp.float32)
        ids = jax.lax.broadcasted_iota(jnp.int32, logits.shape, 1)
        if self.repetition_penalty is not None:
            penalty = _column(self.repetition_penalty, jnp.float32)
            seen = _mentioned(_tokens(written, prompts=True), logits)
            penalised = jnp.where(logits > 0, logits / penalty, logits * penalty)
            logits = jnp.where(seen, penalised, logits)
        if self.presence_penalty is not None:
            penalty = _column(self.presence_penalty, jnp.float32)
            seen = _mentioned(_tokens(written), logits)
            logits = jnp.where(seen, logits - penalty, logits)
        if self.banned is not None:
            logits = jnp.where(jnp.atleast_2d(self.banned), -jnp.inf, logits)
        if self.min_new_tokens is not None:
            early = written.lengths[:, None] < _column(self.min_new_tokens, jnp.int32)
            logits = jnp.where(early & (ids == eos_id), -jnp.inf, logits)
        if self.choices is not None:
            following = _following(self.choices, written)
            ended = ~jnp.any(following >= 0, axis=-1, keepdims=True)
            allowed = _mentioned(jnp.where(ended, eos_id, following), logits)
            barred = jnp.all(
                jnp.where(allowed, logits, -jnp.inf) == -jnp.inf, axis=-1, keepdims=True
            )
            logits = jnp.where(allowed, jnp.where(barred, 0.0, logits), -jnp.inf)
        if self.forced is not None:
            only = _next(self.forced, written)[:, None]
            logits = jnp.where(only < 0, logits, jnp.where(ids == only, 0.0, -jnp.inf))
        return logits

    def stopped(self, written: Written) -> jax.Array:
        """Returns `[rows]` bool: whether a row has just written the whole of one of the stops."""
        if self.stops is None:
            return jnp.zeros(written.lengths.shape, bool)
        length = self.stops.shape[-1]
        places = written.lengths[:, None] - jnp.arange(length, 0, -1, dtype=jnp.int32)[None]
        last = jnp.take_along_axis(written.tokens, jnp.maximum(places, 0), axis=1)
        last = jnp.where(places >= 0, last, -2)[:, None]  # -2 is no token of a stop
        agrees = jnp.all((self.stops == last) | (self.stops < 0), axis=-1)
        return jnp.any(agrees & jnp.any(self.stops >= 0, axis=-1), axis=-1)


def pack_sequences(sequences: Sequence[Sequence[int]], *, align: str = "left") -> np.ndarray:
    """Returns token sequences as one array, `[n, longest]` int32, -1 where there is no token.

    Args:
      sequences: `n` of them, of any lengths.
      align: `"left"` pads behind them, as choices are, `"right"` before them, as stops are.

    Raises:
      InputError: another `align`.
    """
    if align not in ("left", "right"):
        raise unknown("align", align, ("left", "right"))
    packed = np.full((len(sequences), max(map(len, sequences), default=0)), -1, np.int32)
    for row, tokens in zip(packed, sequences, strict=True):
        row[: len(tokens)] = tokens
        if align == "right":
            row[:] = np.roll(row, -len(tokens))
    return packed


def _column(value: jax.Array | float, dtype: jax.typing.DTypeLike) -> jax.Array:
    """`[1, 1]` or `[rows, 1]`, which stands against `[rows, vocab]`."""
    return jnp.asarray(value, dtype).reshape(-1, 1)


def _tokens(written: Written, *, prompts: bool = False) -> jax.Array:
    """Returns `[rows, n]` int32: what is written, behind the prompts if asked; -1 for no token."""
    tokens = jnp.where(written.inside, written.tokens, -1)
    if not prompts or written.prompts is None:
        return tokens
    return jnp.concatenate([written.prompts, tokens], axis=1)


def _mentioned(tokens: jax.Array, logits: jax.Array) -> jax.Array:
    """Returns `[rows, vocab]` bool, where `tokens` `[rows, n]` int32 hold an id; -1 is none."""
    rows, vocab = logits.shape
    places = jnp.where(tokens < 0, vocab, tokens)  # past the end, where it is dropped
    at = jax.lax.broadcasted_iota(jnp.int32, places.shape, 0)
    return jnp.zeros((rows, vocab), bool).at[at, places].set(True, mode="drop")


def _following(choices: jax.Array, written: Written) -> jax.Array:
    """Returns `[rows, num_choices]` int32: what comes next in each choice that agrees with all that
    is written, -1 if nothing does."""
    both = min(choices.shape[-1], written.tokens.shape[1])
    same = choices[..., :both] == written.tokens[:, None, :both]
    agrees = jnp.all(same | ~written.inside[:, None, :both], axis=-1)
    return jnp.where(agrees, _next(choices, written), -1)


def _next(sequences: jax.Array, written: Written) -> jax.Array:
    """Returns `[rows, ...]` int32: of `[1 or rows, ..., n]`, what stands where the row has come to,
    -1 past its end."""
    last = sequences.ndim - 1
    places = jax.lax.broadcasted_iota(jnp.int32, (1, *sequences.shape[1:]), last)
    here = places == written.lengths.reshape(-1, *[1] * last)
    return jnp.max(jnp.where(here, sequences, -1), axis=-1, initial=-1)

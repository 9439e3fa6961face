"""Which tokens may come next, and where a row ends early."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from t5lite.decoding.stops import Stops
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
    shorter than `min_new_tokens`; forced tokens that no choice begins with; all tokens banned, and
    ids outside the vocabulary. Rows that rules leave no token end: see `State.stuck`.

    Args:
      repetition_penalty: above 0, 1 is off: divides the positive and multiplies the negative logits
        of tokens in `written.prompts` or written. Source: Keskar et al. 2019, arXiv:1909.05858,
        §4.1; negative logits as in transformers' `RepetitionPenaltyLogitsProcessor`.
      no_repeat_ngram_size: no n-gram of that many tokens, in `written.prompts` or written, comes
        twice; at least 1; the same for all rows. Source: Paulus et al. 2017, arXiv:1705.04304,
        §2.5.
      presence_penalty: in nats, 0 is off: taken off the logits of tokens written, however often;
        prompts do not count.
      banned: `[vocab]` or `[rows, vocab]` bool, tokens that never come.
      banned_first: `[vocab]` or `[rows, vocab]` bool, tokens that are not a row's first, or the
        first after those that are forced.
      banned_sequences: `[1 or rows, n, length]` int32, -1 in front (`pack_sequences` with
        `align="right"`): none of these is ever completed, also where it began in the prompt.
      min_new_tokens: no EOS before that many other tokens are written; 0 is off.
      choices: `[1 or rows, num_choices, length]` int32, -1 behind the end, each with its EOS:
        rows write one of these. A row that has written something else, or one in full, can write
        EOS alone.
      forced: `[1 or rows, n]` int32, the row's first tokens, -1 where it is free.
      forced_last: `[1 or rows]` int32, the token at a row's limit, -1 where it is free.
      stops: texts that end a row; see `stop_table`.

    Raises:
      InputError: a Python number out of its range; arrays are not looked into.
    """

    repetition_penalty: jax.Array | float | None = None
    presence_penalty: jax.Array | float | None = None
    banned: jax.Array | None = None
    banned_first: jax.Array | None = None
    banned_sequences: jax.Array | None = None
    min_new_tokens: jax.Array | int | None = None
    choices: jax.Array | None = None
    forced: jax.Array | None = None
    forced_last: jax.Array | None = None
    stops: Stops | None = None
    no_repeat_ngram_size: int | None = dataclasses.field(default=None, metadata={"static": True})

    def __post_init__(self) -> None:
        for name, allowed, good in (
            ("repetition_penalty", "above 0; 1 is off", lambda value: 0 < value < math.inf),
            ("presence_penalty", "finite; 0 is off", math.isfinite),
            ("min_new_tokens", "a whole number, at least 0", lambda value: value >= 0 == value % 1),
            ("no_repeat_ngram_size", "a whole number, at least 1", lambda value: value >= 1),
        ):
            value = getattr(self, name)  # of any kind when JAX rebuilds the tree
            if isinstance(value, int | float) and not good(value):
                raise InputError(f"{name}={value} must be {allowed}")

    @property
    def reads_prompts(self) -> bool:
        """Whether some rule needs `written.prompts`."""
        rules = (self.repetition_penalty, self.no_repeat_ngram_size, self.banned_sequences)
        return any(rule is not None for rule in rules)

    def apply(
        self,
        logits: jax.Array,
        written: Written,
        *,
        eos_ids: jax.Array,
        limits: jax.Array | int | None = None,
    ) -> jax.Array:
        """Returns the logits under these rules.

        Args:
          logits: `[rows, vocab]`, any float dtype.
          written: what stands before the token that they are for.
          eos_ids: `[1 or rows, n]` int32, the tokens that end a row, -1 for none.
          limits: a scalar or `[rows]` int32, most tokens a row writes; for `forced_last`.

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
        if self.banned_first is not None:
            first: Any = 0
            if self.forced is not None:
                first = jnp.sum(self.forced >= 0, axis=1, dtype=jnp.int32)
            here = (written.lengths == first)[:, None]
            logits = jnp.where(here & jnp.atleast_2d(self.banned_first), -jnp.inf, logits)
        if self.no_repeat_ngram_size is not None:
            repeated = _repeated(written.text(), self.no_repeat_ngram_size)
            logits = jnp.where(_mentioned(repeated, logits), -jnp.inf, logits)
        if self.banned_sequences is not None:
            completed = _completed(written.text(), self.banned_sequences)
            logits = jnp.where(_mentioned(completed, logits), -jnp.inf, logits)
        if self.min_new_tokens is not None:
            early = written.lengths[:, None] < _column(self.min_new_tokens, jnp.int32)
            ends = jnp.zeros(logits.shape, bool)
            for each in range(eos_ids.shape[1]):  # few, and compared in one pass
                ends |= ids == eos_ids[:, each : each + 1]
            logits = jnp.where(early & ends, -jnp.inf, logits)
        if self.choices is not None:
            following = _following(self.choices, written)
            ended = ~jnp.any(following >= 0, axis=-1, keepdims=True)
            allowed = _mentioned(jnp.where(ended, eos_ids[:, :1], following), logits)
            barred = jnp.all(
                jnp.where(allowed, logits, -jnp.inf) == -jnp.inf, axis=-1, keepdims=True
            )
            logits = jnp.where(allowed, jnp.where(barred, 0.0, logits), -jnp.inf)
        if self.forced is not None:
            only = _next(self.forced, written)[:, None]
            logits = jnp.where(only < 0, logits, jnp.where(ids == only, 0.0, -jnp.inf))
        if self.forced_last is not None:
            if limits is None:
                limits = written.tokens.shape[1]
            at_end = written.lengths == jnp.asarray(limits, jnp.int32) - 1
            only = jnp.where(at_end, self.forced_last, -1)[:, None]
            logits = jnp.where(only < 0, logits, jnp.where(ids == only, 0.0, -jnp.inf))
        return logits

    def stopped(self, written: Written) -> jax.Array:
        """Returns `[rows]` bool: whether a row's text has just come to hold one of the stops."""
        if self.stops is None:
            return jnp.zeros(written.lengths.shape, bool)
        return self.stops.found(written)


def pack_sequences(sequences: Sequence[Sequence[int]], *, align: str = "left") -> np.ndarray:
    """Returns token sequences as one array, `[n, longest]` int32, -1 where there is no token.

    Args:
      sequences: `n` of them, of any lengths.
      align: `"left"` pads after them, as choices are, `"right"` before them, as banned ones are.

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


def _repeated(text: jax.Array, size: int) -> jax.Array:
    """Returns `[rows, n]` int32, tokens that would complete an n-gram of `size` tokens that is in
    `text` `[rows, length]` already, -1 for none; see `Written.text`."""
    count = text.shape[1] - size + 1
    if count < 1:
        return jnp.full((len(text), 1), -1, jnp.int32)
    same = jnp.ones((len(text), count), bool)
    for place in range(size - 1):
        last = text[:, count + place, None]
        same &= (text[:, place : place + count] == last) & (last >= 0)
    return jnp.where(same, text[:, size - 1 :], -1)


def _completed(text: jax.Array, sequences: jax.Array) -> jax.Array:
    """Returns `[rows, n]` int32, the last tokens of those of `sequences` `[1 or rows, n, length]`
    whose other tokens `text` ends with, -1 for the others; see `Written.text`."""
    before = sequences.shape[-1] - 1
    text = jnp.pad(text, ((0, 0), (before, 0)), constant_values=-1)
    ends = text[:, text.shape[1] - before :][:, None]
    agrees = jnp.all((sequences[..., :-1] == ends) | (sequences[..., :-1] < 0), axis=-1)
    return jnp.where(agrees, sequences[..., -1], -1)


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

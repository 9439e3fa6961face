"""Rules about the next token, and where a row ends early."""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float32, Int32

from t5lite.decoding.output import Output, Rows, filled, shared
from t5lite.decoding.sampling import check_numbers, column
from t5lite.decoding.stops import Stops
from t5lite.errors import unknown

Flags = dict[str, jax.Array]  # by field: bool scalars, whether some row has a rule

# The neutral number of each rule; None: an array of ids, all -1.
_NEUTRAL = {
    "repetition_penalty": 1,
    "presence_penalty": 0,
    "frequency_penalty": 0,
    "bias_ids": None,
    "no_repeat_ngram_size": 0,
    "banned_sequences": None,
    "min_new_tokens": 0,
    "choices": None,
    "forced": None,
    "forced_last": None,
}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Constraints(Rows):
    """Rules about the next token.

    A rule is None, which leaves it out of the compiled function, or an array: a scalar or a first
    axis of 1 for every row, `[rows]` to differ by row. A rule runs only if some row's value is not
    neutral. `insert` leaves banned tokens and sequences as they are.

    Rules apply in the order below; excluded tokens get -inf. The last rule wins: if all
    continuations of choices are excluded they are allowed nevertheless, and a forced token always
    is. A row without any token ends: see `State.stuck`. Callers refuse contradictions between
    choices, forced and banned tokens and lengths.

    Args:
      banned: `[vocab]` or `[rows, vocab]` bool, tokens that are never generated.
      banned_first: likewise, excluded as the first token, or the first after forced ones.
      repetition_penalty: above 0, 1 is neutral: divides the positive and multiplies the negative
        logits of tokens in `output.prompts` and in the output. Source: Keskar et al. 2019,
        arXiv:1909.05858, §4.1; negative logits as in transformers'
        `RepetitionPenaltyLogitsProcessor`.
      presence_penalty: in nats, 0 is neutral: subtracted from the logits of tokens in the output,
        prompts excluded.
      frequency_penalty: in nats, 0 is neutral: likewise, times the token's count.
      bias_ids: `[1 or rows, n]` int32, tokens whose logits get a bias, -1 for none.
      bias: `[1 or rows, n]` float32, those biases in nats; -inf bans a token.
      no_repeat_ngram_size: 0 is neutral: no n-gram of this size, in `output.prompts` or the output,
        occurs twice. Source: Paulus et al. 2017, arXiv:1705.04304, §2.5.
      banned_sequences: `[1 or rows, n, length]` int32, -1 in front (`pack_sequences` with
        `align="right"`), never completed, even if begun in the prompt.
      min_new_tokens: 0 is neutral: no EOS before this number of other tokens.
      choices: `[1 or rows, num_choices, length]` int32, -1 after the end, each with its EOS: the
        output is one of these; -1 everywhere is neutral. A row with another output, or with a
        complete choice, can only get the EOS.
      forced: `[1 or rows, n]` int32, the row's first tokens, -1 for free ones.
      forced_last: `[1 or rows]` int32, the token at a row's limit, -1 for a free one.
      stops: texts that end a row.
    Raises: InputError if a Python number is out of range; arrays are not checked.
    """

    banned: jax.Array | None = shared(None)
    banned_first: jax.Array | None = shared(None)
    repetition_penalty: jax.Array | float | None = None
    presence_penalty: jax.Array | float | None = None
    frequency_penalty: jax.Array | float | None = None
    bias_ids: jax.Array | None = filled(-1, None)
    bias: jax.Array | None = None
    no_repeat_ngram_size: jax.Array | int | None = None
    banned_sequences: jax.Array | None = shared(None)
    min_new_tokens: jax.Array | int | None = None
    choices: jax.Array | None = filled(-1, None)
    forced: jax.Array | None = filled(-1, None)
    forced_last: jax.Array | None = None
    stops: Stops | None = None

    def __post_init__(self) -> None:
        check_numbers(
            self,
            repetition_penalty=("above 0; 1 is neutral", lambda value: 0 < value < math.inf),
            presence_penalty=("finite; 0 is neutral", math.isfinite),
            frequency_penalty=("finite; 0 is neutral", math.isfinite),
            min_new_tokens=("a whole number, at least 0", lambda value: value >= 0 == value % 1),
            no_repeat_ngram_size=(
                "a whole number, at least 0 (neutral)",
                lambda value: value >= 0 == value % 1,
            ),
        )

    def flags(self) -> Flags:
        """Returns which rules some row has, so that a loop computes it once; see `apply`."""
        flags: Flags = {}
        for name, neutral in _NEUTRAL.items():
            if getattr(self, name) is not None:
                value = jnp.asarray(getattr(self, name))
                if neutral is None:
                    flags[name] = jnp.any(value >= 0)
                else:
                    flags[name] = jnp.any(value != jnp.asarray(neutral, value.dtype))
        if self.stops is not None:
            flags["stops"] = jnp.any(self.stops.texts >= 0)
        return flags

    def apply(
        self,
        logits: Float[Array, "rows vocab"],
        output: Output,
        *,
        eos_ids: Int32[Array, "any n"],
        limits: jax.Array | int | None = None,
        flags: Flags | None = None,
    ) -> Float32[Array, "rows vocab"]:
        """Returns the logits under these rules.

        Args:
          output: the tokens before the predicted one.
          eos_ids: `[1 or rows, n]` int32, the tokens that end a row, -1 for none.
          limits: a scalar or `[rows]` int32, most tokens of a row; for `forced_last`.
          flags: as `flags()` returns them; None computes them.
        """
        flags = self.flags() if flags is None else flags
        most = jnp.asarray(output.tokens.shape[1] if limits is None else limits, jnp.int32)
        logits = self.without_banned(logits, output)
        for names, rule in (
            (("repetition_penalty",), self._repetition),
            (("presence_penalty", "frequency_penalty"), self._counted),
            (("bias_ids",), self._biased),
            (("no_repeat_ngram_size",), self._no_repeats),
            (("banned_sequences",), self._no_sequences),
            (("min_new_tokens",), functools.partial(self._not_ended, eos_ids=eos_ids)),
            (("choices",), functools.partial(self._chosen, eos_ids=eos_ids)),
            (("forced",), self._forced),
            (("forced_last",), functools.partial(self._forced_last, limits=most)),
        ):
            active = [flags[name] for name in names if name in flags]
            if active:
                logits = jax.lax.cond(
                    functools.reduce(jnp.logical_or, active),
                    rule,
                    lambda logits, output: logits,
                    logits,
                    output,
                )
        return logits

    def without_banned(
        self, logits: Float[Array, "rows vocab"], output: Output
    ) -> Float32[Array, "rows vocab"]:
        """Returns the logits as float32, -inf at `banned` and `banned_first` tokens."""
        logits = logits.astype(jnp.float32)
        if self.banned is not None:
            logits = jnp.where(jnp.atleast_2d(self.banned), -jnp.inf, logits)
        if self.banned_first is not None:
            first: Any = 0
            if self.forced is not None:
                first = jnp.sum(self.forced >= 0, axis=1, dtype=jnp.int32)
            at_first = (output.lengths == first)[:, None]
            logits = jnp.where(at_first & jnp.atleast_2d(self.banned_first), -jnp.inf, logits)
        return logits

    def stopped(self, output: Output, flags: Flags | None = None) -> Bool[Array, " rows"]:
        """Returns `[rows]` bool: rows whose last token completes a stop."""
        none = jnp.zeros(output.lengths.shape, bool)
        if self.stops is None:
            return none
        flags = self.flags() if flags is None else flags
        return jax.lax.cond(flags["stops"], self.stops.completed, lambda output: none, output)

    # The rules, each `(logits [rows, vocab] float32, output) -> logits`.

    def _repetition(self, logits: jax.Array, output: Output) -> jax.Array:
        penalty = column(self.repetition_penalty)
        tokens = jnp.where(output.valid, output.tokens, -1)
        if output.prompts is not None:
            tokens = jnp.concatenate([output.prompts, tokens], axis=1)
        penalised = jnp.where(logits > 0, logits / penalty, logits * penalty)
        return jnp.where(_contained(tokens, logits), penalised, logits)

    def _counted(self, logits: jax.Array, output: Output) -> jax.Array:
        tokens = jnp.where(output.valid, output.tokens, -1)
        counts = _scattered(tokens, jnp.zeros_like(logits), jnp.ones_like(tokens, jnp.float32))
        if self.presence_penalty is not None:
            penalty = column(self.presence_penalty)
            logits = jnp.where(counts > 0, logits - penalty, logits)
        if self.frequency_penalty is not None:
            logits = logits - counts * column(self.frequency_penalty)
        return logits

    def _biased(self, logits: jax.Array, output: Output) -> jax.Array:
        shape = (len(logits), self.bias_ids.shape[-1])  # type: ignore[union-attr]
        ids, bias = (jnp.broadcast_to(x, shape) for x in (self.bias_ids, self.bias))  # type: ignore
        return _scattered(ids, logits, bias)

    def _no_repeats(self, logits: jax.Array, output: Output) -> jax.Array:
        sizes = jnp.broadcast_to(jnp.asarray(self.no_repeat_ngram_size, jnp.int32), len(logits))
        return jnp.where(_contained(_repeated(output.text(), sizes), logits), -jnp.inf, logits)

    def _no_sequences(self, logits: jax.Array, output: Output) -> jax.Array:
        completed = _completed(output.text(), self.banned_sequences)  # type: ignore[arg-type]
        return jnp.where(_contained(completed, logits), -jnp.inf, logits)

    def _not_ended(self, logits: jax.Array, output: Output, *, eos_ids: jax.Array) -> jax.Array:
        early = output.lengths[:, None] < column(self.min_new_tokens, jnp.int32)
        ids = jax.lax.broadcasted_iota(jnp.int32, logits.shape, 1)
        ends = jnp.zeros(logits.shape, bool)
        for index in range(eos_ids.shape[1]):  # few, compared in one pass
            ends |= ids == eos_ids[:, index, None]
        return jnp.where(early & ends, -jnp.inf, logits)

    def _chosen(self, logits: jax.Array, output: Output, *, eos_ids: jax.Array) -> jax.Array:
        choices: Any = self.choices
        following = _following(choices, output)
        ended = ~jnp.any(following >= 0, axis=-1, keepdims=True)
        allowed = _contained(jnp.where(ended, eos_ids[:, :1], following), logits)
        left = jnp.where(allowed, logits, -jnp.inf)
        excluded = jnp.all(left == -jnp.inf, axis=-1, keepdims=True)
        free = ~jnp.any(choices >= 0, axis=(1, 2))[:, None]
        left = jnp.where(allowed & excluded, 0.0, left)
        return jnp.where(free, logits, left)

    def _forced(self, logits: jax.Array, output: Output) -> jax.Array:
        return _only(_next(self.forced, output), logits)  # type: ignore[arg-type]

    def _forced_last(self, logits: jax.Array, output: Output, *, limits: jax.Array) -> jax.Array:
        at_end = output.lengths == limits - 1
        return _only(jnp.where(at_end, jnp.asarray(self.forced_last), -1), logits)


def pack_sequences(sequences: Sequence[Sequence[int]], *, align: str = "left") -> np.ndarray:
    """Returns token sequences as one array, `[n, longest]` int32, padded with -1.

    Args:
      align: `"left"` pads after sequences, as in choices, `"right"` before, as in banned sequences.
    Raises: InputError if `align` is another value.
    """
    if align not in ("left", "right"):
        raise unknown("align", align, ("left", "right"))
    packed = np.full((len(sequences), max(map(len, sequences), default=0)), -1, np.int32)
    for row, tokens in zip(packed, sequences, strict=True):
        row[: len(tokens)] = tokens
        if align == "right":
            row[:] = np.roll(row, -len(tokens))
    return packed


def _only(tokens: jax.Array, logits: jax.Array) -> jax.Array:
    """Returns logits that leave `tokens` `[1 or rows]` alone, 0 at it; -1 leaves a row as it is."""
    only, ids = tokens[:, None], jax.lax.broadcasted_iota(jnp.int32, logits.shape, 1)
    return jnp.where(only < 0, logits, jnp.where(ids == only, 0.0, -jnp.inf))


def _at(tokens: jax.Array, logits: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the indices of `tokens` `[rows, n]` in `logits`; those of -1 are out of range."""
    rows = jax.lax.broadcasted_iota(jnp.int32, tokens.shape, 0)
    return rows, jnp.where(tokens < 0, logits.shape[1], tokens)


def _scattered(tokens: jax.Array, logits: jax.Array, values: jax.Array) -> jax.Array:
    """Returns `logits` `[rows, vocab]` plus `values` `[rows, n]` at `tokens` `[rows, n]`."""
    return logits.at[_at(tokens, logits)].add(values, mode="drop")


def _contained(tokens: jax.Array, logits: jax.Array) -> jax.Array:
    """Returns `[rows, vocab]` bool, true at `tokens` `[rows, n]` int32; -1 is ignored."""
    return jnp.zeros(logits.shape, bool).at[_at(tokens, logits)].set(True, mode="drop")


def _repeated(text: jax.Array, sizes: jax.Array) -> jax.Array:
    """Returns `[rows, length]` int32, tokens that complete an n-gram of `text` again, else -1."""
    length = text.shape[1]
    positions = jnp.arange(length, dtype=jnp.int32)[None]

    def turn(back: jax.Array, same: jax.Array) -> jax.Array:
        last = jax.lax.dynamic_slice_in_dim(text, length - 1 - back, 1, axis=1)
        agrees = (jnp.roll(text, back, axis=1) == last) & (last >= 0) & (positions >= back)
        return same & (agrees | (back >= sizes - 1)[:, None])

    longest = jnp.minimum(jnp.max(sizes) - 1, length)
    same = jax.lax.fori_loop(0, longest, turn, jnp.ones(text.shape, bool))
    following = jnp.pad(text[:, 1:], ((0, 0), (0, 1)), constant_values=-1)
    following = jnp.where((sizes == 1)[:, None], text, following)
    long = (sizes - 1 > length)[:, None]  # more than there is to compare
    return jnp.where(same & (sizes > 0)[:, None] & ~long, following, -1)


def _completed(text: jax.Array, sequences: jax.Array) -> jax.Array:
    """Returns `[rows, n]` int32, the last token of sequences whose others end `text`; else -1."""
    before = sequences.shape[-1] - 1
    text = jnp.pad(text, ((0, 0), (before, 0)), constant_values=-1)
    ends = text[:, text.shape[1] - before :][:, None]
    agrees = jnp.all((sequences[..., :-1] == ends) | (sequences[..., :-1] < 0), axis=-1)
    return jnp.where(agrees, sequences[..., -1], -1)


def _following(choices: jax.Array, output: Output) -> jax.Array:
    """Returns `[rows, num_choices]` int32: the next token of each choice so far, or -1."""
    length = min(choices.shape[-1], output.tokens.shape[1])
    same = choices[..., :length] == output.tokens[:, None, :length]
    agrees = jnp.all(same | ~output.valid[:, None, :length], axis=-1)
    return jnp.where(agrees, _next(choices, output), -1)


def _next(sequences: jax.Array, output: Output) -> jax.Array:
    """Returns entries of `sequences` `[1 or rows, …, n]` at the row's length, -1 past the end."""
    last = sequences.ndim - 1
    positions = jax.lax.broadcasted_iota(jnp.int32, (1, *sequences.shape[1:]), last)
    is_next = positions == output.lengths.reshape(-1, *[1] * last)
    return jnp.max(jnp.where(is_next, sequences, -1), axis=-1, initial=-1)

"""Infilling by a masked language model: an encoder fills the mask tokens of a text."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int32

from t5lite.decoding.constraints import Constraints
from t5lite.decoding.output import Output
from t5lite.decoding.sampling import choose, token_log_probabilities
from t5lite.decoding.settings import Settings
from t5lite.errors import InputError


class Infilled(NamedTuple):
    """A text without mask tokens.

    Attributes:
      tokens: `[rows, length]` int32.
      log_probabilities: `[rows, length]` float32 in nats, of filled tokens under softmax(logits) of
        their iteration, NaN for logits that are NaN or infinite; 0 elsewhere.
    """

    tokens: jax.Array
    log_probabilities: jax.Array


Loop = tuple[jax.Array, jax.Array, Infilled]  # iterations done, remaining gaps, and the text


def infill(
    logits_fn: Callable[[jax.Array], jax.Array],
    tokens: Int32[Array, "rows length"],
    masked: Bool[Array, "rows length"],
    settings: Settings,
    *,
    turns: jax.Array | int = 1,
    keys: jax.Array | None = None,
) -> Infilled:
    """Fills the gaps of a text, at once or over several iterations, most confident tokens first.

    After iteration t a row has ⌈gaps · t / turns⌉ of its gaps filled; later iterations read them.

    Args:
      logits_fn: `tokens [rows, length] int32 -> logits [rows, length, vocab]`.
      tokens: `[rows, length]` int32, with the mask token in the gaps.
      masked: `[rows, length]` bool, the gaps.
      settings: `sampling`, and of the constraints `bias` and `banned`, which should hold the mask
        token; all others are for generation from left to right and must be None.
      turns: iterations, a scalar or `[rows]`, at least 1 and at most the gaps of a row; traced.
      keys: `[rows]` PRNG keys; needed to draw tokens.
    Raises: InputError if `turns` is below 1, settings do not apply, or a temperature lacks keys.
    Source: Ghazvininejad et al. 2019, arXiv:1904.09324, §3 (mask-predict, its linear schedule),
    without masking tokens again.
    """
    if isinstance(turns, int) and turns < 1:
        raise InputError(f"turns={turns} must be at least 1", field="turns")
    rules = _rules(settings)
    flags = rules.flags()
    empty, no_end = Output.empty(len(tokens), 1), jnp.full((1, 1), -1, jnp.int32)
    gaps = jnp.sum(masked.astype(jnp.int32), axis=1)
    turns = jnp.minimum(jnp.asarray(turns, jnp.int32), jnp.maximum(gaps, 1))

    def at_position(logits: jax.Array, keys: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        allowed = rules.apply(logits, empty, eos_ids=no_end, flags=flags)
        token = choose(allowed, settings.sampling, keys)
        return token, token_log_probabilities(logits, token)

    def unfinished(loop: Loop) -> jax.Array:
        turn, gap, _ = loop
        return jnp.any(gap & (turn < turns)[:, None])

    def fill(loop: Loop) -> Loop:
        turn, gap, filled = loop
        folded = None if keys is None else _keys(keys, turn, tokens.shape[1])
        logits = logits_fn(filled.tokens)
        new, log_probabilities = jax.vmap(at_position, in_axes=1, out_axes=1)(logits, folded)
        remaining = gaps - -(-gaps * (turn + 1) // turns)
        due = _surest(log_probabilities, gap, jnp.sum(gap.astype(jnp.int32), axis=1) - remaining)
        filled = Infilled(
            jnp.where(due, new, filled.tokens),
            jnp.where(due, log_probabilities, filled.log_probabilities),
        )
        return turn + 1, gap & ~due, filled

    blank = Infilled(tokens.astype(jnp.int32), jnp.zeros(tokens.shape, jnp.float32))
    return jax.lax.while_loop(unfinished, fill, (jnp.int32(0), masked, blank))[2]


def _surest(log_probabilities: jax.Array, gap: jax.Array, count: jax.Array) -> jax.Array:
    """Returns `[rows, length]` bool: the `count` `[rows]` most probable tokens of the gaps."""
    # Text ranks last, even after a gap whose token has no probability, or a NaN.
    most = jnp.finfo(jnp.float32).max
    doubt = jnp.nan_to_num(-log_probabilities, nan=most, posinf=most)
    doubt = jnp.where(gap, doubt, jnp.inf)
    rank = jnp.argsort(jnp.argsort(doubt, axis=1), axis=1).astype(jnp.int32)
    return gap & (rank < count[:, None])


def _rules(settings: Settings) -> Constraints:
    """Returns the constraints that apply to gaps; refuses the others."""
    names = [field.name for field in dataclasses.fields(Constraints)]
    fields = {name: getattr(settings.constraints, name) for name in names}
    rules = {name: fields.pop(name) for name in ("banned", "bias_ids", "bias")}
    fields |= {"limits": settings.limits, "logits_fn": settings.logits_fn}
    for name, value in fields.items():
        if value is not None:
            raise InputError(f"{name} does not apply to gaps in a text; leave it out")
    return Constraints(**rules)


def _keys(keys: jax.Array, turn: jax.Array, length: int) -> jax.Array:
    """Returns the PRNG key of each position in an iteration, `[rows, length]`."""
    fold = jax.vmap(jax.random.fold_in, in_axes=(0, None))
    positions = jnp.arange(length, dtype=jnp.int32)
    return jax.vmap(fold, in_axes=(None, 0), out_axes=1)(fold(keys, turn), positions)

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

    Args:
      tokens: `[rows, length]` int32.
      log_probabilities: `[rows, length]` float32 in nats, of each token that was filled in, under
        softmax(logits) as the model gave them in that turn, NaN where those were NaN or infinite;
        0 elsewhere.
    """

    tokens: jax.Array
    log_probabilities: jax.Array


Loop = tuple[jax.Array, jax.Array, Infilled]  # turns taken, the gaps left, and the text


def infill(
    logits_fn: Callable[[jax.Array], jax.Array],
    tokens: Int32[Array, "rows length"],
    masked: Bool[Array, "rows length"],
    settings: Settings,
    *,
    turns: jax.Array | int = 1,
    keys: jax.Array | None = None,
) -> Infilled:
    """Fills the gaps: all at once, or over several turns, the most probable tokens first.

    After turn t a row has ⌈gaps · t / turns⌉ of its gaps filled; what was filled stays, and is read
    in the next turn. As many turns as a row has gaps fill them one by one, and it takes no more.

    Args:
      logits_fn: `tokens [rows, length] int32 -> logits [rows, length, vocab]`.
      tokens: `[rows, length]` int32, with the mask token in the gaps.
      masked: `[rows, length]` bool, the gaps.
      settings: its `sampling`, and its constraints `banned`, which should hold the mask token, and
        `bias`; the others are about generating from left to right, and must be None.
      turns: at least 1; traced, so that other numbers need no compilation.
      keys: `[rows]` PRNG keys; needed where tokens are drawn. A row depends on no other.

    Raises:
      InputError: no turn, or settings that mean nothing here; no keys where tokens are drawn.

    Source: Ghazvininejad et al. 2019, arXiv:1904.09324, §3 (mask-predict), without its masking of
    tokens anew; the linear schedule is theirs.
    """
    if isinstance(turns, int) and turns < 1:
        raise InputError(f"turns={turns} must be at least 1", field="turns")
    used = ("banned", "bias_ids", "bias")
    rules = dataclasses.replace(settings.constraints, **dict.fromkeys(used))
    others = {field.name: getattr(rules, field.name) for field in dataclasses.fields(rules)}
    others |= {"limits": settings.limits, "logits_fn": settings.logits_fn}
    for name, value in others.items():
        if value is not None:
            raise InputError(f"{name} is set: it means nothing for gaps in a text; leave it out")
    own = Constraints(**{name: getattr(settings.constraints, name) for name in used})
    flags = own.flags()
    nothing, no_end = Output.empty(len(tokens), 1), jnp.full((1, 1), -1, jnp.int32)
    gaps = jnp.sum(masked.astype(jnp.int32), axis=1)
    turns = jnp.minimum(jnp.asarray(turns, jnp.int32), jnp.maximum(gaps, 1))  # of each row

    def at_place(logits: jax.Array, keys: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        allowed = own.apply(logits, nothing, eos_ids=no_end, flags=flags)
        token = choose(allowed, settings.sampling, keys)
        return token, token_log_probabilities(logits, token)

    def unfinished(loop: Loop) -> jax.Array:
        turn, gap, _ = loop
        return jnp.any(gap & (turn < turns)[:, None])

    def fill(loop: Loop) -> Loop:
        turn, gap, filled = loop
        place_keys = keys
        if keys is not None:
            fold = jax.vmap(jax.random.fold_in, in_axes=(0, None))
            places = jnp.arange(tokens.shape[1], dtype=jnp.int32)
            place_keys = jax.vmap(fold, in_axes=(None, 0), out_axes=1)(fold(keys, turn), places)
        logits = logits_fn(filled.tokens)
        new, log_probabilities = jax.vmap(at_place, in_axes=1, out_axes=1)(logits, place_keys)
        turn = turn + 1
        # Text comes last in the order, even after a gap whose token has no probability, or a NaN.
        most = jnp.finfo(jnp.float32).max
        doubt = jnp.nan_to_num(-log_probabilities, nan=most, posinf=most)
        doubt = jnp.where(gap, doubt, jnp.inf)
        rank = jnp.argsort(jnp.argsort(doubt, axis=1), axis=1).astype(jnp.int32)
        left = gaps - -(-gaps * turn // turns)
        due = jnp.sum(gap.astype(jnp.int32), axis=1) - left
        here = gap & (rank < due[:, None])
        filled = Infilled(
            jnp.where(here, new, filled.tokens),
            jnp.where(here, log_probabilities, filled.log_probabilities),
        )
        return turn, gap & ~here, filled

    blank = Infilled(tokens.astype(jnp.int32), jnp.zeros(tokens.shape, jnp.float32))
    return jax.lax.while_loop(unfinished, fill, (jnp.int32(0), masked, blank))[2]

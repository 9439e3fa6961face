"""Autoregressive generation: one compiled loop over an explicit cache, a token a row each turn."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from t5lite.decoding.sampling import choose, token_log_probabilities
from t5lite.decoding.settings import Settings
from t5lite.decoding.written import Written
from t5lite.errors import InputError

StepFn = Callable[[jax.Array, Any], tuple[jax.Array, Any]]


class Generated(NamedTuple):
    """What was written, prompts left out.

    Args:
      tokens: `[rows, room]` int32, the EOS included and `pad_id` after it.
      lengths: `[rows]` int32, tokens written, the EOS included.
      log_probabilities: `[rows]` float32 in nats, summed over the row's tokens, under
        softmax(logits) as the model gave them: before constraints and temperature. NaN where the
        logits were NaN or infinite, which ends a row.
      stuck: `[rows]` bool, rows that rules left no token for, which ended there; their last token
        means nothing.
    """

    tokens: jax.Array
    lengths: jax.Array
    log_probabilities: jax.Array
    stuck: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
    """A generation under way; give it to `advance`, which may have its memory (donate it).

    Args:
      last: `[rows]` int32, the token to feed next.
      done: `[rows]` bool, rows that have ended.
      written: the tokens so far.
      log_probabilities, stuck: see `Generated`.
      keys: `[rows]` PRNG keys, one a row, so that a row's draws depend on no other row; None where
        nothing is drawn.
      cache: of the model.
    """

    last: jax.Array
    done: jax.Array
    written: Written
    log_probabilities: jax.Array
    stuck: jax.Array
    keys: jax.Array | None
    cache: Any

    @property
    def generated(self) -> Generated:
        written = self.written
        return Generated(written.tokens, written.lengths, self.log_probabilities, self.stuck)


def begin(
    cache: Any,
    first: jax.Array,
    *,
    room: int,
    pad_id: int = 0,
    keys: jax.Array | None = None,
    prompts: jax.Array | None = None,
) -> State:
    """Returns the state of rows that have written nothing.

    Args:
      cache: of the model, holding all but the last token of each prompt (see `Model.start`).
      first: `[rows]` int32, that last token: of an encoder-decoder the start token.
      room: most tokens written a row, at least 1; the cache must have room for them, less one.
      pad_id: what follows a row's end.
      keys: `[rows]` PRNG keys; needed where tokens are drawn.
      prompts: see `Written`.

    Raises:
      InputError: no token to write.
    """
    if room < 1:
        raise InputError(f"room={room} must be at least 1")
    rows = first.shape[0]
    return State(
        last=first.astype(jnp.int32),
        done=jnp.zeros(rows, bool),
        written=Written.empty(rows, room, pad_id=pad_id, prompts=prompts),
        log_probabilities=jnp.zeros(rows, jnp.float32),
        stuck=jnp.zeros(rows, bool),
        keys=keys,
        cache=cache,
    )


def advance(
    step_fn: StepFn, state: State, settings: Settings, *, steps: jax.Array | int | None = None
) -> State:
    """Continues each row until it ends, and stops as soon as every row has.

    Pure and traceable: wrap the caller in `jax.jit`, with the parameters as its argument.

    Args:
      step_fn: `(tokens [rows, n] int32, cache) -> (logits [rows, n, vocab], cache)`.
      state: as `begin` or `advance` returned it.
      settings: how rows are written.
      steps: most tokens written now, e.g. 1 to show each as it comes; None for all.

    Raises:
      InputError: if tokens are to be drawn and there are no keys.
    """
    most = state.written.tokens.shape[1] if steps is None else steps

    def unfinished(loop: tuple[jax.Array, State]) -> jax.Array:
        count, state = loop
        return (count < most) & ~jnp.all(state.done)

    def turn(loop: tuple[jax.Array, State]) -> tuple[jax.Array, State]:
        count, state = loop
        logits, cache = step_fn(state.last[:, None], state.cache)
        logits, written, going = logits[:, 0], state.written, ~state.done
        keys = state.keys
        if keys is not None:
            keys = jax.vmap(jax.random.fold_in)(keys, written.lengths)
        adjusted = settings.adjusted(logits, written)
        token = choose(adjusted, settings.sampling, keys)
        chosen = jnp.take_along_axis(adjusted, token[:, None], axis=1)[:, 0]
        stuck = state.stuck | (going & ~(chosen > -jnp.inf))
        gain = token_log_probabilities(logits, token)
        log_probabilities = state.log_probabilities + jnp.where(going, gain, 0.0)
        written = written.append(token, going)
        return count + 1, dataclasses.replace(
            state,
            last=token,
            done=state.done | settings.ended(written) | stuck | jnp.isnan(log_probabilities),
            written=written,
            log_probabilities=log_probabilities,
            stuck=stuck,
            cache=cache,
        )

    return jax.lax.while_loop(unfinished, turn, (jnp.int32(0), state))[1]


def generate(
    step_fn: StepFn,
    cache: Any,
    first: jax.Array,
    settings: Settings,
    *,
    room: int,
    keys: jax.Array | None = None,
    prompts: jax.Array | None = None,
) -> Generated:
    """Writes behind each row's prompt until its end: `begin`, then `advance` to the end.

    Args:
      step_fn, settings: see `advance`.
      cache, first, room, keys, prompts: see `begin`.

    Returns:
      Tokens, lengths and log-probabilities.
    """
    state = begin(cache, first, room=room, pad_id=settings.pad_id, keys=keys, prompts=prompts)
    return advance(step_fn, state, settings).generated

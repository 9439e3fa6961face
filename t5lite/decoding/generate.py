"""Autoregressive generation: one prefill, then one compiled loop over an explicit cache."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from t5lite.decoding.sampling import choose, token_log_probabilities
from t5lite.errors import InputError

StepFn = Callable[[jax.Array, Any], tuple[jax.Array, Any]]
LogitsFn = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


class Generated(NamedTuple):
    """What `generate` wrote, prompts left out.

    Args:
      tokens: `[batch, max_new_tokens]` int32, the EOS included and `pad_id` after it.
      lengths: `[batch]` int32, tokens written, the EOS included.
      log_probabilities: `[batch]` float32 in nats, summed over the row's tokens, under
        softmax(logits) as `step_fn` gave them: before `logits_fn` and temperature.
    """

    tokens: jax.Array
    lengths: jax.Array
    log_probabilities: jax.Array


class _Loop(NamedTuple):
    column: jax.Array  # [] the one written next
    last: jax.Array  # [batch] the token to feed next
    done: jax.Array  # [batch] bool
    written: Generated
    cache: Any


def generate(
    step_fn: StepFn,
    cache: Any,
    prompt_tokens: jax.Array,
    *,
    max_new_tokens: int,
    eos_id: int,
    pad_id: int = 0,
    prompt_lengths: jax.Array | None = None,
    temperature: float | jax.Array = 0.0,
    rng: jax.Array | None = None,
    logits_fn: LogitsFn | None = None,
) -> Generated:
    """Continues each row's prompt until its EOS, stopping as soon as every row has ended.

    Pure and traceable: wrap the caller in `jax.jit`, with the parameters as its argument. The cache
    must have room for `n + max_new_tokens - 1` tokens more than it holds.

    Args:
      step_fn: `(tokens [batch, n] int32, cache) -> (logits [batch, n, vocab], cache)`.
      cache: pytree with `lengths [batch]` int32 and `rewind(lengths)`; those two are used only when
        `prompt_lengths` is given.
      prompt_tokens: `[batch]` or `[batch, n]` int32, padded on the right; for an encoder-decoder
        the start token.
      max_new_tokens: most tokens written a row, at least 1.
      eos_id: the token that ends a row.
      pad_id: what follows it.
      prompt_lengths: `[batch]` int32 in 1..n, for prompts of different lengths.
      temperature: 0 is greedy; see `choose`.
      rng: key, needed when sampling.
      logits_fn: `(logits [batch, vocab], written tokens [batch, max_new_tokens], column [])
        -> logits` the choice is made from.

    Returns:
      Generated tokens, lengths and log-probabilities.

    Raises:
      InputError: no token to write, or `choose` cannot.
    """
    if max_new_tokens < 1:
        raise InputError(f"max_new_tokens={max_new_tokens} must be at least 1")

    def write(loop: _Loop, logits: jax.Array, cache: Any) -> _Loop:
        column, written = loop.column, loop.written
        key = None if rng is None else jax.random.fold_in(rng, column)
        choosable = logits if logits_fn is None else logits_fn(logits, written.tokens, column)
        token = choose(choosable, key, temperature=temperature)
        gain = jnp.where(loop.done, 0.0, token_log_probabilities(logits, token))
        token = jnp.where(loop.done, pad_id, token)
        written = Generated(
            tokens=written.tokens.at[:, column].set(token),
            lengths=written.lengths + (~loop.done).astype(jnp.int32),
            log_probabilities=written.log_probabilities + gain,
        )
        return _Loop(column + 1, token, loop.done | (token == eos_id), written, cache)

    def unfinished(loop: _Loop) -> jax.Array:
        return (loop.column < max_new_tokens) & ~jnp.all(loop.done)

    def advance(loop: _Loop) -> _Loop:
        logits, cache = step_fn(loop.last[:, None], loop.cache)
        return write(loop, logits[:, 0], cache)

    logits, cache = _prefill(step_fn, cache, prompt_tokens, prompt_lengths)
    batch = logits.shape[0]
    empty = Generated(
        tokens=jnp.full((batch, max_new_tokens), pad_id, jnp.int32),
        lengths=jnp.zeros(batch, jnp.int32),
        log_probabilities=jnp.zeros(batch, jnp.float32),
    )
    start = _Loop(jnp.int32(0), empty.lengths, jnp.zeros(batch, bool), empty, cache)
    # The prefill's logits give the first token, so no step is taken for logits nobody reads.
    return jax.lax.while_loop(unfinished, advance, write(start, logits, cache)).written


def _prefill(
    step_fn: StepFn, cache: Any, prompt_tokens: jax.Array, prompt_lengths: jax.Array | None
) -> tuple[jax.Array, Any]:
    """Feeds the prompts; returns the logits after each row's last token and the cache there."""
    tokens = jnp.asarray(prompt_tokens, jnp.int32)
    tokens = tokens[:, None] if tokens.ndim == 1 else tokens
    if prompt_lengths is None:
        logits, cache = step_fn(tokens, cache)
        return logits[:, -1], cache
    lengths = jnp.asarray(prompt_lengths, jnp.int32)
    ends = cache.lengths + lengths
    logits, cache = step_fn(tokens, cache)
    last = jnp.take_along_axis(logits, (lengths - 1)[:, None, None], axis=1)[:, 0]
    # The padding's entries fall behind the rewound ends and are overwritten token by token.
    return last, cache.rewind(ends)

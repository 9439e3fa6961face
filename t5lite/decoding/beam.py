"""Beam search: the best answers among the continuations of a few hypotheses a row."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32, Int32, Shaped

from t5lite.decoding.generate import StepFn
from t5lite.decoding.output import Output
from t5lite.decoding.settings import Settings
from t5lite.errors import InputError

CHUNK = 128


class Beams(NamedTuple):
    """Finished answers, without prompts.

    Args:
      tokens: `[rows, capacity]` int32, the EOS included and `pad_id` after it.
      lengths: `[rows]` int32, tokens written, the EOS included.
      token_log_probabilities: `[rows, capacity]` float32 in nats, under softmax(logits) of the
        model: before constraints; 0 after the end. NaN where logits of the input's search were NaN
        or infinite, which ends it.
      scores: `[rows]` float32, what they were ranked by: the sum of the log-probabilities as
        `settings.adjusted` left them, divided by `lengths ** length_penalty`.
    """

    tokens: jax.Array
    lengths: jax.Array
    token_log_probabilities: jax.Array
    scores: jax.Array

    @property
    def log_probabilities(self) -> Any:
        """`[rows]` float32, the sums of `token_log_probabilities`."""
        return self.token_log_probabilities.sum(axis=-1)


class _Search(NamedTuple):
    """A search under way; its beams are `[batch, num_beams, …]`, best first.

    A score of -inf means that there is no beam in this place.
    """

    running: Beams  # their scores are sums, for all of them are equally long
    finished: Beams
    done: jax.Array  # [batch] bool
    broken: jax.Array  # [batch] bool: logits were not finite
    last: jax.Array  # [batch * num_beams] int32, the token to feed next
    cache: Any


def beam_search(
    step_fn: StepFn,
    cache: Any,
    first: Shaped[Array, " batch"],
    settings: Settings,
    *,
    num_beams: int,
    capacity: int,
    length_penalty: jax.Array | float = 1.0,
    early_stopping: bool | None = False,
    num_samples: int = 1,
    prompts: jax.Array | None = None,
) -> Beams:
    """Writes the answers that score best, following `num_beams` of them at a time.

    Each step ranks the best continuations of an input's beams, `num_beams` of them and as many more
    for each EOS. Those among the best `num_beams` that end are kept as finished, and the best that
    do not end run on. Ends, stopping and ties are as in transformers, so the tokens are the same;
    an input's answers depend on no other input.

    Pure and traceable: wrap the caller in `jax.jit`, with the parameters as its argument.

    Args:
      step_fn: `(tokens [rows, n] int32, cache) -> (logits [rows, n, vocab], cache)`.
      cache: of the model, `batch` rows; see `start`. Its `repeat(n)` puts n of each row side by
        side, and its `reorder(rows)` makes row i what row `rows[i]` was.
      first: `[batch]` int32, the last token of each prompt.
      settings: of the answers, values by row being `[batch]`; nothing is drawn.
      num_beams: hypotheses followed for an input, at most the vocabulary; 1 is greedy, unless
        `early_stopping` is None.
      capacity: see `start`.
      length_penalty: a scalar or `[batch]`, the power of the length that a finished answer's sum is
        divided by: above 0 favours longer ones, below 0 shorter ones.
      early_stopping: True stops when `num_beams` answers have finished; False also waits while the
        best running beam, as long as it is now, would rank among them; None ("never" in
        transformers) while it would if it could grow for free to its limit, so that no better
        answer is missed for want of time.
      num_samples: the best answers returned for each input, at most `num_beams`.
      prompts: `[batch, n]`; see `Output`.

    Returns:
      `rows = batch * num_samples`, an input's answers together and best first. Where rules leave
      fewer answers, the others have length 0 and score -inf.

    Raises:
      InputError: numbers out of range, or settings that draw tokens.

    Source: Wu et al. 2016, arXiv:1609.08144, §7 (ranking by length); the rules for stopping are
    `_beam_search` of transformers 5.
    """
    if num_beams < 1:
        raise InputError(f"num_beams={num_beams} must be at least 1", field="num_beams")
    if not 1 <= num_samples <= num_beams:
        raise InputError(
            f"num_samples={num_samples} must be in 1..{num_beams}, which is num_beams",
            field="num_samples",
        )
    if capacity < 1:
        raise InputError(f"capacity={capacity} must be at least 1", field="capacity")
    if settings.sampling.temperature is not None:
        raise InputError("beam search draws nothing: leave temperature out, or set num_beams=1")
    if early_stopping not in (False, True, None):
        raise InputError(
            f"early_stopping={early_stopping!r} must be False, True or None (never)",
            field="early_stopping",
        )
    batch = first.shape[0]
    limits = capacity if settings.limits is None else settings.limits
    limits = jnp.minimum(limits, capacity)
    settings = dataclasses.replace(settings, limits=limits)
    num_ends = max(1, settings.ends.shape[1])
    limits = _column(limits, batch)
    penalty = _column(length_penalty, batch)
    roots = jnp.arange(batch, dtype=jnp.int32)[:, None] * num_beams

    flags = settings.flags()

    def by_beam(rule: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
        """Lets a rule about `batch` rows see one beam of each input at a time."""

        def apply(beams: Beams, *logits: jax.Array) -> jax.Array:
            return rule(*logits, Output(beams.tokens, beams.lengths, prompts), flags)

        return jax.vmap(apply, in_axes=1, out_axes=1)

    def turn(search: _Search) -> _Search:
        running = search.running
        logits, cache = step_fn(search.last[:, None], search.cache)
        vocab = logits.shape[-1]
        if num_beams > vocab:
            raise InputError(
                f"num_beams={num_beams} is more than the vocabulary's {vocab} tokens",
                field="num_beams",
            )
        log_probabilities = jax.nn.log_softmax(logits[:, 0].astype(jnp.float32))
        log_probabilities = log_probabilities.reshape(batch, num_beams, vocab)
        # One NaN or infinity makes all of a softmax NaN.
        nan = jnp.isnan(log_probabilities[:, :, 0]) & (running.scores > -jnp.inf)
        broken = search.broken | (jnp.any(nan, axis=1) & ~search.done)
        sums = by_beam(settings.adjusted)(running, log_probabilities) + running.scores[:, :, None]
        # So many that enough of them do not end with an EOS, and run on.
        longer, parents, tokens = _continued(
            running, log_probabilities, sums, min(1 + num_ends, vocab) * num_beams
        )
        ended = by_beam(settings.ended)(longer)

        enters = ended & (jnp.arange(ended.shape[1])[None] < num_beams) & ~search.done[:, None]
        finished = _joined(search.finished, longer, enters, penalty)
        going = longer._replace(scores=jnp.where(ended, -jnp.inf, longer.scores))
        order = jax.lax.top_k(going.scores, num_beams)[1]
        running, parents, tokens = _take((going, parents, tokens), order)

        reach = running.lengths[:, :1].astype(jnp.float32)
        if early_stopping is None:
            reach = jnp.where(penalty > 0, limits, reach)
        hope = (running.scores[:, :1] / reach**penalty)[:, 0]
        worst = finished.scores[:, -1]  # -inf while there are fewer than num_beams
        done = search.done | broken | ~(hope > worst)
        if early_stopping:
            done |= worst > -jnp.inf
        cache = cache.reorder((roots + parents).reshape(-1))
        return _Search(running, finished, done, broken, tokens.reshape(-1), cache)

    none = Beams(
        tokens=jnp.full((batch, num_beams, capacity), settings.pad_id, jnp.int32),
        lengths=jnp.zeros((batch, num_beams), jnp.int32),
        token_log_probabilities=jnp.zeros((batch, num_beams, capacity), jnp.float32),
        scores=jnp.full((batch, num_beams), -jnp.inf, jnp.float32),
    )
    search = _Search(
        running=none._replace(scores=none.scores.at[:, 0].set(0.0)),  # all beams are still the same
        finished=none,
        done=jnp.zeros(batch, bool),
        broken=jnp.zeros(batch, bool),
        last=jnp.repeat(first.astype(jnp.int32), num_beams),
        cache=cache.repeat(num_beams),
    )
    search = jax.lax.while_loop(lambda search: ~jnp.all(search.done), turn, search)
    best = jax.tree.map(lambda array: array[:, :num_samples], search.finished)
    broken = search.broken[:, None, None]
    best = best._replace(
        token_log_probabilities=jnp.where(broken, jnp.nan, best.token_log_probabilities)
    )
    return jax.tree.map(lambda array: array.reshape(-1, *array.shape[2:]), best)


def top_k(
    scores: Float32[Array, "rows n"], k: int
) -> tuple[Float32[Array, "rows k"], Int32[Array, "rows k"]]:
    """Returns what `jax.lax.top_k` does, sooner where rows are long.

    The k best are in the k chunks with the highest maxima: one pass, and few elements to order. On
    two CPU cores, 5 to 12 times as fast for the beams of vocabularies of 32k to 256k.

    Args:
      scores: `[rows, n]` float32.
      k: at most n.

    Returns:
      Values `[rows, k]` in falling order, and their places int32; ties go to the lowest place.
    """
    rows, n = scores.shape
    if n <= k * CHUNK:
        values, places = jax.lax.top_k(scores, k)
        return values, places
    padding = ((0, 0), (0, -n % CHUNK))
    chunks = jnp.pad(scores, padding, constant_values=-jnp.inf).reshape(rows, -1, CHUNK)
    held = jnp.sort(jax.lax.top_k(chunks.max(axis=-1), k)[1], axis=-1)
    chunks = jnp.take_along_axis(chunks, held[:, :, None], axis=1)
    values, places = jax.lax.top_k(chunks.reshape(rows, -1), k)
    return values, jnp.take_along_axis(held, places // CHUNK, axis=1) * CHUNK + places % CHUNK


def _continued(
    running: Beams, log_probabilities: jax.Array, sums: jax.Array, k: int
) -> tuple[Beams, jax.Array, jax.Array]:
    """Returns the `k` best continuations of beams, which beams they continue and with what token.

    Args:
      running: beams `[batch, num_beams]`, all equally long.
      log_probabilities: `[batch, num_beams, vocab]` float32, of the model.
      sums: likewise, the scores they would have.
      k: how many.
    """
    batch, _, vocab = sums.shape
    sums, places = top_k(sums.reshape(batch, -1), k)
    gains = jnp.take_along_axis(log_probabilities.reshape(batch, -1), places, axis=1)
    parents, tokens = places // vocab, places % vocab
    old = _take(running, parents)
    at = running.lengths[0, 0]
    longer = Beams(
        tokens=old.tokens.at[:, :, at].set(tokens),
        lengths=old.lengths + 1,
        token_log_probabilities=old.token_log_probabilities.at[:, :, at].set(gains),
        scores=sums,
    )
    return longer, parents, tokens


def _joined(finished: Beams, beams: Beams, enters: jax.Array, penalty: jax.Array) -> Beams:
    """Returns the best of the finished beams and those that enter, as many as there were.

    Args:
      finished: `[batch, num_beams]`, ranked.
      beams: `[batch, n]`, whose scores are sums.
      enters: `[batch, n]` bool.
      penalty: `[batch, 1]` float32, the power of their lengths.
    """
    ranked = beams.scores / beams.lengths.astype(jnp.float32) ** penalty
    beams = beams._replace(scores=jnp.where(enters, ranked, -jnp.inf))
    known = jax.tree.map(lambda *parts: jnp.concatenate(parts, axis=1), finished, beams)
    return _take(known, jax.lax.top_k(known.scores, finished.scores.shape[1])[1])


def _take(tree: Any, places: jax.Array) -> Any:
    """Returns the beams `places` `[batch, n]` of arrays `[batch, beams, …]`."""
    take = jax.vmap(lambda tree, places: jax.tree.map(lambda array: array[places], tree))
    return take(tree, places)


def _column(values: jax.Array | float, batch: int) -> jax.Array:
    """Returns a scalar or `[batch]` as `[batch, 1]` float32."""
    return jnp.broadcast_to(jnp.asarray(values).astype(jnp.float32), (batch,))[:, None]
